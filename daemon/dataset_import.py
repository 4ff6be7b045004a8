"""From the bytes of a dataset file to judged outputs: what `learnd import` stores.

A row becomes an event like any other: decoded by consumers/wire.py, judged by the judge. What
is different: whoever imports a file vouches that its rows may train; that they may judge,
only a person's approval says. An id that a row does not have follows from its content.
"""

import difflib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from consumers.reading import Reader
from consumers.wire import STANDARD_LIMITS, Undecodable
from daemon.store.intake import IMPORT
from finetune.datasets.dataset_file import DatasetFile, GoodRow, Reading
from finetune.datasets.flaws import BadLine, DatasetFileError
from finetune.datasets.formats import Example, Kind
from finetune.datasets.lines import RowLimits
from learning.clock import microseconds
from learning.errors import ConflictError
from learning.events import OutputEvent
from learning.lifecycle import EventState
from learning.lines import ModelLine
from learning.policy import Verdict
from learning.ports import EventKind, JudgedOutput, Origin

MOST_ROWS = 50_000
"""Rows of one import: they are stored in one transaction, and intake waits for it."""
MAX_LINE_BYTES = 1_000_000

_OWN_FIELDS = frozenset(OutputEvent.model_fields) - {"prompt", "output", "messages", "context"}
_VERDICTS = ("approved", "confidence")


class TooManyRowsError(ConflictError):
    """A file has more rows than one import takes."""

    def __init__(self, file: str) -> None:
        super().__init__(
            f"{file} has more than {MOST_ROWS:,} rows: import it in parts"
            f" (split -l {MOST_ROWS}), each becomes a batch"
        )


class UnreadableDatasetError(ConflictError):
    """A file that was to be imported is no dataset."""


@dataclass(frozen=True)
class ImportOrder:
    """What is to be imported, and as what."""

    file: str
    """Its name, for the record."""
    task_type: str | None
    """Of the rows that do not name theirs; None: the line's only one."""
    approved: bool
    """Whether people approved every row that does not say otherwise, so that some may judge."""
    actor: str


@dataclass(frozen=True)
class PreparedImport:
    """Rows that are events, and lines that are none."""

    outputs: tuple[JudgedOutput, ...]
    refused: tuple[tuple[int, str], ...]
    sha256: str


def prepare(
    content: bytes,
    order: ImportOrder,
    line: ModelLine,
    judge: Callable[[OutputEvent], Verdict],
    now: datetime,
) -> PreparedImport:
    """Read a file's bytes. Raises UnreadableDatasetError and TooManyRowsError. Blocks."""
    outputs: list[JudgedOutput] = []
    refused: list[tuple[int, str]] = []
    reader = Reader(lambda event: _verdict(event, order, judge), STANDARD_LIMITS)
    for row in _rows(content, order.file):
        if isinstance(row, BadLine):
            refused.append((row.line, f"{row.flaw}: {row.detail}"))
            continue
        for fields in _events_of(row.example, order):
            output = _judged(fields, row.line, order, line, reader, microseconds(now))
            if isinstance(output, str):
                refused.append((row.line, output))
            else:
                outputs.append(output)
        if len(outputs) + len(refused) > MOST_ROWS:
            raise TooManyRowsError(order.file)
    digest = hashlib.sha256(content).hexdigest()
    return PreparedImport(tuple(outputs), tuple(refused), digest)


def _rows(content: bytes, name: str) -> Iterator[GoodRow | BadLine]:
    with tempfile.TemporaryDirectory(prefix="learnd-") as folder:
        path = Path(folder) / "dataset"
        path.write_bytes(content)
        try:
            yield from DatasetFile(path, Reading(limits=RowLimits(MAX_LINE_BYTES))).rows()
        except DatasetFileError as error:
            raise UnreadableDatasetError(str(error).replace(str(path), name)) from error


def _events_of(example: Example, order: ImportOrder) -> Iterator[dict[str, Any]]:
    """The fields of a row's event, or events: a pair is an answer and one that was rejected."""
    common = _common(example)
    if example.kind is Kind.LABELLED and example.label is False:
        yield {**common, **_texts(example, example.answer), "approved": False}
        return
    if order.approved and common.get("approved") is None:
        common["approved"] = True
    yield {**common, **_texts(example, example.answer)}
    if example.rejected is not None:
        # The ids that the row may have are the chosen answer's.
        rest = {name: common[name] for name in common.keys() - {"event_id", "task_id"}}
        yield {**rest, **_texts(example, example.rejected), "approved": False}


def _texts(example: Example, answer: str) -> dict[str, Any]:
    match example.prompt:
        case [{"role": "user", "content": content}]:
            return {"prompt": content, "output": answer}
    return {"messages": [*example.prompt, {"role": "assistant", "content": answer}]}


def _common(example: Example) -> dict[str, Any]:
    """A row's own fields where an event has them; the others are its context."""
    by_alias = {field.alias: name for name, field in OutputEvent.model_fields.items()}
    fields: dict[str, Any] = {}
    context: dict[str, Any] = {}
    for name, value in example.extra.items():
        known = by_alias.get(name, name)
        if known == "context" and isinstance(value, dict):
            context |= value
        elif known in _OWN_FIELDS:
            fields[known] = value
        else:
            context[name] = value
    return {**fields, "context": context} if context else fields


def _judged(
    fields: dict[str, Any],
    number: int,
    order: ImportOrder,
    line: ModelLine,
    reader: Reader,
    received_at: int,
) -> JudgedOutput | str:
    """The judged event, or why there is none."""
    if (fault := _misspelt(fields.get("context", {}))) is not None:
        return fault
    task_type = fields.get("task_type", order.task_type)
    if task_type is None:
        if len(line.task_types) != 1:
            return "it names no task_type, and the line has several: give --task-type"
        (task_type,) = line.task_types
    identity = _identity(fields, task_type)
    raw = json.dumps(
        {
            "producer": IMPORT,
            "event_id": identity,
            "task_id": identity,
            **fields,
            "task_type": task_type,
        },
        ensure_ascii=False,  # what is escaped would be longer than it was in the file
    ).encode()
    origin = Origin(IMPORT, order.file[-256:], 0, number)
    output = reader.arrival(EventKind.OUTPUT, raw, origin, received_at)
    if isinstance(output, Undecodable):
        return f"{output.reason}: {output.detail}"
    assert isinstance(output, JudgedOutput)
    if output.task_type not in line.task_types:
        return f"the line {line.name} does not learn from {output.task_type}"
    return output


def _misspelt(context: Mapping[str, Any]) -> str | None:
    """A field that was meant as a verdict, and would pass as none."""
    for name in context:
        close = difflib.get_close_matches(name[:64], _VERDICTS, n=1, cutoff=0.8)
        if close:
            return f"unknown field {name[:64]}, did you mean {close[0]}?"
    return None


def _verdict(
    event: OutputEvent, order: ImportOrder, judge: Callable[[OutputEvent], Verdict]
) -> Verdict:
    if event.approved is not None:
        return judge(event)
    # As if somebody approved it, so that its confidence and the validators count.
    found = judge(event.model_copy(update={"approved": True}))
    if found.state is not EventState.QUEUED:
        return found._replace(by_human=False)
    return Verdict(EventState.QUEUED, f"imported by {order.actor}", by_human=False)


def _identity(fields: Mapping[str, Any], task_type: str) -> str:
    """The same for the same texts of one task type and group, in whatever file they stand."""
    said = {
        "task_type": task_type,
        "texts": [fields.get(name) for name in ("prompt", "output", "messages")],
        "split_group": fields.get("split_group"),
    }
    content = json.dumps(said, sort_keys=True).encode()
    return f"import:{hashlib.blake2b(content, digest_size=16).hexdigest()}"
