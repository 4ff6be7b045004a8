"""A report as one HTML page: it needs no other file, no network and no script."""

from collections.abc import Iterator, Sequence
from html import escape

from finetune.report.content import TrainingReport
from finetune.report.outline import Section, Table, sections_of

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fafafa;
       max-width: 84rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .6rem 0; background: #fff; }
th, td { border: 1px solid #e3e3e3; padding: .25rem .7rem; text-align: left;
         vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; background: #f3f4f6; white-space: nowrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures svg { border: 1px solid #e3e3e3; max-width: 100%; height: auto; }
"""

# Not even a picture may be fetched, should a text slip through that asks for one.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def as_page(report: TrainingReport) -> str:
    """The whole page. Every text in it is escaped."""
    return page_of(f"Training report: {report.subject}", sections_of(report))


def page_of(heading: str, sections: Sequence[Section]) -> str:
    """A page of sections. Every text in it is escaped."""
    title = escape(heading)
    body = "\n".join(line for section in sections for line in _blocks(section))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _blocks(section: Section) -> Iterator[str]:
    yield f"<h2>{escape(section.heading)}</h2>"
    yield from (f"<p>{escape(words)}</p>" for words in section.paragraphs)
    yield from (_table(table) for table in section.tables if table.rows)
    if section.pictures:
        pictures = "".join(picture.svg for picture in section.pictures)
        yield f'<div class="pictures">{pictures}</div>'


def _table(table: Table) -> str:
    rows = [_row(table.head, ())] if table.head else []
    rows += [_row(cells[:1], cells[1:]) for cells in table.rows]
    return f"<table>{''.join(rows)}</table>"


def _row(heads: Sequence[str], cells: Sequence[str]) -> str:
    named = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f"<tr>{named}{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>"
