"""What was recorded in a stretch of time, as learning/simulation.py replays it.

Read in pages by key, each in a transaction of its own, columns only: an event's text is read
where a setting that is changed makes its validators count that did not count before. Ids and
times of arrival grow together, up to the clocks of several daemons, so that the ends of the
stretch are found by halving. A state that was reached after the stretch is taken back.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Table,
    cast,
    func,
    select,
    type_coerce,
)

from daemon.store.batch_sizes import HISTORY as BATCH_SIZE_HISTORY
from daemon.store.dialect import CHUNK
from daemon.store.intake import IMPORT as IMPORTED
from daemon.store.intake import INTAKE
from daemon.store.tables import (
    Amount,
    batch_members,
    batch_sizes,
    batches,
    evaluation_examples,
    evaluations,
    events,
    feedback,
    is_one_of,
    replay_memory,
    runs,
    setting_changes,
    spending,
    transitions,
    versions,
)
from learning import gate
from learning.batching import Trigger
from learning.budget import Period
from learning.clock import microseconds
from learning.events import OutputEvent
from learning.lifecycle import LEARNED_ROLES, PRIMARY_ROLES, EventState, FeedbackState, Role
from learning.lines import ModelLine
from learning.policy import Evidence, judge
from learning.simulated_line import NEVER, Configuration, LinePast, PastRun
from learning.simulation import Batched, Carried, Output, Past, Recorded, Ruled, Said, Stretch

T = TypeVar("T")

PAGE: Final = 5_000
RUNS_KNOWN: Final = 200
"""Of so many of a line's newest runs before the stretch it is known how long they took."""
_AUTOMATIC: Final = (INTAKE, "clock")
"""Who moves events without an operator's word; what they do, the simulation does by itself."""
_STOPPED: Final = ("a validator stopped it",)
_FINAL: Final = frozenset(
    {EventState.SEALED, EventState.REJECTED, EventState.EXPIRED, EventState.WITHDRAWN}
)
_OPEN: Final = (EventState.QUEUED, EventState.HELD, EventState.QUARANTINED)


class Reads(Protocol):
    """Runs a query in a short transaction that only reads."""

    def __call__(self, query: Callable[[Connection], T], /) -> T: ...


class Examiner:
    """What validators have against an output, as far as the simulation has to ask them.

    `today` and `simulated` are asked with an output, and answer with their complaints.
    """

    def __init__(
        self,
        configuration: Configuration,
        base: Configuration,
        today: Callable[[OutputEvent], Sequence[str]],
        simulated: Callable[[OutputEvent], Sequence[str]] | None = None,
    ) -> None:
        """`simulated` is given where validators are set otherwise in the simulation."""
        self._policy = configuration.policy
        self._waits_longer = configuration.policy.hold > base.policy.hold
        self._today = today
        self._simulated = simulated

    def wants(self, output: Output, known: bool) -> bool:
        """Whether the text has to be read; `known`: the record says whether it was stopped."""
        if output.stated is False:
            return False
        if self._simulated is not None:
            return True
        if known:
            return False
        if output.state is EventState.EXPIRED and self._waits_longer:
            return True
        verdict = judge(Evidence(output.stated, output.confidence), (), self._policy)
        return verdict.state is EventState.QUEUED

    def examined(self, output: Output, known: bool, payload: str) -> Output:
        """The output with what validators have against it, then and in the simulation."""
        event = OutputEvent.model_validate_json(payload)
        said = tuple(self._today(event))
        stopped = output.stopped if known else said
        if self._simulated is None:
            return output._replace(stopped=stopped, findings=stopped)
        anew = tuple(self._simulated(event))
        # What stopped it beside the validators of today stops it again.
        others = stopped if not said else ()
        return output._replace(stopped=stopped, findings=anew or others)


@dataclass
class _Range:
    """Ids of a table's rows, from the first to before the last."""

    first: int
    end: int


@dataclass
class Record:
    """The record of one stretch; read once, from its beginning to its end."""

    read: Reads
    stretch: Stretch
    examiner: Examiner
    lines: Sequence[ModelLine]
    _released: set[int] = field(default_factory=set)
    """Events that an operator let pass, which a validator had stopped."""

    def __post_init__(self) -> None:
        # Before the first event nothing was recorded.
        first = self.read(_first_arrival)
        if first is not None and self.stretch.since < first < self.stretch.until:
            self.stretch = replace(self.stretch, since=first)
        self._since = microseconds(self.stretch.since)
        self._until = microseconds(self.stretch.until)
        self._events = self._range(events, events.c.received_at)
        self._feedback = self._range(feedback, feedback.c.received_at)
        self._moves = self._range(transitions, transitions.c.at)

    @property
    def size(self) -> int:
        """Outputs and feedback in the stretch, at most."""
        return sum(one.end - one.first for one in (self._events, self._feedback))

    def setting_changes(self) -> int:
        """How often settings were changed in this time."""
        changed = select(func.count(setting_changes.c.revision.distinct())).where(
            setting_changes.c.at >= self.stretch.since, setting_changes.c.at < self.stretch.until
        )
        return self.read(lambda tx: tx.execute(changed).scalar_one())

    def past(self, currency: str) -> Past:
        """What was there before, and the runs."""
        return self.read(lambda tx: _past(tx, self.stretch, self.lines, currency))

    def replayed(self, currency: str) -> Iterator[Recorded]:
        """Everything in the order of its time."""
        rulings = list(self._rulings())
        sealed = self.read(lambda tx: _batches(tx, self.stretch, self.lines, currency))
        return heapq.merge(
            self._carried_in(),
            self._said_before(),
            self._outputs(),
            self._said(),
            rulings,
            sealed,
            key=itemgetter(0),
        )

    # --- events ------------------------------------------------------------------------

    def _outputs(self) -> Iterator[Recorded]:
        key = self._events.first
        while key < self._events.end:
            rows = self.read(lambda tx, key=key: tx.execute(self._event_page(key)).all())  # type: ignore[misc]
            if not rows:
                return
            key = rows[-1].id + 1
            yield from self._completed([self._output(row) for row in rows])

    def _event_page(self, key: int) -> Any:
        return (
            select(*_EVENT_COLUMNS)
            .where(
                events.c.id >= key,
                events.c.id < self._events.end,
                events.c.source != IMPORTED,
                events.c.state != EventState.FORGOTTEN,
                *_of_types(events, self.stretch),
            )
            .order_by(events.c.id)
            .limit(PAGE)
        )

    def _output(self, row: Row[Any]) -> Output:
        stopped = row.state == EventState.QUARANTINED or row.id in self._released
        reasons = _STOPPED if stopped else ()
        return Output(
            row.received_at,
            row.id,
            row.task_type,
            row.approved,
            row.confidence,
            EventState(row.state),
            row.state_since,
            reasons,
            reasons,
        )

    def _completed(self, outputs: list[Output]) -> Iterator[Output]:
        """A page of outputs, with what their rows alone do not say."""
        moved = [
            one.id
            for one in outputs
            if one.closed_at > self._until
            or (one.state is EventState.REJECTED and one.stated is not False)
        ]
        moves = self._moves_of(moved)
        known: dict[int, bool] = {}
        found: list[Output] = []
        for output in outputs:
            one = output
            steps = moves.get(one.id, ())
            if any(step.from_state == EventState.QUARANTINED for step in steps):
                one = one._replace(stopped=_STOPPED, findings=_STOPPED)
            if one.closed_at > self._until:
                one = one._replace(state=_state_at(self._until, one, steps))
            if one.state not in _FINAL:
                one = one._replace(closed_at=NEVER)
            known[one.id] = bool(one.stopped) or became_accepted(one.state)
            found.append(one)
        wanted = [one.id for one in found if self.examiner.wants(one, known[one.id])]
        payloads = self._payloads(wanted)
        for one in found:
            text = payloads.get(one.id)
            yield one if text is None else self.examiner.examined(one, known[one.id], text)

    def _payloads(self, ids: Sequence[int]) -> dict[int, str]:
        return {
            row.id: row.payload
            for chunk in _chunks(ids)
            for row in self.read(
                lambda tx, chunk=chunk: tx.execute(  # type: ignore[misc]
                    select(events.c.id, events.c.payload).where(events.c.id.in_(chunk))
                ).all()
            )
        }

    def _moves_of(self, ids: Sequence[int]) -> dict[int, list[Row[Any]]]:
        """The history of some events, oldest first."""
        moves: defaultdict[int, list[Row[Any]]] = defaultdict(list)
        for chunk in _chunks(ids):
            query = (
                select(transitions.c.ref, transitions.c.from_state, transitions.c.to_state, _AT)
                .where(transitions.c.kind == "event", transitions.c.ref.in_(map(str, chunk)))
                .order_by(transitions.c.id)
            )
            for row in self.read(lambda tx, query=query: tx.execute(query).all()):  # type: ignore[misc]
                moves[int(row.ref)].append(row)
        return moves

    # --- what waited before ------------------------------------------------------------

    def _carried_in(self) -> Iterator[Recorded]:
        """Events that had arrived before, and were open when the stretch begins."""
        ids = sorted(self.read(self._ids_carried))
        for chunk in _chunks(ids):
            query = (
                select(*_EVENT_COLUMNS)
                .where(
                    events.c.id.in_(chunk),
                    events.c.source != IMPORTED,
                    events.c.state != EventState.FORGOTTEN,
                    *_of_types(events, self.stretch),
                )
                .order_by(events.c.id)
            )
            rows = self.read(lambda tx, query=query: tx.execute(query).all())  # type: ignore[misc]
            moves = self._moves_of(chunk)
            people = self._people_before(chunk)
            arrived = {row.id: row for row in rows}
            for output in self._completed([self._output(row) for row in rows]):
                row = arrived[output.id]
                steps = moves.get(output.id, ())
                state, since = _standing(self._since, row, steps)
                if state in _OPEN:
                    carried = Carried(state, since, row.by_human, people.get(row.id, ()))
                    yield output._replace(at=self._since, carried=carried)

    def _ids_carried(self, tx: Connection) -> set[int]:
        first = self._events.first
        sealed = (
            select(batch_members.c.event_id)
            .join(batches, batches.c.id == batch_members.c.batch_id)
            .where(
                batches.c.sealed_at >= self.stretch.since,
                batches.c.trigger != Trigger.IMPORT,
                batch_members.c.role.in_(PRIMARY_ROLES),
                batch_members.c.event_id < first,
            )
        )
        ref = cast(transitions.c.ref, BigInteger)
        moved = select(ref).where(
            transitions.c.kind == "event", transitions.c.id >= self._moves.first, ref < first
        )
        found = {*tx.execute(sealed).scalars(), *tx.execute(moved).scalars()}
        for state in _OPEN:
            still = select(events.c.id).where(is_one_of(events.c.state, state), events.c.id < first)
            found.update(tx.execute(still).scalars())
        return found

    def _people_before(self, ids: Sequence[int]) -> dict[int, tuple[bool, ...]]:
        query = (
            select(feedback.c.output_id, feedback.c.approved)
            .distinct()
            .where(
                feedback.c.output_id.in_(ids),
                feedback.c.approved.is_not(None),
                feedback.c.received_at < self.stretch.since,
            )
        )
        people: dict[int, tuple[bool, ...]] = {}
        for row in self.read(lambda tx: tx.execute(query).all()):
            people[row.output_id] = (*people.get(row.output_id, ()), row.approved)
        return people

    # --- what was said -----------------------------------------------------------------

    def _said(self) -> Iterator[Recorded]:
        key = self._feedback.first
        while key < self._feedback.end:
            query = (
                select(
                    feedback.c.id,
                    feedback.c.output_id,
                    feedback.c.approved,
                    feedback.c.state,
                    type_coerce(feedback.c.received_at, BigInteger).label("received_at"),
                )
                .where(
                    feedback.c.id >= key,
                    feedback.c.id < self._feedback.end,
                    feedback.c.output_id.is_not(None),
                    *_of_types(feedback, self.stretch),
                )
                .order_by(feedback.c.id)
                .limit(PAGE)
            )
            rows = self.read(lambda tx, query=query: tx.execute(query).all())  # type: ignore[misc]
            if not rows:
                return
            key = rows[-1].id + 1
            for row in rows:
                late = row.state == FeedbackState.LATE
                yield Said(row.received_at, row.output_id, row.approved, late)

    def _said_before(self) -> Iterator[Recorded]:
        """Feedback that came before the stretch, and before its output, which is in it."""
        query = select(feedback.c.output_id, feedback.c.approved).where(
            feedback.c.output_id >= self._events.first,
            feedback.c.output_id < self._events.end,
            feedback.c.id < self._feedback.first,
            *_of_types(feedback, self.stretch),
        )
        for row in self.read(lambda tx: tx.execute(query).all()):
            yield Said(self._since, row.output_id, row.approved, late=False)

    def _rulings(self) -> Iterator[Recorded]:
        """Operators' verdicts; there are as many as people gave."""
        key = self._moves.first
        while key < self._moves.end:
            query = (
                select(
                    transitions.c.id,
                    transitions.c.ref,
                    transitions.c.from_state,
                    transitions.c.to_state,
                    _AT,
                )
                .where(
                    transitions.c.id >= key,
                    transitions.c.id < self._moves.end,
                    transitions.c.kind == "event",
                    transitions.c.actor.not_in(_AUTOMATIC),
                    transitions.c.from_state.in_(_OPEN),
                    transitions.c.to_state.in_(
                        [EventState.QUEUED, EventState.REJECTED, EventState.WITHDRAWN]
                    ),
                )
                .order_by(transitions.c.id)
                .limit(PAGE)
            )
            rows = self.read(lambda tx, query=query: tx.execute(query).all())  # type: ignore[misc]
            if not rows:
                return
            key = rows[-1].id + 1
            for row in rows:
                event = int(row.ref)
                if row.from_state == EventState.QUARANTINED:
                    self._released.add(event)
                yield Ruled(row.at, event, row.to_state == EventState.QUEUED)

    # --- inside ------------------------------------------------------------------------

    def _range(self, table: Table, time: ColumnElement[datetime]) -> _Range:
        return self.read(
            lambda tx: _Range(
                _first_at(tx, table, time, self._since), _first_at(tx, table, time, self._until)
            )
        )


_AT: Final = type_coerce(transitions.c.at, BigInteger).label("at")
_EVENT_COLUMNS: Final = (
    events.c.id,
    events.c.task_type,
    events.c.state,
    events.c.by_human,
    events.c.approved,
    events.c.confidence,
    type_coerce(events.c.state_since, BigInteger).label("state_since"),
    type_coerce(events.c.received_at, BigInteger).label("received_at"),
)


def became_accepted(state: EventState) -> bool:
    """Whether validators have let an event in this state pass."""
    return state in (EventState.QUEUED, EventState.SEALED, EventState.WITHDRAWN)


def _first_arrival(tx: Connection) -> datetime | None:
    oldest = select(events.c.received_at).order_by(events.c.id).limit(1)
    return tx.execute(oldest).scalar()


def _first_at(tx: Connection, table: Table, time: ColumnElement[datetime], at: int) -> int:
    """The lowest id of a row that came at a time or later; one more than all when none did."""
    low, high = 1, (tx.execute(select(func.max(table.c.id))).scalar() or 0) + 1
    when = type_coerce(time, BigInteger)
    while low < high:
        middle = (low + high) // 2
        row = tx.execute(
            select(table.c.id, when.label("at"))
            .where(table.c.id >= middle)
            .order_by(table.c.id)
            .limit(1)
        ).first()
        if row is None or row.at >= at:
            high = middle
        else:
            low = row.id + 1
    return low


def _of_types(table: Table, stretch: Stretch) -> list[ColumnElement[bool]]:
    if stretch.task_types is None:
        return []
    return [table.c.task_type.in_(sorted(stretch.task_types))]


def _state_at(at: int, output: Output, steps: Sequence[Row[Any]]) -> EventState:
    """The state of an event at a time before its last move."""
    for step in steps:
        if step.at > at:
            return EventState(step.from_state)
    return EventState.QUEUED if output.state is EventState.SEALED else output.state


def _standing(at: int, row: Row[Any], steps: Sequence[Row[Any]]) -> tuple[EventState, int]:
    """The state of an event at a time after its arrival, and since when it was in it."""
    state, since = EventState(row.state), row.received_at
    if state is EventState.SEALED and row.state_since >= at:
        state = EventState.QUEUED
    if steps:
        state = EventState(steps[0].from_state)
    for step in steps:
        if step.at >= at:
            break
        state, since = EventState(step.to_state), step.at
    else:
        if row.state == EventState.SEALED and row.state_since < at:
            return EventState.SEALED, row.state_since
    return state, since


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


# --- batches, runs and money ------------------------------------------------------------


def _batches(
    tx: Connection, stretch: Stretch, lines: Sequence[ModelLine], currency: str
) -> list[Recorded]:
    """The batches that were sealed in the stretch, oldest first."""
    names = _names(stretch, lines)
    query = (
        select(
            batches.c.id,
            batches.c.line,
            batches.c.trigger,
            type_coerce(batches.c.sealed_at, BigInteger).label("sealed_at"),
            runs.c.id.label("run_id"),
            runs.c.launched_at,
            type_coerce(runs.c.finished_at, BigInteger).label("finished_at"),
        )
        .outerjoin(runs, runs.c.batch_id == batches.c.id)
        .where(batches.c.sealed_at >= stretch.since, batches.c.sealed_at < stretch.until)
        .order_by(batches.c.sealed_at, batches.c.id)
    )
    rows = [row for row in tx.execute(query) if names is None or row.line in names]
    counts = _members(tx, [row.id for row in rows])
    spent = _spent(tx, [row.run_id for row in rows if row.run_id is not None], currency)
    until = microseconds(stretch.until)
    return [
        Batched(
            row.sealed_at,
            row.line,
            Trigger(row.trigger),
            counts[row.id, Role.TRAIN],
            counts[row.id, Role.HELD_OUT],
            counts[row.id, Role.REPLAY] + counts[row.id, Role.CROSS_TASK],
            0.0 if row.run_id is None else _seconds(row, until),
            row.launched_at is not None and row.launched_at < stretch.until,
            spent.get(row.run_id, Decimal(0)),
        )
        for row in rows
    ]


def _names(stretch: Stretch, lines: Sequence[ModelLine]) -> set[str] | None:
    """The lines that learn from the task types of a stretch; None is all."""
    if stretch.task_types is None:
        return None
    return {line.name for line in lines if line.task_types & stretch.task_types}


def _seconds(row: Row[Any], until: int) -> float:
    ended = until if row.finished_at is None else min(row.finished_at, until)
    return float(max(0, ended - row.sealed_at) / 1e6)


def _members(tx: Connection, batch_ids: Sequence[str]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for start in range(0, len(batch_ids), CHUNK):
        query = (
            select(batch_members.c.batch_id, batch_members.c.role, func.count().label("n"))
            .where(batch_members.c.batch_id.in_(batch_ids[start : start + CHUNK]))
            .group_by(batch_members.c.batch_id, batch_members.c.role)
        )
        for row in tx.execute(query):
            counts[row.batch_id, row.role] = row.n
    return counts


def _spent(tx: Connection, run_ids: Sequence[str], currency: str) -> dict[str, Decimal]:
    amount = func.coalesce(func.sum(func.coalesce(spending.c.actual, spending.c.reserved)), 0)
    found: dict[str, Decimal] = {}
    for start in range(0, len(run_ids), CHUNK):
        query = (
            select(spending.c.run_id, type_coerce(amount, Amount).label("amount"))
            .where(
                spending.c.run_id.in_(run_ids[start : start + CHUNK]),
                spending.c.currency == currency,
            )
            .group_by(spending.c.run_id)
        )
        found |= {row.run_id: row.amount for row in tx.execute(query)}
    return found


def _past(tx: Connection, stretch: Stretch, lines: Sequence[ModelLine], currency: str) -> Past:
    known = {line.name: line for line in lines}
    names = {*known, *tx.execute(select(batches.c.line).distinct()).scalars()}
    wanted = _names(stretch, lines)
    since = microseconds(stretch.since)
    in_period = select(
        type_coerce(spending.c.reserved_at, BigInteger).label("at"),
        func.coalesce(spending.c.actual, spending.c.reserved).label("amount"),
    ).where(
        spending.c.currency == currency,
        spending.c.reserved_at >= Period.MONTH.start(stretch.since),
        spending.c.reserved_at < stretch.since,
    )
    spent = tx.execute(in_period.order_by(spending.c.reserved_at)).all()
    return Past(
        {
            name: _line_past(tx, name, known.get(name), stretch, since)
            for name in sorted(names)
            if wanted is None or name in wanted
        },
        [(row.at, Decimal(row.amount)) for row in spent],
    )


def _line_past(
    tx: Connection, name: str, line: ModelLine | None, stretch: Stretch, since: int
) -> LinePast:
    pinned = tx.execute(
        select(batch_sizes.c.size).where(batch_sizes.c.line == name, batch_sizes.c.pinned)
    ).scalar()
    last_size = tx.execute(
        select(transitions.c.to_state)
        .where(
            transitions.c.kind == BATCH_SIZE_HISTORY,
            transitions.c.ref == name,
            transitions.c.at < stretch.since,
        )
        .order_by(transitions.c.id.desc())
        .limit(1)
    ).scalar()
    task_types = sorted(line.task_types) if line is not None else [name]
    frozen = select(func.count()).where(
        evaluation_examples.c.task_type.in_(task_types),
        evaluation_examples.c.added_at < stretch.since,
    )
    remembered = select(func.count()).where(replay_memory.c.task_type.in_(task_types))
    found = _runs(tx, name, stretch)
    busy = [
        run.sealed_at + int(run.seconds * 1e6)
        for run in found
        if run.sealed_at < since < run.sealed_at + run.seconds * 1e6
    ]
    size = pinned if pinned is not None else last_size
    return LinePast(
        size=None if size is None else int(size),
        pinned=pinned is not None,
        frozen=tx.execute(frozen).scalar_one(),
        remembered=tx.execute(remembered).scalar_one(),
        busy_until=max(busy, default=0),
        tokens_a_row=_tokens_a_row(tx, name),
        runs=found,
    )


def _runs(tx: Connection, line: str, stretch: Stretch) -> list[PastRun]:
    """Those sealed in the stretch, and the newest before; in the order of their sealing."""
    report = (
        select(evaluations.c.report)
        .join(versions, versions.c.id == evaluations.c.version_id)
        .where(versions.c.run_id == runs.c.id)
        .order_by(evaluations.c.id)
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(
            runs.c.outcome,
            type_coerce(runs.c.finished_at, BigInteger).label("finished_at"),
            type_coerce(batches.c.sealed_at, BigInteger).label("sealed_at"),
            batches.c.trigger,
            report.label("report"),
        )
        .join(batches, batches.c.id == runs.c.batch_id)
        .where(runs.c.line == line)
    )
    within = query.where(
        runs.c.planned_at >= stretch.since, runs.c.planned_at < stretch.until
    ).order_by(runs.c.planned_at)
    before = (
        query.where(runs.c.planned_at < stretch.since)
        .order_by(runs.c.planned_at.desc())
        .limit(RUNS_KNOWN)
    )
    rows = [*reversed(tx.execute(before).all()), *tx.execute(within)]
    until = microseconds(stretch.until)
    return sorted(
        (
            PastRun(
                row.sealed_at,
                _seconds(row, until),
                Trigger(row.trigger),
                None if row.outcome is None else gate.Outcome(row.outcome),
                ((row.report or {}).get("overall") or {}).get("gain"),
            )
            for row in rows
        ),
        key=lambda run: run.sealed_at,
    )


def _tokens_a_row(tx: Connection, line: str) -> float | None:
    """Trained tokens of a row, all epochs together, in the line's newest runs with a price."""
    rows = tx.execute(
        select(
            func.coalesce(spending.c.trained_tokens, spending.c.tokens).label("tokens"),
            runs.c.batch_id,
        )
        .join(runs, runs.c.id == spending.c.run_id)
        .where(spending.c.line == line)
        .order_by(spending.c.reserved_at.desc())
        .limit(RUNS_KNOWN)
    ).all()
    counts = _members(tx, [row.batch_id for row in rows])
    n_rows = sum(counts[row.batch_id, role] for row in rows for role in LEARNED_ROLES)
    return sum(row.tokens for row in rows) / n_rows if n_rows else None
