"""Make arrivals durable: events, verdicts, feedback joins and the position, all or nothing.

Decides nothing: verdicts come with the events, and the judge that it is given is asked
again when feedback meets its output.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, select, update

from daemon.store.arrivals import (
    A,
    Arrivals,
    Inserted,
    PostgresArrivals,
    SqliteArrivals,
    TaskKey,
    by_task,
)
from daemon.store.bookkeeping import Move, Tally, record
from daemon.store.columns import Columns
from daemon.store.database import Database
from daemon.store.dialect import CHUNK, insert_new, take_turns
from daemon.store.tables import dead_letters, events, feedback, is_one_of, positions
from learning.clock import EPOCH, Clock, microseconds
from learning.errors import ConflictError, NotFoundError
from learning.events import FORGOTTEN_FEEDBACK, OutputEvent
from learning.facts import EventsStored
from learning.lifecycle import EventState, FeedbackState, require_event_move
from learning.policy import Verdict, confirms, rejudge
from learning.ports import (
    ID_REUSED,
    Block,
    DeadLetter,
    EventKind,
    JudgedOutput,
    Origin,
    Position,
    PositionFencedError,
    Receipt,
    ReceivedFeedback,
)

T = TypeVar("T")

INTAKE = "intake"
"""The actor of the moves that an arrival causes."""
IMPORT = "import"
"""The source of the rows of dataset files."""


class UnknownDeadLetterError(NotFoundError):
    """No dead letter has this id."""

    def __init__(self, dead_letter_id: int) -> None:
        super().__init__(f"no dead letter {dead_letter_id}; `learnd dead-letters list` shows them")
        self.dead_letter_id = dead_letter_id


class ReplayRefusedError(ConflictError):
    """A dead letter became an event, but one that the store cannot take."""

    def __init__(self, dead_letter_id: int, letter: DeadLetter) -> None:
        super().__init__(f"dead letter {dead_letter_id} is {letter.reason}: {letter.detail}")
        self.dead_letter_id, self.reason = dead_letter_id, letter.reason


@dataclass(frozen=True)
class Appended:
    """What became of a block of outputs of which the known ones were passed over."""

    stored: EventsStored
    rows: Sequence[Row[Any]]
    """The events that are new, locked and in the order of their ids."""
    reused: Sequence[DeadLetter]
    """Outputs that share an id with an earlier one of the block, and differ from it."""


class Judge(Protocol):
    """Gives the verdict on an output, with the approvals that people gave it."""

    def __call__(self, event: OutputEvent, people: tuple[bool, ...] = ()) -> Verdict: ...

    def complaints(self, event: OutputEvent) -> Sequence[str]:
        """What the validators have against an output, whatever people say of it."""
        ...


_row_id = attrgetter("id")
_place = attrgetter("claimed.topic", "claimed.partition")


def _tasks(arrivals: Columns[Any]) -> list[TaskKey]:
    return list(map(TaskKey, arrivals["task_type"], arrivals["task_id"]))


class Intake:
    """The store's front door; implements learning.ports.IntakeStore and Receipts."""

    def __init__(self, database: Database, judge: Judge, clock: Clock) -> None:
        self._database = database
        self._judge = judge
        self._clock = clock
        self._arrivals: Arrivals = SqliteArrivals() if database.is_sqlite else PostgresArrivals()

    async def claim(
        self, source: str, partitions: Collection[tuple[str, int]]
    ) -> Sequence[Position]:
        """See learning.ports.IntakeStore."""

        def transaction(tx: Connection) -> list[Position]:
            # In one order, so that two consumers cannot wait for each other.
            claimed = {key: self._claim(tx, source, *key) for key in sorted(partitions)}
            return [claimed[key] for key in partitions]

        return await self._database.write(transaction)

    async def rewind(self, source: str, claimed: Position, next_offset: int) -> Position:
        """See learning.ports.IntakeStore."""

        def transaction(tx: Connection) -> Position:
            self._move(tx, source, claimed, next_offset, None)
            return replace(claimed, next_offset=next_offset, fingerprint=None)

        return await self._database.write(transaction)

    async def append(self, *blocks: Block) -> EventsStored:
        """See learning.ports.IntakeStore."""
        return await self._database.write(
            lambda tx: self._append(tx, blocks)[0], committed=self._arrivals.committed
        )

    async def append_unknown(
        self, block: Block, turn: str, then: Callable[[Connection, Appended], T]
    ) -> T:
        """Store the outputs whose (producer, event_id) is new, and do what follows from it in
        the same transaction, which has a turn of `take_turns` from its beginning."""

        def transaction(tx: Connection) -> T:
            # Before any row is locked, as wherever else feedback is joined.
            joins = {f"join:{output.task_type}" for output in block.outputs}
            take_turns(tx, {turn, *joins})
            self._arrivals.begin(tx)
            keys = {(output.producer, output.event_id) for output in block.outputs}
            known = self._arrivals.rows_named(tx, events, keys)
            unknown = [
                output
                for output in block.outputs
                if (output.producer, output.event_id) not in known
            ]
            stored, letters = self._append(tx, [replace(block, outputs=unknown)])
            new = self._arrivals.rows_named(tx, events, keys - known.keys())
            return then(tx, Appended(stored, sorted(new.values(), key=_row_id), letters))

        return await self._database.write(transaction, committed=self._arrivals.committed)

    async def receipts(
        self, kind: EventKind, keys: Collection[tuple[str, str]]
    ) -> Mapping[tuple[str, str], Receipt]:
        """See learning.ports.Receipts."""

        def query(tx: Connection) -> dict[tuple[str, str], Receipt]:
            self._arrivals.begin(tx)
            table = events if kind is EventKind.OUTPUT else feedback
            return {
                key: Receipt(
                    row.id,
                    row.state,
                    row.reason if kind is EventKind.OUTPUT else "",
                    row.payload,
                    Origin(row.source, row.topic, row.partition, row.offset),
                )
                for key, row in self._arrivals.rows_named(tx, table, keys).items()
            }

        # Only the writer knows the names of the newest rows. It changes nothing.
        return await self._database.write(query)

    async def dead_letter(self, dead_letter_id: int) -> DeadLetter:
        """A stored dead letter. Raises UnknownDeadLetterError."""

        def query(tx: Connection) -> DeadLetter:
            row = tx.execute(
                select(dead_letters).where(dead_letters.c.id == dead_letter_id)
            ).first()
            if row is None:
                raise UnknownDeadLetterError(dead_letter_id)
            origin = Origin(row.source, row.topic, row.partition, row.offset)
            kind = EventKind(row.kind)
            return DeadLetter(kind, row.reason, row.detail, row.raw, origin, row.received_at)

        return await self._database.read(query)

    async def replay(self, dead_letter_id: int, block: Block) -> EventsStored:
        """Store what a dead letter became, and mark it as replayed, in one transaction.

        Raises UnknownDeadLetterError, and ReplayRefusedError when it would only become
        other dead letters; then nothing changed.
        """

        def transaction(tx: Connection) -> EventsStored:
            stored, letters = self._append(tx, [block])
            if len(letters) == len(block.outputs) + len(block.feedback) + len(block.dead_letters):
                raise ReplayRefusedError(dead_letter_id, letters[0])
            marked = tx.execute(
                update(dead_letters)
                .where(dead_letters.c.id == dead_letter_id)
                .values(replayed_at=self._clock())
            )
            if marked.rowcount != 1:
                raise UnknownDeadLetterError(dead_letter_id)
            return stored

        return await self._database.write(transaction, committed=self._arrivals.committed)

    def _claim(self, tx: Connection, source: str, topic: str, partition: int) -> Position:
        key = {"source": source, "topic": topic, "partition": partition}
        now = self._clock()
        tx.execute(insert_new(tx, positions), {**key, "epoch": 0, "updated_at": now})
        row = tx.execute(
            update(positions)
            .filter_by(**key)
            .values(epoch=positions.c.epoch + 1, updated_at=now)
            .returning(positions.c.epoch, positions.c.next_offset, positions.c.fingerprint)
        ).one()
        return Position(topic, partition, row.epoch, row.next_offset, row.fingerprint)

    def _move(
        self,
        tx: Connection,
        source: str,
        claimed: Position,
        next_offset: int,
        fingerprint: bytes | None,
    ) -> None:
        moved = tx.execute(
            _MOVE,
            {
                "in_source": source,
                "in_topic": claimed.topic,
                "in_partition": claimed.partition,
                "under_epoch": claimed.epoch,
                "from_offset": claimed.next_offset,
                "next_offset": next_offset,
                "fingerprint": fingerprint,
                "updated_at": self._clock(),
            },
        )
        if moved.rowcount != 1:
            raise PositionFencedError(claimed.topic, claimed.partition, claimed.epoch)

    def _append(
        self, tx: Connection, blocks: Sequence[Block]
    ) -> tuple[EventsStored, Sequence[DeadLetter]]:
        source = blocks[0].source
        # In one order, so that two consumers cannot wait for each other.
        for move in sorted((one.move for one in blocks if one.move is not None), key=_place):
            self._move(tx, source, move.claimed, move.next_offset, move.fingerprint)
        self._arrivals.begin(tx)
        outputs = self._arrivals.insert_outputs(
            tx, Columns.of(JudgedOutput, (block.outputs for block in blocks))
        )
        received = self._arrivals.insert_feedback(
            tx, Columns.of(ReceivedFeedback, (block.feedback for block in blocks))
        )
        reused = [*_reused(EventKind.OUTPUT, outputs), *_reused(EventKind.FEEDBACK, received)]
        letters = [*(one for block in blocks for one in block.dead_letters), *reused]
        new_letters = _insert_dead_letters(tx, letters)

        tally = Tally()
        groups: defaultdict[tuple[str, str, bool], list[float | None]] = defaultdict(list)
        for key, confidence in zip(
            zip(*(outputs.new[name] for name in ("task_type", "state", "by_human")), strict=True),
            outputs.new["confidence"],
            strict=True,
        ):
            groups[key].append(confidence)
        for (task_type, state, by_human), confidences in groups.items():
            if source == IMPORT:  # people chose a file's rows: they say nothing of the stream
                tally.add_all(EventKind.OUTPUT, task_type, state, confidences)
            else:
                tally.arrive(task_type, state, confidences, by_human=by_human)
        for task_type in received.new["task_type"]:
            tally.add(EventKind.FEEDBACK, task_type, FeedbackState.WAITING)
        # Of two transactions that store the two sides at once neither would see the other's.
        take_turns(tx, {f"join:{task_type}" for _, task_type, _ in tally.counts})
        met, rejudged = self._join(tx, (outputs.new, received.new), tally)
        for letter in new_letters:
            tally.add("dead_letter", letter.kind, letter.reason)
        tally.write(tx, self._clock())
        self._arrivals.finish(tx)
        stored = EventsStored(
            source=source,
            outputs=_by_state(groups),
            feedback=Counter(
                (task.task_type, met.get(task, FeedbackState.WAITING))
                for task in _tasks(received.new)
            ),
            rejudged=rejudged,
            dead_letters=Counter(letter.reason for letter in new_letters),
            duplicates=len(outputs.repeated)
            + len(received.repeated)
            - len(reused)
            + len(letters)
            - len(new_letters),
        )
        return stored, letters

    def _join(
        self, tx: Connection, arrived: Iterable[Columns[Any]], tally: Tally
    ) -> tuple[Mapping[TaskKey, FeedbackState], Mapping[tuple[str, EventState], int]]:
        """Bring feedback and outputs together, whichever of them came first.

        Returns what became of the feedback of each task that has an output, and how many
        outputs moved.
        """
        if tx.execute(_ANY_WAITING).first() is None:
            return {}, {}
        tasks = {task for columns in arrived for task in _tasks(columns)}
        waiting = _count_waiting_feedback(tx, tasks)
        outputs = self._arrivals.outputs_of(tx, waiting)
        met = {key: _met_by(output) for key, output in outputs.items()}
        _settle_feedback(tx, met, outputs)
        for key, state in met.items():
            n = waiting[key]
            tally.move(EventKind.FEEDBACK, key.task_type, FeedbackState.WAITING, state, times=n)

        rejudged: Counter[tuple[str, EventState]] = Counter()
        joined = {
            output.id: output
            for key, output in outputs.items()
            if output is not None and met[key] is FeedbackState.JOINED
        }
        gone = [one.id for one in outputs.values() if one and one.state == EventState.FORGOTTEN]
        if gone:
            forget_feedback(tx, feedback.c.output_id.in_(gone), self._clock())
        for output_id, people in people_on(tx, joined).items():
            output = joined[output_id]
            moved_to = self._judge_again(tx, output, people, tally)
            if moved_to is not None:
                rejudged[output.task_type, moved_to] += 1
        return met, rejudged

    def _judge_again(
        self, tx: Connection, output: Row[Any], people: tuple[bool, ...], tally: Tally
    ) -> EventState | None:
        verdict = self._judge(OutputEvent.model_validate_json(output.payload), people)
        current = EventState(output.state)
        if confirms(current, output.by_human, verdict):
            confirm_event(tx, output, verdict, INTAKE, self._clock(), tally)
            return None
        wanted = rejudge(current, verdict)
        if wanted is None:
            return None
        decided = Verdict(wanted, verdict.reason, verdict.by_human)
        move_event(tx, output, decided, INTAKE, self._clock(), tally)
        return wanted


def move_event(
    tx: Connection,
    row: Row[Any],
    verdict: Verdict,
    actor: str,
    now: datetime,
    tally: Tally,
    *,
    is_verdict: bool = True,
) -> None:
    """Give one stored event the state of a verdict, with its history row and its count.

    `is_verdict` is false where it only goes back to what was decided before. Raises
    IllegalMoveError when its lifecycle does not allow it.
    """
    require_event_move(EventState(row.state), verdict.state)
    tx.execute(
        update(events)
        .where(events.c.id == row.id)
        .values(
            state=verdict.state,
            state_since=now,
            reason=verdict.reason,
            by_human=verdict.by_human,
        )
    )
    record(tx, [Move("event", str(row.id), row.state, verdict.state, verdict.reason, actor)], now)
    tally.move(
        EventKind.OUTPUT,
        row.task_type,
        row.state,
        verdict.state,
        row.confidence,
        by_human=verdict.by_human,
        is_verdict=is_verdict,
    )


def confirm_event(
    tx: Connection, row: Row[Any], verdict: Verdict, actor: str, now: datetime, tally: Tally
) -> None:
    """Note that a person stands behind an event, which stays in the state that it is in."""
    tx.execute(
        update(events).where(events.c.id == row.id).values(reason=verdict.reason, by_human=True)
    )
    record(tx, [Move("event", str(row.id), row.state, row.state, verdict.reason, actor)], now)
    tally.confirm(row.task_type)


def _by_state(
    groups: Mapping[tuple[str, str, bool], Sequence[float | None]],
) -> Mapping[tuple[str, EventState], int]:
    counts: Counter[tuple[str, EventState]] = Counter()
    for (task_type, state, _), confidences in groups.items():
        counts[task_type, EventState(state)] += len(confidences)
    return counts


def forget_feedback(tx: Connection, which: ColumnElement[bool], now: datetime) -> int:
    """Take from some feedback what it says beside its verdict. Returns of how many."""
    forgotten = tx.execute(
        update(feedback)
        .where(which, feedback.c.payload != FORGOTTEN_FEEDBACK)
        .values(
            payload=FORGOTTEN_FEEDBACK,
            model_version=None,
            digested_at=func.coalesce(feedback.c.digested_at, microseconds(now)),
        )
    )
    return forgotten.rowcount


def _met_by(output: Row[Any] | None) -> FeedbackState:
    """What becomes of feedback, given its output; None: there are several."""
    if output is None:
        return FeedbackState.QUARANTINED
    if output.state in (EventState.SEALED, EventState.EXPIRED, EventState.FORGOTTEN):
        return FeedbackState.LATE
    return FeedbackState.JOINED


_IS_WAITING = is_one_of(feedback.c.state, FeedbackState.WAITING)

# Statements of every block: to put one together takes longer than to run it.
_ANY_WAITING = select(feedback.c.id).where(_IS_WAITING).limit(1)
_MOVE = (
    update(positions)
    .where(
        positions.c.source == bindparam("in_source"),
        positions.c.topic == bindparam("in_topic"),
        positions.c.partition == bindparam("in_partition"),
        positions.c.epoch == bindparam("under_epoch"),
        positions.c.next_offset.is_not_distinct_from(bindparam("from_offset")),
    )
    .values(
        next_offset=bindparam("next_offset"),
        fingerprint=bindparam("fingerprint"),
        updated_at=bindparam("updated_at"),
    )
)


def _settle_feedback(
    tx: Connection,
    met: Mapping[TaskKey, FeedbackState],
    outputs: Mapping[TaskKey, Row[Any] | None],
) -> None:
    """Give all feedback that waits for some tasks its state and its output."""
    if not met:
        return
    # By task, not by a list of ids: any number of feedback may wait for one.
    tx.execute(
        update(feedback)
        .where(
            _IS_WAITING,
            feedback.c.task_type == bindparam("of_type"),
            feedback.c.task_id == bindparam("of_task"),
        )
        .values(state=bindparam("met"), output_id=bindparam("met_output")),
        [
            {
                "of_type": key.task_type,
                "of_task": key.task_id,
                "met": state,
                "met_output": output.id if (output := outputs[key]) is not None else None,
            }
            for key, state in met.items()
        ],
    )


def people_on(tx: Connection, outputs: Collection[int]) -> dict[int, tuple[bool, ...]]:
    """The different verdicts that people gave on each of some outputs, without those without."""
    people: dict[int, tuple[bool, ...]] = {}
    wanted = sorted(outputs)
    for start in range(0, len(wanted), CHUNK):
        verdicts = (
            select(feedback.c.output_id, feedback.c.approved)
            .distinct()
            .where(
                feedback.c.output_id.in_(wanted[start : start + CHUNK]),
                feedback.c.approved.is_not(None),
            )
        )
        for row in tx.execute(verdicts):
            people[row.output_id] = (*people.get(row.output_id, ()), row.approved)
    return people


def _count_waiting_feedback(tx: Connection, keys: Collection[TaskKey]) -> dict[TaskKey, int]:
    """How many feedback wait for each of some tasks; those without any are left out."""
    counts = select(feedback.c.task_type, feedback.c.task_id, func.count().label("n"))
    return {
        TaskKey(row.task_type, row.task_id): row.n
        for row in by_task(tx, counts.where(_IS_WAITING), keys)
    }


def _reused(kind: EventKind, inserted: Inserted[A]) -> list[DeadLetter]:
    """Dead letters for the ids that were used again for another body."""
    return [
        _id_reused(kind, arrival)
        for arrival, stored in inserted.repeated
        if not arrival.says(stored)
    ]


def _id_reused(kind: EventKind, arrival: JudgedOutput | ReceivedFeedback) -> DeadLetter:
    return DeadLetter(
        kind=kind,
        reason=ID_REUSED,
        detail=f"producer {arrival.producer!r} has used event_id {arrival.event_id!r}"
        " for another body; send this one under an id of its own",
        raw=arrival.text.encode(),
        origin=arrival.origin,
        received_at=EPOCH + timedelta(microseconds=arrival.received_at),
    )


def _origin_row(origin: Origin) -> dict[str, Any]:
    return {
        "source": origin.source,
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
    }


def _insert_dead_letters(tx: Connection, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    """Insert those that are new: other bytes, or from another place. Returns them."""
    rows = {_letter_key(letter): letter for letter in reversed(letters)}
    if not rows:
        return []
    inserted = tx.execute(
        insert_new(tx, dead_letters, "source", "topic", "partition", "offset", "raw_digest"),
        [
            {
                "kind": letter.kind,
                "reason": letter.reason,
                "detail": letter.detail,
                "raw": letter.raw,
                "raw_digest": key[1],
                **_origin_row(letter.origin),
                "received_at": letter.received_at,
            }
            for key, letter in reversed(rows.items())
        ],
    )
    return [
        rows[Origin(row.source, row.topic, row.partition, row.offset), row.raw_digest]
        for row in inserted
    ]


def _letter_key(letter: DeadLetter) -> tuple[Origin, bytes]:
    return letter.origin, hashlib.blake2b(letter.raw, digest_size=16).digest()
