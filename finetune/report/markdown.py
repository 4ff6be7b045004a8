"""A report as Markdown; its pictures are files beside it."""

import re
from collections.abc import Iterator, Sequence

from finetune.report.content import TrainingReport
from finetune.report.outline import Section, Table, sections_of

_MEANT = re.compile(r"([\\`*_\[\]<>|#~&])")
"""What Markdown, and HTML in it, would read as more than a character."""


def as_markdown(report: TrainingReport) -> str:
    """The whole text. The picture NAME is taken to be in NAME.svg, in the same folder."""
    parts = [f"# Training report: {_escaped(report.subject)}"]
    for section in sections_of(report):
        parts.extend(_blocks(section))
    return "\n\n".join(parts) + "\n"


def _blocks(section: Section) -> Iterator[str]:
    yield f"## {section.heading}"
    yield from map(_escaped, section.paragraphs)
    yield from (_table(table) for table in section.tables if table.rows)
    yield from (f"![{_escaped(one.title)}]({one.name}.svg)" for one in section.pictures)


def _table(table: Table) -> str:
    head = table.head or ("",) * len(table.rows[0])
    rule = ["---"] * len(head)
    return "\n".join(map(_row, [head, rule, *([*map(_escaped, row)] for row in table.rows)]))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return _MEANT.sub(r"\\\1", " ".join(text.split()))
