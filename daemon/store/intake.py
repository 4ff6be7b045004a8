"""Make arrivals durable: events, verdicts, feedback joins and the position, all or nothing.

Decides nothing: verdicts come with the events, and the judge that it is given is asked
again when feedback meets its output.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import (
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    func,
    insert,
    select,
    tuple_,
    update,
)

from daemon.store.bookkeeping import Move, Tally, record
from daemon.store.database import Database
from daemon.store.dialect import CHUNK, insert_new, take_turns
from daemon.store.tables import dead_letters, events, feedback, is_one_of, positions
from learning.clock import Clock
from learning.errors import ConflictError, NotFoundError
from learning.events import OutputEvent, group_key, prompt_key
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
    ReceivedFeedback,
)

INTAKE = "intake"
"""The actor of the moves that an arrival causes."""


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


class Judge(Protocol):
    """Gives the verdict on an output, with the approvals that people gave it."""

    def __call__(self, event: OutputEvent, people: tuple[bool, ...] = ()) -> Verdict: ...


class TaskKey(NamedTuple):
    """What feedback and output are joined on."""

    task_type: str
    task_id: str


def _task(item: JudgedOutput | ReceivedFeedback) -> TaskKey:
    return TaskKey(item.event.task_type, item.event.task_id)


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

    async def append(self, block: Block) -> EventsStored:
        """See learning.ports.IntakeStore."""
        return await self._database.write(lambda tx: self._append(tx, block)[0])

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
        another dead letter; then nothing changed.
        """

        def transaction(tx: Connection) -> EventsStored:
            stored, letters = self._append(tx, block)
            if letters:
                raise ReplayRefusedError(dead_letter_id, letters[0])
            marked = tx.execute(
                update(dead_letters)
                .where(dead_letters.c.id == dead_letter_id)
                .values(replayed_at=self._clock())
            )
            if marked.rowcount != 1:
                raise UnknownDeadLetterError(dead_letter_id)
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

    def _move(
        self,
        tx: Connection,
        source: str,
        claimed: Position,
        next_offset: int,
        fingerprint: bytes | None,
    ) -> None:
        moved = tx.execute(
            update(positions)
            .filter_by(
                source=source,
                topic=claimed.topic,
                partition=claimed.partition,
                epoch=claimed.epoch,
            )
            .where(positions.c.next_offset.is_not_distinct_from(claimed.next_offset))
            .values(next_offset=next_offset, fingerprint=fingerprint, updated_at=self._clock())
        )
        if moved.rowcount != 1:
            raise PositionFencedError(claimed.topic, claimed.partition, claimed.epoch)

    def _append(self, tx: Connection, block: Block) -> tuple[EventsStored, Sequence[DeadLetter]]:
        if (move := block.move) is not None:
            self._move(tx, block.source, move.claimed, move.next_offset, move.fingerprint)
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
        arrived = {_task(item) for item in new_feedback} | {_task(item) for item in new_outputs}
        met, rejudged = self._join(tx, arrived, tally)
        tally.write(tx)
        n_known = len(block.outputs) + len(block.feedback) - len(new_outputs) - len(new_feedback)
        stored = EventsStored(
            source=block.source,
            outputs=Counter((item.event.task_type, item.verdict.state) for item in new_outputs),
            feedback=Counter(
                (item.event.task_type, met.get(_task(item), FeedbackState.WAITING))
                for item in new_feedback
            ),
            rejudged=rejudged,
            dead_letters=Counter(letter.reason for letter in letters),
            duplicates=n_known - len(bad_outputs) - len(bad_feedback),
        )
        return stored, letters

    def _join(
        self, tx: Connection, arrived: Collection[TaskKey], tally: Tally
    ) -> tuple[Mapping[TaskKey, FeedbackState], Mapping[tuple[str, EventState], int]]:
        """Bring feedback and outputs together, whichever of them came first.

        Returns what became of the feedback of each task that has an output, and how many
        outputs moved.
        """
        # Of two transactions that store the two sides at once neither would see the other's.
        take_turns(tx, {f"join:{key.task_type}" for key in arrived})
        waiting = _count_waiting_feedback(tx, arrived)
        outputs = _outputs_of(tx, waiting)
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
        for output_id, people in _people_on(tx, joined).items():
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
            confirm_event(tx, output, verdict, INTAKE, self._clock())
            return None
        wanted = rejudge(current, verdict)
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
        .values(
            state=verdict.state,
            state_since=now,
            reason=verdict.reason,
            by_human=verdict.by_human,
        )
    )
    record(tx, [Move("event", str(row.id), row.state, verdict.state, verdict.reason, actor)], now)
    tally.move(EventKind.OUTPUT, row.task_type, row.state, verdict.state, row.confidence)


def confirm_event(
    tx: Connection, row: Row[Any], verdict: Verdict, actor: str, now: datetime
) -> None:
    """Note that a person stands behind an event, which stays in the state that it is in."""
    tx.execute(
        update(events).where(events.c.id == row.id).values(reason=verdict.reason, by_human=True)
    )
    record(tx, [Move("event", str(row.id), row.state, row.state, verdict.reason, actor)], now)


def _met_by(output: Row[Any] | None) -> FeedbackState:
    """What becomes of feedback, given its output; None: there are several."""
    if output is None:
        return FeedbackState.QUARANTINED
    if output.state in (EventState.SEALED, EventState.EXPIRED):
        return FeedbackState.LATE
    return FeedbackState.JOINED


_IS_WAITING = is_one_of(feedback.c.state, FeedbackState.WAITING)


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


def _people_on(tx: Connection, outputs: Collection[int]) -> dict[int, tuple[bool, ...]]:
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
    if tx.execute(select(feedback.c.id).where(_IS_WAITING).limit(1)).first() is None:
        return {}
    counts = select(feedback.c.task_type, feedback.c.task_id, func.count().label("n"))
    return {
        TaskKey(row.task_type, row.task_id): row.n
        for row in _by_task(tx, counts.where(_IS_WAITING), keys)
    }


def _outputs_of(tx: Connection, keys: Collection[TaskKey]) -> dict[TaskKey, Row[Any] | None]:
    """The output of each of some tasks, None where there are several; unknown tasks left out."""
    counts = select(
        events.c.task_type,
        events.c.task_id,
        func.count().label("n"),
        func.min(events.c.id).label("first"),
    )
    found = _by_task(tx, counts, keys)
    single = sorted(row.first for row in found if row.n == 1)
    rows = {
        row.id: row
        for start in range(0, len(single), CHUNK)
        for row in tx.execute(
            select(events)
            .where(events.c.id.in_(single[start : start + CHUNK]))
            .order_by(events.c.id)
            .with_for_update(key_share=True)
        )
    }
    return {TaskKey(row.task_type, row.task_id): rows.get(row.first) for row in found}


def _by_task(tx: Connection, counts: Select[Any], keys: Collection[TaskKey]) -> list[Row[Any]]:
    """Rows of an aggregate over some tasks, grouped by task.

    Asked for one task type at a time: of a list of pairs SQLite would scan the whole index.
    """
    columns = counts.selected_columns
    by_type: defaultdict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        by_type[key.task_type].append(key.task_id)
    return [
        row
        for task_type, task_ids in by_type.items()
        for start in range(0, len(task_ids), CHUNK)
        for row in tx.execute(
            counts.where(
                columns.task_type == task_type,
                columns.task_id.in_(task_ids[start : start + CHUNK]),
            ).group_by(columns.task_type, columns.task_id)
        )
    ]


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
        "state_since": item.received_at,
        "reason": item.verdict.reason,
        "by_human": item.verdict.by_human,
        "prompt_key": prompt_key(event),
        "group_key": group_key(event),
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
