"""Make arrivals durable: events, verdicts, feedback joins and the position, all or nothing.

Decides nothing: verdicts come with the events, and the judge that it is given is asked
again when feedback meets its output.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Row, Select, Table, insert, select, text, tuple_, update

from daemon.store.bookkeeping import Move, Tally, record
from daemon.store.database import Database
from daemon.store.dialect import CHUNK, insert_new
from daemon.store.tables import dead_letters, events, feedback, positions
from learning.clock import Clock
from learning.errors import NotFoundError
from learning.events import OutputEvent, digest, prompt_key
from learning.facts import EventsStored
from learning.lifecycle import EventState, FeedbackState, require_event_move
from learning.policy import Verdict, rejudge
from learning.ports import (
    ID_REUSED,
    Block,
    DeadLetter,
    EventKind,
    JudgedOutput,
    Origin,
    Position,
    PositionFencedError,
    PositionMove,
    ReceivedFeedback,
)

INTAKE = "intake"
"""The actor of the moves that an arrival causes."""


class UnknownDeadLetterError(NotFoundError):
    """No dead letter has this id."""

    def __init__(self, dead_letter_id: int) -> None:
        super().__init__(f"no dead letter {dead_letter_id}; `learnd dead-letters list` shows them")
        self.dead_letter_id = dead_letter_id


class Judge(Protocol):
    """Gives the verdict on an output, with the approvals that people gave it."""

    def __call__(self, event: OutputEvent, people: tuple[bool, ...] = ()) -> Verdict: ...


class TaskKey(NamedTuple):
    """What feedback and output are joined on."""

    task_type: str
    task_id: str


class Intake:
    """The store's front door; implements learning.ports.IntakeStore."""

    def __init__(self, database: Database, judge: Judge, clock: Clock) -> None:
        self._database = database
        self._judge = judge
        self._clock = clock

    async def claim(
        self, source: str, partitions: Collection[tuple[str, int]]
    ) -> Sequence[Position]:
        """See learning.ports.IntakeStore."""
        return await self._database.write(
            lambda tx: [self._claim(tx, source, topic, number) for topic, number in partitions]
        )

    async def rewind(self, source: str, claimed: Position, next_offset: int) -> Position:
        """See learning.ports.IntakeStore."""

        def transaction(tx: Connection) -> Position:
            self._move(tx, source, PositionMove(claimed, next_offset, b""))
            return Position(claimed.topic, claimed.partition, claimed.epoch, next_offset, b"")

        return await self._database.write(transaction)

    async def append(self, block: Block) -> EventsStored:
        """See learning.ports.IntakeStore."""
        return await self._database.write(lambda tx: self._append(tx, block))

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
        """Store what a dead letter became, and mark it as replayed, in one transaction."""

        def transaction(tx: Connection) -> EventsStored:
            stored = self._append(tx, block)
            if not stored.dead_letters:
                tx.execute(
                    update(dead_letters)
                    .where(dead_letters.c.id == dead_letter_id)
                    .values(replayed_at=self._clock())
                )
            return stored

        return await self._database.write(transaction)

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

    def _move(self, tx: Connection, source: str, move: PositionMove) -> None:
        claimed = move.claimed
        moved = tx.execute(
            update(positions)
            .filter_by(
                source=source,
                topic=claimed.topic,
                partition=claimed.partition,
                epoch=claimed.epoch,
            )
            .where(positions.c.next_offset.is_not_distinct_from(claimed.next_offset))
            .values(
                next_offset=move.next_offset,
                fingerprint=move.fingerprint,
                updated_at=self._clock(),
            )
        )
        if moved.rowcount != 1:
            raise PositionFencedError(claimed.topic, claimed.partition, claimed.epoch)

    def _append(self, tx: Connection, block: Block) -> EventsStored:
        if block.move is not None:
            self._move(tx, block.source, block.move)
        tally = Tally()
        new_outputs, bad_outputs = _insert_outputs(tx, block.outputs)
        new_feedback, bad_feedback = _insert_feedback(tx, block.feedback)
        letters = [*block.dead_letters, *bad_outputs, *bad_feedback]
        _insert_dead_letters(tx, letters)
        for output in new_outputs:
            tally.add(
                EventKind.OUTPUT,
                output.event.task_type,
                output.verdict.state,
                output.event.confidence,
            )
        for letter in letters:
            tally.add("dead_letter", letter.kind, letter.reason)

        for item in new_feedback:
            tally.add(EventKind.FEEDBACK, item.event.task_type, FeedbackState.WAITING)
        met, rejudged = self._join(
            tx,
            {TaskKey(item.event.task_type, item.event.task_id) for item in new_feedback},
            {TaskKey(item.event.task_type, item.event.task_id) for item in new_outputs},
            tally,
        )
        tally.write(tx)
        n_known = len(block.outputs) + len(block.feedback) - len(new_outputs) - len(new_feedback)
        return EventsStored(
            source=block.source,
            outputs=Counter((item.event.task_type, item.verdict.state) for item in new_outputs),
            feedback=Counter(
                (
                    item.event.task_type,
                    met.get(
                        TaskKey(item.event.task_type, item.event.task_id), FeedbackState.WAITING
                    ),
                )
                for item in new_feedback
            ),
            rejudged=rejudged,
            dead_letters=Counter(letter.reason for letter in letters),
            duplicates=n_known - len(bad_outputs) - len(bad_feedback),
        )

    def _join(
        self,
        tx: Connection,
        feedback_keys: set[TaskKey],
        output_keys: set[TaskKey],
        tally: Tally,
    ) -> tuple[Mapping[TaskKey, FeedbackState], Mapping[tuple[str, EventState], int]]:
        """Bring feedback and outputs together, whichever of them came first.

        Returns what became of the feedback of each task that has an output, and how many
        outputs moved.
        """
        waiting = _group_by_task(_waiting_feedback(tx, feedback_keys | output_keys))
        outputs = _group_by_task(_rows_by_task(tx, select(events), waiting))
        met: dict[TaskKey, FeedbackState] = {}
        rejudged: Counter[tuple[str, EventState]] = Counter()
        for key, candidates in outputs.items():
            state, output = _meet(candidates)
            met[key] = state
            tx.execute(
                update(feedback)
                .where(feedback.c.id.in_([row.id for row in waiting[key]]))
                .values(state=state, output_id=output.id if output is not None else None)
            )
            for _ in waiting[key]:
                tally.move(EventKind.FEEDBACK, key.task_type, FeedbackState.WAITING, state)
            if state is FeedbackState.JOINED and output is not None:
                moved_to = self._judge_again(tx, output, tally)
                if moved_to is not None:
                    rejudged[key.task_type, moved_to] += 1
        return met, rejudged

    def _judge_again(self, tx: Connection, output: Row[Any], tally: Tally) -> EventState | None:
        people = tuple(
            tx.execute(
                select(feedback.c.approved).where(
                    feedback.c.output_id == output.id, feedback.c.approved.is_not(None)
                )
            ).scalars()
        )
        if not people:
            return None
        verdict = self._judge(OutputEvent.model_validate_json(output.payload), people)
        wanted = rejudge(EventState(output.state), verdict)
        if wanted is None:
            return None
        decided = Verdict(wanted, verdict.reason, verdict.by_human)
        move_event(tx, output, decided, INTAKE, self._clock(), tally)
        return wanted


def move_event(
    tx: Connection, row: Row[Any], verdict: Verdict, actor: str, now: datetime, tally: Tally
) -> None:
    """Give one stored event the state of a verdict, with its history row and its count.

    Raises IllegalMoveError when its lifecycle does not allow it.
    """
    require_event_move(EventState(row.state), verdict.state)
    tx.execute(
        update(events)
        .where(events.c.id == row.id)
        .values(state=verdict.state, reason=verdict.reason, by_human=verdict.by_human)
    )
    record(tx, [Move("event", str(row.id), row.state, verdict.state, verdict.reason, actor)], now)
    tally.move(EventKind.OUTPUT, row.task_type, row.state, verdict.state, row.confidence)


def _meet(outputs: Sequence[Row[Any]]) -> tuple[FeedbackState, Row[Any] | None]:
    """What becomes of feedback, given the outputs of its task (one at least)."""
    if len(outputs) > 1:
        return FeedbackState.QUARANTINED, None
    output = outputs[0]
    if output.state in (EventState.SEALED, EventState.EXPIRED):
        return FeedbackState.LATE, output
    return FeedbackState.JOINED, output


def _waiting_feedback(tx: Connection, keys: Iterable[TaskKey]) -> Iterable[Row[Any]]:
    is_waiting = feedback.c.state == text(f"'{FeedbackState.WAITING}'")  # as in its index
    if tx.execute(select(feedback.c.id).where(is_waiting).limit(1)).first() is None:
        return ()
    return _rows_by_task(tx, select(feedback).where(is_waiting), keys)


def _rows_by_task(
    tx: Connection, query: Select[Any], keys: Iterable[TaskKey]
) -> Iterable[Row[Any]]:
    columns = query.selected_columns
    wanted = sorted(keys)
    for start in range(0, len(wanted), CHUNK):
        yield from tx.execute(
            query.where(
                tuple_(columns.task_type, columns.task_id).in_(wanted[start : start + CHUNK])
            )
        )


def _group_by_task(rows: Iterable[Row[Any]]) -> dict[TaskKey, list[Row[Any]]]:
    groups: dict[TaskKey, list[Row[Any]]] = {}
    for row in rows:
        groups.setdefault(TaskKey(row.task_type, row.task_id), []).append(row)
    return groups


def _insert_outputs(
    tx: Connection, outputs: Sequence[JudgedOutput]
) -> tuple[list[JudgedOutput], list[DeadLetter]]:
    return _insert(tx, events, EventKind.OUTPUT, outputs, _output_row)


def _insert_feedback(
    tx: Connection, items: Sequence[ReceivedFeedback]
) -> tuple[list[ReceivedFeedback], list[DeadLetter]]:
    return _insert(tx, feedback, EventKind.FEEDBACK, items, _feedback_row)


A = TypeVar("A", JudgedOutput, ReceivedFeedback)


def _insert(
    tx: Connection,
    table: Table,
    kind: EventKind,
    arrivals: Sequence[A],
    to_row: Callable[[A], dict[str, Any]],
) -> tuple[list[A], list[DeadLetter]]:
    """Insert what is new. Returns it, and dead letters for ids that were used again.

    Of several arrivals with one id in a block the first counts.
    """
    first: dict[tuple[str, str], A] = {}
    for arrival in arrivals:
        first.setdefault((arrival.event.producer, arrival.event_id), arrival)
    if not first:
        return [], []
    inserted = {
        (row.producer, row.event_id)
        for row in tx.execute(
            insert_new(tx, table).returning(table.c.producer, table.c.event_id),
            [to_row(arrival) for arrival in first.values()],
        )
    }
    repeated = [
        arrival
        for arrival in arrivals
        if (key := (arrival.event.producer, arrival.event_id)) not in inserted
        or first[key] is not arrival
    ]
    stored = _content_hashes(tx, table, repeated)
    reused = [
        _id_reused(kind, arrival)
        for arrival in repeated
        if stored[arrival.event.producer, arrival.event_id] != arrival.event.content_hash()
    ]
    return [arrival for key, arrival in first.items() if key in inserted], reused


def _content_hashes(
    tx: Connection, table: Table, arrivals: Sequence[JudgedOutput | ReceivedFeedback]
) -> dict[tuple[str, str], bytes]:
    keys = sorted({(arrival.event.producer, arrival.event_id) for arrival in arrivals})
    hashes: dict[tuple[str, str], bytes] = {}
    for start in range(0, len(keys), CHUNK):
        rows = tx.execute(
            select(table.c.producer, table.c.event_id, table.c.content_hash).where(
                tuple_(table.c.producer, table.c.event_id).in_(keys[start : start + CHUNK])
            )
        )
        hashes.update({(row.producer, row.event_id): row.content_hash for row in rows})
    return hashes


def _id_reused(kind: EventKind, arrival: JudgedOutput | ReceivedFeedback) -> DeadLetter:
    return DeadLetter(
        kind=kind,
        reason=ID_REUSED,
        detail=f"producer {arrival.event.producer!r} has used event_id {arrival.event_id!r}"
        " for another body; send this one under an id of its own",
        raw=arrival.raw,
        origin=arrival.origin,
        received_at=arrival.received_at,
    )


def _output_row(item: JudgedOutput) -> dict[str, Any]:
    event = item.event
    return {
        **_common_row(item),
        "state": item.verdict.state,
        "reason": item.verdict.reason,
        "by_human": item.verdict.by_human,
        "prompt_key": prompt_key(event),
        "group_key": digest(event.split_group) if event.split_group is not None else None,
        "subject": event.subject,
    }


def _feedback_row(item: ReceivedFeedback) -> dict[str, Any]:
    return {**_common_row(item), "state": FeedbackState.WAITING}


def _common_row(item: JudgedOutput | ReceivedFeedback) -> dict[str, Any]:
    event = item.event
    return {
        "producer": event.producer,
        "event_id": item.event_id,
        "task_type": event.task_type,
        "task_id": event.task_id,
        "approved": event.approved,
        "confidence": event.confidence,
        "payload": event.model_dump_json(exclude_none=True),
        "content_hash": event.content_hash(),
        "model_version": event.model_version,
        **_origin_row(item.origin),
        "occurred_at": event.timestamp if event.timestamp is not None else item.received_at,
        "received_at": item.received_at,
    }


def _origin_row(origin: Origin) -> dict[str, Any]:
    return {
        "source": origin.source,
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
    }


def _insert_dead_letters(tx: Connection, letters: Sequence[DeadLetter]) -> None:
    if letters:
        tx.execute(
            insert(dead_letters),
            [
                {
                    "kind": letter.kind,
                    "reason": letter.reason,
                    "detail": letter.detail,
                    "raw": letter.raw,
                    **_origin_row(letter.origin),
                    "received_at": letter.received_at,
                }
                for letter in letters
            ],
        )
