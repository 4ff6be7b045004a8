"""Replay what was recorded under another configuration: what would have become of it.

Pure: recorded events in the order of their time in, a report out. Verdicts, joins, batches,
sizes, splits and caps are decided by the code that the daemon decides them with; nothing is
decided here but the order in which it is asked. Beside the simulation runs a control: each
event judged under the settings of today, with its feedback as it was joined. Where nothing was
changed meanwhile the control ends where the record does, and so says how far to trust the rest.

Times are microseconds since 1970.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from learning.batching import Trigger
from learning.clock import microseconds
from learning.lifecycle import EventState
from learning.policy import (
    Evidence,
    Policy,
    Verdict,
    confirms,
    judge,
    rejudge,
    rejudge_by_hand,
)
from learning.simulated_line import (
    ASSUMED_RUN_SECONDS,
    ASSUMED_TOKENS_A_ROW,
    NEVER,
    SECOND,
    Books,
    Configuration,
    Fate,
    LinePast,
    SimulatedBatch,
    SimulatedLine,
    time_of,
)

PAUSE = SECOND // 5
"""So often the queues are looked at, at most: what arrives meanwhile counts together."""
FORGET_EVERY = 4_096
"""After so many steps what is closed on both sides is let go of."""
FORGET_AFTER = 60 * SECOND
"""By so much the clocks of several daemons may differ."""
MOST_DIFFERENCES = 10
MOST_STRETCHES = 200
STEPS = (60, 3_600, 86_400, 7 * 86_400, 30 * 86_400, 366 * 86_400)
"""Seconds of a stretch of the series: the shortest of these that makes few enough stretches."""

_FINAL = frozenset(
    {EventState.SEALED, EventState.REJECTED, EventState.EXPIRED, EventState.WITHDRAWN}
)


class Became(StrEnum):
    """What became of an event; each ends as one of these."""

    ACCEPTED = "accepted"
    """It is queued or sealed."""
    HELD = "held"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    """It was accepted, and rejected before it was sealed."""


def became(state: EventState) -> Became:
    """What a state says of an event."""
    if state in (EventState.QUEUED, EventState.SEALED):
        return Became.ACCEPTED
    return Became(state)


@dataclass(frozen=True)
class Stretch:
    """A stretch of time, and of which task types; None is all."""

    since: datetime
    until: datetime
    task_types: frozenset[str] | None = None


# --- what is recorded ---------------------------------------------------------------------


class Carried(NamedTuple):
    """How an event stood when the simulation begins, that had arrived before."""

    state: EventState
    since: int
    by_human: bool
    people: tuple[bool, ...]
    """What feedback had said of it by then."""


class Output(NamedTuple):
    """An output that arrived, or that waited since before."""

    at: int
    """When it arrived; of one that is carried in, when the simulation begins."""
    id: int
    """Grows in the order of arrival."""
    task_type: str
    stated: bool | None
    confidence: float | None
    state: EventState
    """Where it is at the end, by the record."""
    closed_at: int
    """Since when it is in that state."""
    stopped: tuple[str, ...] = ()
    """What the validators had against it, by the record."""
    findings: tuple[str, ...] = ()
    """What they have against it as they are set in the simulation."""
    carried: Carried | None = None


class Said(NamedTuple):
    """Feedback that met its output, sooner or later."""

    at: int
    output: int
    """The id of its output, which may still be to come."""
    approved: bool | None
    late: bool
    """Whether the record has it as too late."""


class Ruled(NamedTuple):
    """An operator's verdict on an event, by hand."""

    at: int
    output: int
    approved: bool


class Batched(NamedTuple):
    """A batch that was sealed."""

    at: int
    line: str
    trigger: Trigger
    n_train: int
    n_held_out: int
    n_repeated: int
    seconds: float
    """How long its run kept the line busy; 0 without a run."""
    launched: bool
    spent: Decimal


Recorded = Output | Said | Ruled | Batched


@dataclass(frozen=True)
class Past:
    """What was there when the record begins, beside the events that are carried in."""

    lines: Mapping[str, LinePast] = field(default_factory=dict)
    spent: Sequence[tuple[int, Decimal]] = ()
    """What was committed before, in this day and month: when, and how much."""


# --- what comes of it ---------------------------------------------------------------------


@dataclass
class Totals:
    """One side of the comparison: what did happen, or what would have."""

    accepted: int = 0
    held: int = 0
    rejected: int = 0
    quarantined: int = 0
    expired: int = 0
    withdrawn: int = 0
    batches: Counter[str] = field(default_factory=Counter)
    """By what sealed them."""
    sealed: int = 0
    """Events in those batches."""
    trained: int = 0
    held_out: int = 0
    repeated: int = 0
    """Events of earlier batches, of the line's own and of related task types, in them."""
    launched: int = 0
    """Runs."""
    spent: Decimal = Decimal(0)

    @property
    def events(self) -> int:
        """All of them: each is counted once."""
        return sum(getattr(self, kind) for kind in Became)

    def count(self, kind: Became) -> None:
        """One more event became this."""
        setattr(self, kind, getattr(self, kind) + 1)

    def count_batch(self, trigger: str, n_train: int, n_held_out: int, n_repeated: int) -> None:
        """One more batch."""
        self.batches[trigger] += 1
        self.sealed += n_train + n_held_out
        self.trained += n_train
        self.held_out += n_held_out
        self.repeated += n_repeated


@dataclass(frozen=True)
class Comparison:
    """What did happen, beside what would have."""

    recorded: Totals = field(default_factory=Totals)
    simulated: Totals = field(default_factory=Totals)


@dataclass(frozen=True)
class Series:
    """Counts by stretches of time: of events by arrival, of batches by sealing."""

    counts: Mapping[str, list[int]]
    """By what became of events, and `batches`."""
    spent: list[Decimal]


@dataclass(frozen=True)
class SeriesPair:
    """Both sides over time."""

    step_seconds: int
    starts: Sequence[datetime]
    recorded: Series
    simulated: Series


@dataclass(frozen=True)
class Change:
    """So many events became one thing, and would have become another."""

    recorded: Became
    simulated: Became
    events: int


@dataclass(frozen=True)
class Difference:
    """An event on which the control disagrees with the record."""

    id: int
    recorded: EventState
    replayed: EventState


@dataclass(frozen=True)
class Control:
    """How many recorded verdicts the settings of today give again."""

    verdicts: int
    reproduced: int
    differences: Sequence[Difference]
    """The first of the others."""


@dataclass(frozen=True)
class Report:
    """What a simulation found."""

    since: datetime
    until: datetime
    arrived: int
    """Events that arrived in this time; the others had arrived before, and waited."""
    carried: int
    feedback: int
    control: Control
    total: Comparison
    lines: Mapping[str, Comparison]
    changes: Sequence[Change]
    series: SeriesPair
    currency: str
    waits_for_money: int
    """Runs of the simulation that did not fit below a cap at first, or at all."""
    notes: Sequence[str]
    """What was assumed, and what no simulation knows."""


def simulate(
    recorded: Iterable[Recorded],
    past: Past,
    simulated: Configuration,
    today: Configuration,
    *,
    since: datetime,
    until: datetime,
    run_seconds: float = ASSUMED_RUN_SECONDS,
    ended: Callable[[int, EventState], None] = lambda event, state: None,
) -> Report:
    """Replay a record, in the order of its times, under `simulated` instead of `today`.

    `since` < `until` are the ends of the record. `run_seconds` is how long a run lasts in a
    line that has none on record. Memory grows with the events that wait at one time, not with
    the record. `ended` is told of each event, and in which state it ends in the simulation.
    """
    replay = _Replay(past, simulated, today, since, until, run_seconds, ended)
    for one in recorded:
        replay.take(one)
    return replay.finish()


class _Replay:
    def __init__(
        self,
        past: Past,
        simulated: Configuration,
        today: Configuration,
        since: datetime,
        until: datetime,
        run_seconds: float,
        ended: Callable[[int, EventState], None],
    ) -> None:
        self._past = past
        self._ended = ended
        self._configuration = simulated
        self._policy, self._today = simulated.policy, today.policy
        self._hold = simulated.policy.hold // timedelta(microseconds=1)
        self._run_seconds = run_seconds
        self._books = Books(simulated.budget, list(past.spent))
        self._since, self._until = microseconds(since), microseconds(until)
        self._now = self._since
        self._lines: dict[str, SimulatedLine] = {}
        self._line_of: dict[str, SimulatedLine] = {}

        self._fates: dict[int, Fate] = {}
        """Those that may still move, in the simulation or in the control."""
        self._newest = 0
        self._early: dict[int, list[Said]] = {}
        """Feedback whose output is still to come."""
        self._said: dict[int, list[Said]] = {}
        """Feedback that came together, by its output: it is taken into account at once."""
        self._said_at: int | None = None
        self._held: deque[Fate] = deque()
        self._closing: list[tuple[int, int]] = []
        """When the record closes an event, and which."""

        self._dirty: dict[str, SimulatedLine] = {}
        self._look_at = NEVER
        self._looked_at = 0
        self._next = NEVER

        self._taken = self._arrived = self._carried = self._feedback = 0
        self._total = Comparison()
        self._by_line: dict[str, Comparison] = {}
        self._changes: Counter[tuple[Became, Became]] = Counter()
        self._reproduced = self._verdicts = 0
        self._differences: list[Difference] = []
        self._step = _step_seconds(self._until - self._since) * SECOND
        stretches = max(1, -(-(self._until - self._since) // self._step))
        self._recorded_series, self._simulated_series = (_empty(stretches) for _ in range(2))
        self._steps: Mapping[type, Callable[[Any], None]] = {
            Output: self._arrive,
            Said: self._hear,
            Ruled: self._rule,
            Batched: self._note_batch,
        }
        for name in past.lines:
            self._line(name)
        self._plan()

    def take(self, one: Recorded) -> None:
        """What was recorded next."""
        if self._said_at not in (None, one.at) or (self._said and not isinstance(one, Said)):
            self._join()
        if one.at > self._next:
            self._advance(one.at)
        self._now = max(self._now, one.at)
        self._steps[type(one)](one)
        self._taken += 1
        if not self._taken % FORGET_EVERY:
            self._forget()

    def finish(self) -> Report:
        """Nothing else was recorded."""
        self._join()
        self._advance(self._until)
        self._now = max(self._now, self._until)
        for event in self._fates.values():
            if event.is_open:
                self._close(event)
            self._check(event)
        step = self._step // SECOND
        starts = [
            time_of(self._since + at * self._step) for at in range(len(self._recorded_series.spent))
        ]
        return Report(
            since=time_of(self._since),
            until=time_of(self._until),
            arrived=self._arrived,
            carried=self._carried,
            feedback=self._feedback,
            control=Control(self._verdicts, self._reproduced, self._differences),
            total=self._total,
            lines=dict(sorted(self._by_line.items())),
            changes=[Change(*pair, n) for pair, n in sorted(self._changes.items())],
            series=SeriesPair(step, starts, self._recorded_series, self._simulated_series),
            currency=self._configuration.budget.currency,
            waits_for_money=sum(line.waited_for_money for line in self._lines.values()),
            notes=self._notes(),
        )

    # --- what was recorded -------------------------------------------------------------

    def _arrive(self, output: Output) -> None:
        event = Fate()
        event.id, event.line = output.id, self._owner(output.task_type)
        event.stated, event.confidence = output.stated, output.confidence
        event.findings, event.stopped = output.findings, output.stopped
        event.recorded, event.closed_at = output.state, output.closed_at
        event.stretch = None if output.carried is not None else self._stretch(output.at)
        event.since, event.is_open = output.at, True
        event.people = event.control_people = ()
        self._newest = max(self._newest, output.id)
        if output.carried is not None:
            self._carried += 1
            state, event.since, event.by_human, event.people = output.carried
            event.state, event.control = state, state
            event.control_by_human, event.control_people = event.by_human, event.people
        else:
            self._arrived += 1
            evidence = Evidence(event.stated, event.confidence)
            verdict = judge(evidence, event.findings, self._policy)
            event.state, _, event.by_human = verdict
            if self._policy != self._today or event.findings != event.stopped:
                verdict = judge(evidence, event.stopped, self._today)
            event.control, _, event.control_by_human = verdict
        event.held_since = event.since
        kind = became(event.recorded)
        for side in self._recorded_sides(event.line.name):
            side.count(kind)
        if event.stretch is not None:
            self._recorded_series.counts[kind][event.stretch] += 1
        self._fates[event.id] = event
        if event.recorded in _FINAL:
            heapq.heappush(self._closing, (event.closed_at, event.id))
        self._entered(event)
        if early := self._early.pop(event.id, None):
            self._apply(event, early)

    def _hear(self, said: Said) -> None:
        self._feedback += 1
        if said.output in self._fates:
            self._said.setdefault(said.output, []).append(said)
            self._said_at = said.at
        elif said.output > self._newest:
            self._early.setdefault(said.output, []).append(said)

    def _rule(self, ruled: Ruled) -> None:
        event = self._fates.get(ruled.output)
        if event is None:
            return
        state = EventState.QUEUED if ruled.approved else EventState.REJECTED
        verdict = Verdict(state, "by hand", by_human=True)
        if confirms(event.control, event.control_by_human, verdict):
            event.control_by_human = True
        elif (moved := rejudge_by_hand(event.control, verdict)) is not None:
            event.control, event.control_by_human = moved, True
        if event.is_open:
            self._move(event, verdict, rejudge_by_hand(event.state, verdict))

    def _note_batch(self, batch: Batched) -> None:
        line = self._line(batch.line)
        counts = (batch.trigger, batch.n_train, batch.n_held_out, batch.n_repeated)
        for side in self._recorded_sides(batch.line):
            side.count_batch(*counts)
            side.launched += batch.launched
            side.spent += batch.spent
        stretch = self._stretch(batch.at)
        self._recorded_series.counts["batches"][stretch] += 1
        self._recorded_series.spent[stretch] += batch.spent
        if batch.trigger is Trigger.IMPORT:
            # A file is as large as it is, whatever the settings: it happens again.
            for side in self._simulated_sides(batch.line):
                side.count_batch(*counts)
                side.launched += batch.launched
                side.spent += batch.spent
            self._simulated_series.counts["batches"][stretch] += 1
            self._simulated_series.spent[stretch] += batch.spent
            line.occupy(self._now, batch.seconds)
        elif batch.trigger is Trigger.FLUSH:
            self._sealed(line, line.flush(self._now))
        self._plan()

    # --- what follows ------------------------------------------------------------------

    def _join(self) -> None:
        """Feedback that came together meets its outputs."""
        for output, said in self._said.items():
            if (event := self._fates.get(output)) is not None:
                self._apply(event, said)
        self._said.clear()
        self._said_at = None

    def _apply(self, event: Fate, said: Sequence[Said]) -> None:
        in_time = [one for one in said if not one.late]
        if in_time:
            event.control_people = _with(event.control_people, in_time)
            if event.control_people:
                verdict = _again(event, event.control_people, event.stopped, self._today)
                if confirms(event.control, event.control_by_human, verdict):
                    event.control_by_human = True
                elif (moved := rejudge(event.control, verdict)) is not None:
                    event.control, event.control_by_human = moved, verdict.by_human
        if not event.is_open:
            return  # as feedback that is late
        event.people = _with(event.people, said)
        if event.people:
            verdict = _again(event, event.people, event.findings, self._policy)
            self._move(event, verdict, rejudge(event.state, verdict))

    def _move(self, event: Fate, verdict: Verdict, moved: EventState | None) -> None:
        if confirms(event.state, event.by_human, verdict):
            event.by_human = True
        elif moved is not None:
            if event.state is EventState.QUEUED:
                event.line.withdraw()
            event.state, event.by_human, event.since = moved, verdict.by_human, self._now
            self._entered(event)

    def _entered(self, event: Fate) -> None:
        """An event is in a state that it was not in before."""
        if event.state is EventState.QUEUED:
            event.line.add(event)
            self._dirty[event.line.name] = event.line
            if self._look_at == NEVER:
                self._look_at = max(self._now, self._looked_at + PAUSE)
                self._next = min(self._next, self._look_at)
        elif event.state is EventState.HELD:
            self._held.append(event)
            self._next = min(self._next, event.since + self._hold + 1)
        elif event.state in _FINAL:
            self._close(event)

    def _advance(self, to: int) -> None:
        """Let happen what happens by itself before a time."""
        while self._next < to:
            self._now = max(self._now, self._next)
            self._expire()
            due = [line for line in self._lines.values() if line.next_at() <= self._now]
            if self._look_at <= self._now:
                due += [line for line in self._dirty.values() if line not in due]
                self._dirty.clear()
                self._look_at, self._looked_at = NEVER, self._now
            for line in due:
                self._sealed(line, line.turn(self._now))
            self._plan()

    def _plan(self) -> None:
        """When something happens by itself next."""
        soonest = min((line.next_at() for line in self._lines.values()), default=NEVER)
        if self._held:
            soonest = min(soonest, self._held[0].since + self._hold + 1)
        self._next = max(self._now + 1, min(soonest, self._look_at))

    def _expire(self) -> None:
        while self._held:
            oldest = self._held[0]
            if oldest.state is EventState.HELD:
                if oldest.since + self._hold >= self._now:
                    return
                oldest.state = EventState.EXPIRED
                self._close(oldest)
            self._held.popleft()

    def _sealed(self, line: SimulatedLine, batch: SimulatedBatch | None) -> None:
        sides = self._simulated_sides(line.name)
        for at, cost in line.launched:
            for side in sides:
                side.launched += 1
                side.spent += cost
            self._simulated_series.spent[self._stretch(at)] += cost
        line.launched.clear()
        if batch is None:
            return
        for side in sides:
            side.count_batch(batch.trigger, batch.n_train, batch.n_held_out, batch.n_repeated)
        self._simulated_series.counts["batches"][self._stretch(self._now)] += 1
        for event in batch.events:
            self._close(event)
        if line.waiting:
            self._dirty[line.name] = line
            self._look_at = min(self._look_at, self._now + PAUSE)

    def _close(self, event: Fate) -> None:
        """Nothing moves an event any more in the simulation."""
        event.is_open = False
        self._ended(event.id, event.state)
        kind, recorded = became(event.state), became(event.recorded)
        for side in self._simulated_sides(event.line.name):
            side.count(kind)
        if event.stretch is not None:
            self._simulated_series.counts[kind][event.stretch] += 1
        if kind is not recorded:
            self._changes[recorded, kind] += 1

    def _forget(self) -> None:
        """Let go of what is closed by the record; what is open in the simulation stays."""
        while self._closing and self._closing[0][0] < self._now - FORGET_AFTER:
            _, event_id = self._closing[0]
            heapq.heappop(self._closing)
            event = self._fates[event_id]
            if event.is_open:
                heapq.heappush(self._closing, (self._now + self._hold, event_id))
            else:
                del self._fates[event_id]
                self._check(event)

    def _check(self, event: Fate) -> None:
        """Whether the control ends where the record does."""
        self._verdicts += 1
        if _agree(event, self._today.hold):
            self._reproduced += 1
        elif len(self._differences) < MOST_DIFFERENCES:
            self._differences.append(Difference(event.id, event.recorded, event.control))

    # --- books -------------------------------------------------------------------------

    def _owner(self, task_type: str) -> SimulatedLine:
        found = self._line_of.get(task_type)
        if found is None:
            line = self._configuration.lines.owner(task_type)
            found = self._line(task_type if line is None else line.name)
            self._line_of[task_type] = found
        return found

    def _line(self, name: str) -> SimulatedLine:
        if name not in self._lines:
            self._lines[name] = SimulatedLine(
                name,
                self._configuration.lines.get(name),
                self._configuration,
                self._past.lines.get(name, LinePast()),
                self._books,
                self._run_seconds,
            )
        return self._lines[name]

    def _recorded_sides(self, line: str) -> tuple[Totals, Totals]:
        return self._total.recorded, self._comparison(line).recorded

    def _simulated_sides(self, line: str) -> tuple[Totals, Totals]:
        return self._total.simulated, self._comparison(line).simulated

    def _comparison(self, line: str) -> Comparison:
        found = self._by_line.get(line)
        if found is None:
            found = self._by_line[line] = Comparison()
        return found

    def _stretch(self, at: int) -> int:
        place = (at - self._since) // self._step
        return max(0, min(place, len(self._recorded_series.spent) - 1))

    def _notes(self) -> list[str]:
        launched = {name for name, one in self._by_line.items() if one.simulated.launched}
        unknown = [name for name in sorted(launched) if not self._past_of(name).runs]
        unpriced = [name for name in sorted(launched) if self._lines[name].price is None]
        guessed = [
            name
            for name in sorted(launched - set(unpriced))
            if self._past_of(name).tokens_a_row is None
            and (price := self._lines[name].price) is not None
            and price.per_million_tokens
        ]
        notes = [
            "how good the versions of the simulated runs would have been, nobody knows: a run lasts"
            " as long, and ends as, the run of its line that was sealed nearest in time did"
        ]
        if waits := sum(line.waited_for_money for line in self._lines.values()):
            notes.append(f"{waits:,} of the simulated runs would have waited for money")
        if unknown:
            notes.append(
                f"no run is on record of {', '.join(unknown)}: each is taken to last"
                f" {self._run_seconds:g} s, and batch sizes do not adapt"
            )
        if unpriced:
            notes.append(
                f"no price is set for {', '.join(unpriced)}: what those runs would have cost is not"
                " known, and counts as nothing (money.prices)"
            )
        if guessed:
            notes.append(
                f"how many tokens a row has is not on record for {', '.join(guessed)}:"
                f" {ASSUMED_TOKENS_A_ROW:,.0f} are assumed, all epochs together"
            )
        return notes

    def _past_of(self, line: str) -> LinePast:
        return self._past.lines.get(line, LinePast())


def _again(
    event: Fate, people: tuple[bool, ...], findings: Sequence[str], policy: Policy
) -> Verdict:
    return judge(Evidence(event.stated, event.confidence, people), findings, policy)


def _with(people: tuple[bool, ...], said: Sequence[Said]) -> tuple[bool, ...]:
    for one in said:
        if one.approved is not None and one.approved not in people:
            people = (*people, one.approved)
    return people


def _agree(event: Fate, hold: timedelta) -> bool:
    """Whether a control ends where the record does; when a clock had its say is no matter."""
    control, recorded = became(event.control), became(event.recorded)
    if control is Became.HELD and recorded is Became.EXPIRED:
        return event.closed_at - event.held_since >= hold // timedelta(microseconds=1)
    return control is recorded


def _step_seconds(microseconds_: int) -> int:
    seconds = microseconds_ / SECOND
    return next((step for step in STEPS if seconds <= step * MOST_STRETCHES), STEPS[-1])


def _empty(stretches: int) -> Series:
    names = [*Became, "batches"]
    return Series({name: [0] * stretches for name in names}, [Decimal(0)] * stretches)
