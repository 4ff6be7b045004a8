"""Simulate the events of a JSONL file, without a daemon and without a database.

A file has no verdicts: beside the simulation stands what the settings of today would do. The
lines are read as the daemon would read them; those that are no events are counted and named.
Lines are put in the order of their timestamps; a line without one counts with the line before
it. All of a file is in memory.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Final, NamedTuple

from consumers.lines import LineCutter
from consumers.send import MAX_LINE_BYTES, kind_of, parsed
from consumers.wire import Decoded, Limits, decode
from daemon.api.ports import LeftOut, SimulationAnswer, Source
from daemon.settings import Settings
from daemon.simulating import (
    SimulationError,
    changed_settings,
    configuration,
    task_types_of,
    time_told,
    tried,
)
from learning.clock import microseconds
from learning.events import FeedbackEvent, OutputEvent
from learning.lifecycle import EventState
from learning.ports import Origin
from learning.simulated_line import NEVER, Configuration, time_of
from learning.simulation import Comparison, Control, Output, Past, Recorded, Report, Said, simulate
from learning.validators import Validator, complaints, installed

MOST_NAMED: Final = 10
_CHUNK_BYTES: Final = 65_536

Ended = Callable[[int, EventState], None]
Task = tuple[str, str]
"""A task type and a task's id: what feedback and output are joined on."""


class _Line(NamedTuple):
    """What a simulation needs of one event."""

    at: int
    task: Task
    approved: bool | None
    confidence: float | None = None
    is_output: bool = False
    stopped: tuple[str, ...] = ()
    """What the validators of today have against it."""
    findings: tuple[str, ...] = ()
    """What those of the simulation have."""


@dataclass
class _Content:
    """What a file holds."""

    lines: list[_Line] = field(default_factory=list)
    n_refused: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    duplicates: int = 0
    undated: int = 0


class _Reader:
    """Reads a file as a daemon with these settings would, and asks two sets of validators."""

    def __init__(self, today: Settings, simulated: Settings, now: datetime) -> None:
        self._today = installed(today.policy.max_output_characters)
        self._simulated = installed(simulated.policy.max_output_characters)
        self._limits = Limits(max_bytes=today.kafka.max_message_bytes)
        self._now = microseconds(now)

    def read(self, file: BinaryIO) -> _Content:
        """All of its lines, in the order of their times."""
        content = _Content()
        known: set[tuple[str, str, str]] = set()
        at: int | None = None
        for number, raw in enumerate(_lines(file), start=1):
            if not raw.strip():
                continue
            kind = kind_of(parsed(raw))
            origin = Origin("file", "file", 0, number)
            found = decode(kind, raw, origin, self._now, self._limits)
            if not isinstance(found, Decoded):
                content.n_refused += 1
                if len(content.refused) < MOST_NAMED:
                    content.refused.append((number, f"{found.reason}: {found.detail}"))
                continue
            name = (kind.value, found.event.producer, found.event_id)
            if name in known:
                content.duplicates += 1
                continue
            known.add(name)
            if found.sent_at is None:
                content.undated += 1
                at = self._now if at is None else at
            else:
                at = found.sent_at
            content.lines.append(self._line(found.event, at))
        content.lines.sort(key=lambda line: line.at)
        return content

    def _line(self, event: OutputEvent | FeedbackEvent, at: int) -> _Line:
        task = (event.task_type, event.task_id)
        if isinstance(event, FeedbackEvent):
            return _Line(at, task, event.approved)
        stopped, findings = (_complaints(event, asked) for asked in (self._today, self._simulated))
        return _Line(at, task, event.approved, event.confidence, True, stopped, findings)


def simulate_file(
    file: BinaryIO,
    settings: Settings,
    values: Mapping[str, Any],
    *,
    now: datetime,
    since: str | None,
    until: str | None,
    line: str | None,
    task_type: str | None,
    run_seconds: float,
) -> SimulationAnswer:
    """Replay a file under `settings` with other values, beside `settings` as they are.

    Raises the errors of daemon.simulating.order.
    """
    changed = changed_settings(settings, values)
    task_types = task_types_of(settings, line, task_type)
    start, end = (
        None if text is None else microseconds(time_told(text, now)) for text in (since, until)
    )
    if start is not None and end is not None and start >= end:
        raise SimulationError(f"--since {since} is not before --until {until}")
    content = _Reader(settings, changed, now).read(file)
    wanted = [
        one
        for one in content.lines
        if (start is None or one.at >= start)
        and (end is None or one.at < end)
        and (task_types is None or one.task[0] in task_types)
    ]
    today, simulated = (configuration(one, without_base=True) for one in (settings, changed))
    report = _compared(wanted, simulated, today, now, run_seconds)
    return SimulationAnswer(
        Source.FILE,
        tried(settings, changed, values),
        0,
        replace(report, notes=[*_notes(content, wanted), *report.notes]),
        LeftOut(content.n_refused, content.refused, content.duplicates),
    )


def _compared(
    lines: Sequence[_Line],
    simulated: Configuration,
    today: Configuration,
    now: datetime,
    run_seconds: float,
) -> Report:
    second = timedelta(seconds=1)
    since, until = now - second, now
    if lines:
        since, until = time_of(lines[0].at), time_of(lines[-1].at) + second
    ends: dict[int, EventState] = {}

    def replayed(
        configured: Configuration, recorded: Iterator[Recorded], ended: Ended = _unheard
    ) -> Report:
        return simulate(
            recorded,
            Past(),
            configured,
            today,
            since=since,
            until=until,
            run_seconds=run_seconds,
            ended=ended,
        )

    before = replayed(today, _recorded(lines, {}, anew=False), ends.__setitem__)
    after = replayed(simulated, _recorded(lines, ends, anew=True))
    return replace(
        after,
        control=Control(0, 0, ()),
        total=Comparison(before.total.simulated, after.total.simulated),
        lines={
            name: Comparison(one.simulated, after.lines[name].simulated)
            for name, one in before.lines.items()
        },
        series=replace(after.series, recorded=before.series.simulated),
    )


def _recorded(
    lines: Sequence[_Line], ends: Mapping[int, EventState], *, anew: bool
) -> Iterator[Recorded]:
    """The lines as a daemon would have recorded them; `anew`: with the other validators."""
    outputs = (one.task for one in lines if one.is_output)
    first_of: dict[Task, int] = {}
    for number, task in enumerate(outputs, start=1):
        first_of.setdefault(task, number)
    arrived: Counter[Task] = Counter()
    number = 0
    for one in lines:
        if one.is_output:
            number += 1
            arrived[one.task] += 1
            yield Output(
                one.at,
                number,
                one.task[0],
                one.approved,
                one.confidence,
                ends.get(number, EventState.HELD),
                NEVER,
                one.stopped,
                one.findings if anew else one.stopped,
            )
        # Feedback on a task with several outputs is set aside, as the daemon does.
        elif one.task in first_of and arrived[one.task] <= 1:
            yield Said(one.at, first_of[one.task], one.approved, late=False)


def _unheard(_event: int, _state: EventState) -> None:
    """For whoever need not know where events end."""


def _complaints(event: OutputEvent, validators: Sequence[Validator]) -> tuple[str, ...]:
    return tuple(complaints(event, validators))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    cutter = LineCutter(MAX_LINE_BYTES)
    while chunk := file.read(_CHUNK_BYTES):
        for line in cutter.cut(chunk):
            yield line.raw
    if (last := cutter.last()) is not None:
        yield last.raw


def _notes(content: _Content, lines: Sequence[_Line]) -> Iterator[str]:
    if content.undated:
        yield f"{content.undated:,} lines have no timestamp: each counts with the line before it"
    tasks = {one.task for one in lines if one.is_output}
    lonely = sum(not one.is_output and one.task not in tasks for one in lines)
    if lonely:
        yield f"{lonely:,} feedback name a task of which no output is here: they change nothing"
