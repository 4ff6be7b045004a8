"""Forget what events said: purge it from every table, and take out of use what learned from it.

A forgetting is noted before anything is done, and each of its steps is one transaction that
leaves nothing half told: when its daemon dies it is asked for again, and goes on. What is read
to find the rows is read in pages and holds up nobody. Files are another matter:
daemon/forgotten_files.py.

Who keeps something of an event's text in a table of its own adds a step to `REMNANTS`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from daemon.store.bookkeeping import Move, Tally, record
from daemon.store.database import Database
from daemon.store.dialect import CHUNK, insert_new, take_turns
from daemon.store.intake import forget_feedback
from daemon.store.interventions import call_off
from daemon.store.names import is_event
from daemon.store.queue import seal_rows
from daemon.store.registry import knowing, number_of, taint
from daemon.store.rejected import RejectedOutputs
from daemon.store.replay import rejected_since
from daemon.store.runs import locked_run
from daemon.store.split_sides import SPLIT
from daemon.store.tables import (
    FORGOTTEN_LETTER,
    batch_members,
    batches,
    dead_letters,
    evaluation_examples,
    evaluations,
    events,
    feedback,
    feedback_effects,
    firewall_bands,
    firewall_kinds,
    firewall_stops,
    forgettings,
    is_one_of,
    rejected_outputs,
    replay_memory,
    retired_examples,
    returned_events,
    run_attempts,
    runs,
    screenings,
    transitions,
    versions,
)
from learning.batching import Trigger
from learning.clock import microseconds
from learning.events import FORGOTTEN_FEEDBACK, FORGOTTEN_OUTPUT, digest
from learning.facts import BatchSealed, RolledBack, RunCancelAsked, RunCancelled
from learning.lifecycle import (
    LEARNED_ROLES,
    UNFINISHED_RUN_STATES,
    EventState,
    FeedbackState,
    Role,
    RunState,
    VersionState,
)
from learning.lines import ModelLine
from learning.ports import EventKind
from learning.sampling import SplitRules

T = TypeVar("T")

PAGE: Final = 20_000
"""Rows that are looked through at once."""
LETTERS_AT_ONCE: Final = 20
"""Each may be a whole batch of Kafka's."""
SCRUBBED: Final = (
    events,
    feedback,
    dead_letters,
    evaluation_examples,
    transitions,
    evaluations,
    runs,
    run_attempts,
    screenings,
    firewall_bands,
    firewall_kinds,
    firewall_stops,
    feedback_effects,
)
"""The tables that something is taken out of, whose remains lie in the files."""


class TargetKind(StrEnum):
    """What a forgetting is about."""

    EVENT = "event"
    PRODUCER = "producer"
    SUBJECT = "subject"


class ForgettingState(StrEnum):
    """How far a forgetting is."""

    ASKED = "asked"
    PURGED = "purged"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Target:
    """What is to be forgotten. The name of an event is PRODUCER/EVENT_ID."""

    kind: TargetKind
    name: str

    @property
    def quoted(self) -> Sequence[str]:
        """The names of it that stand, in quotation marks, in whatever is of it."""
        if self.kind is not TargetKind.EVENT:
            return [self.name]
        producer, _, event_id = self.name.partition("/")
        return [producer, event_id]


@dataclass(frozen=True)
class Forgetting:
    """A forgetting that was noted, and up to which rows it goes: what came later is not meant."""

    id: int
    target: Target
    last_event: int
    last_feedback: int
    last_letter: int
    actor: str
    reason: str

    @property
    def in_words(self) -> str:
        """For histories: never says whom it is about."""
        return f"forgetting {self.id}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Letter:
    """A dead letter that may have to go."""

    id: int
    kind: str
    reason: str
    raw: bytes


@dataclass(frozen=True)
class KnowingVersion:
    """A version that knows what is to be forgotten, as it is before."""

    line: str
    version: str
    state: str
    was_champion: bool


@dataclass
class Outcome:
    """What was done so far. `facts` are those of the runs and champions it moved."""

    versions: list[KnowingVersion] = field(default_factory=list)
    replaced: list[RolledBack] = field(default_factory=list)
    runs: list[RunCancelled | RunCancelAsked] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """And what another step did."""
        self.versions += other.versions
        self.replaced += other.replaced
        self.runs += other.runs


@dataclass(frozen=True)
class Counts:
    """How many rows of each kind a forgetting takes something from."""

    outputs: int
    feedback: int
    dead_letters: int
    held_out: int


@dataclass(frozen=True)
class Doomed:
    """Whose files have to go, of those that were asked about."""

    runs: frozenset[str]
    """All that lies in the folders of these."""
    pending: frozenset[str]
    """The same, once they are over: somebody works with the files."""


class Forgettings:
    """What is forgotten in one database."""

    def __init__(self, database: Database, rejected: RejectedOutputs) -> None:
        self._database = database
        self._rejected = rejected

    # --- looking --------------------------------------------------------------------

    async def preview(self, target: Target) -> Forgetting:
        """A forgetting of all that there is now, noted nowhere."""
        return await self._database.read(lambda tx: Forgetting(0, target, *_last(tx), "", ""))

    async def outputs(self, wanted: Forgetting) -> Sequence[int]:
        """The row ids of the outputs that are meant, ascending."""
        target = wanted.target
        if target.kind is TargetKind.EVENT:
            producer, _, event_id = target.name.partition("/")
            return await self._database.read(
                lambda tx: _ids(
                    tx,
                    events.c.id,
                    is_event(tx, producer, event_id),
                    events.c.state != EventState.FORGOTTEN,
                )
            )
        named = events.c.producer if target.kind is TargetKind.PRODUCER else events.c.subject
        return await self._pages(
            events.c.id,
            wanted.last_event,
            named == target.name,
            events.c.state != EventState.FORGOTTEN,
        )

    async def feedback_on(self, output_ids: Sequence[int], *, but_not: Sequence[int]) -> int:
        """How much feedback on some outputs still says something, beside some of it."""

        def query(tx: Connection) -> int:
            found: set[int] = set()
            for some in _chunks(output_ids):
                on_them = (feedback.c.output_id.in_(some), _SAYS_SOMETHING)
                found.update(_ids(tx, feedback.c.id, *on_them))
            return len(found.difference(but_not))

        return await self._database.read(query)

    async def feedback_by(self, wanted: Forgetting) -> Sequence[int]:
        """The row ids of the feedback of the producer who is meant, ascending."""
        if wanted.target.kind is not TargetKind.PRODUCER:
            return ()
        return await self._pages(
            feedback.c.id,
            wanted.last_feedback,
            feedback.c.producer == wanted.target.name,
            _SAYS_SOMETHING,
        )

    async def letters(self, wanted: Forgetting, after: int) -> Sequence[Letter]:
        """The next dead letters with an id above `after`."""
        page = (
            select(dead_letters.c.id, dead_letters.c.kind, dead_letters.c.reason)
            .add_columns(dead_letters.c.raw)
            .where(
                dead_letters.c.id > after,
                dead_letters.c.id <= wanted.last_letter,
                dead_letters.c.reason != FORGOTTEN_LETTER,
            )
            .order_by(dead_letters.c.id)
            .limit(LETTERS_AT_ONCE)
        )
        return await self._database.read(
            lambda tx: [Letter(row.id, row.kind, row.reason, row.raw) for row in tx.execute(page)]
        )

    async def are_forgotten(
        self, wanted: Forgetting, names: Sequence[tuple[str, str]]
    ) -> Sequence[bool]:
        """Whether each (producer, event id) is that of an output that is meant, or that was
        forgotten before."""
        column = {
            TargetKind.PRODUCER: events.c.producer,
            TargetKind.SUBJECT: events.c.subject,
        }.get(wanted.target.kind, events.c.producer + "/" + events.c.event_id)
        gone = or_(events.c.state == EventState.FORGOTTEN, column == wanted.target.name)
        return await self._database.read(
            lambda tx: [
                tx.execute(select(events.c.id).where(is_event(tx, *name), gone)).first() is not None
                for name in names
            ]
        )

    async def held_out(self, wanted: Forgetting, output_ids: Sequence[int]) -> int:
        """How many examples of the frozen set would leave it."""

        def query(tx: Connection) -> int:
            n = sum(
                _count(tx, evaluation_examples, evaluation_examples.c.event_id.in_(some))
                for some in _chunks(output_ids)
            )
            imported = _imported_by(wanted.target)
            return n + (_count(tx, evaluation_examples, imported) if imported is not None else 0)

        return await self._database.read(query)

    async def learned_in(self, output_ids: Sequence[int]) -> Sequence[str]:
        """The batches that some outputs are learned from in."""
        return await self._database.read(lambda tx: _learned_in(tx, output_ids))

    async def runs_with(self, output_ids: Sequence[int]) -> Sequence[str]:
        """The runs in whose batch some outputs are, whatever their role."""

        def query(tx: Connection) -> Sequence[str]:
            found: set[str] = set()
            for some in _chunks(output_ids):
                found.update(
                    tx.execute(
                        select(runs.c.id)
                        .distinct()
                        .join(batch_members, batch_members.c.batch_id == runs.c.batch_id)
                        .where(batch_members.c.event_id.in_(some))
                    ).scalars()
                )
            return sorted(found)

        return await self._database.read(query)

    async def known_to(self, batch_ids: Sequence[str]) -> Outcome:
        """Which versions would be tainted, and which runs would end, if what some batches
        learned had to be forgotten now."""

        def query(tx: Connection) -> Outcome:
            rows = tx.execute(
                select(versions).where(
                    versions.c.id.in_(knowing(_made_in(batch_ids))), ~_IS_TAINTED
                )
            ).all()
            ending = [
                RunCancelAsked(row.line, row.id, "", "")
                for row in tx.execute(
                    select(runs.c.id, runs.c.line).where(_MAY_LEARN, runs.c.batch_id.in_(batch_ids))
                )
            ]
            return Outcome(_described(rows), [], list(ending))

        return await self._database.read(query)

    async def counts(self, forgetting_id: int) -> Counts:
        """What a forgetting has taken something from, all its attempts together."""
        query = select(forgettings).where(forgettings.c.id == forgetting_id)
        row = await self._database.read(lambda tx: tx.execute(query).one())
        return Counts(row.n_outputs, row.n_feedback, row.n_dead_letters, row.n_held_out)

    async def unfinished(self) -> Sequence[int]:
        """The forgettings that died before their texts were purged."""
        query = select(forgettings.c.id).where(forgettings.c.state == ForgettingState.ASKED)
        return await self._database.read(lambda tx: tx.execute(query).scalars().all())

    # --- forgetting -----------------------------------------------------------------

    async def ask(
        self, target: Target, *, delete_weights: bool, reason: str, actor: str, now: datetime
    ) -> Forgetting:
        """Note what is to be forgotten; one that was asked for before and did not end goes on."""

        def transaction(tx: Connection) -> Forgetting:
            take_turns(tx, [_FORGET])
            same = (
                forgettings.c.kind == target.kind,
                forgettings.c.name_digest == digest(target.name),
                forgettings.c.state == ForgettingState.ASKED,
            )
            row = tx.execute(select(forgettings).where(*same)).first()
            last = _last(tx)
            if row is None:
                row = tx.execute(
                    insert(forgettings)
                    .values(
                        kind=target.kind,
                        name=target.name if target.kind is not TargetKind.SUBJECT else None,
                        name_digest=digest(target.name),
                        state=ForgettingState.ASKED,
                        delete_weights=delete_weights,
                        **dict(zip(_LAST, last, strict=True)),
                        **dict.fromkeys(_COUNTS, 0),
                        actor=actor,
                        reason=reason,
                        asked_at=now,
                    )
                    .returning(forgettings)
                ).one()
            else:
                tx.execute(
                    update(forgettings)
                    .where(forgettings.c.id == row.id)
                    .values(
                        delete_weights=delete_weights or row.delete_weights,
                        **dict(zip(_LAST, last, strict=True)),
                    )
                )
            return Forgetting(row.id, target, *last, actor, reason)

        return await self._database.write(transaction)

    async def take_out(
        self, wanted: Forgetting, batch_ids: Sequence[str], now: datetime
    ) -> Outcome:
        """Take out of use all versions that learned from some batches, and end such runs.

        Before a text is purged: so no champion knows what is gone already.
        """

        def transaction(tx: Connection) -> Outcome:
            take_turns(tx, [SPLIT])
            return _take_out(tx, wanted, batch_ids, now)

        return await self._database.write(transaction)

    async def purge_outputs(
        self, wanted: Forgetting, output_ids: Sequence[int], now: datetime
    ) -> Outcome:
        """Make tombstones of some outputs, and purge what was made of them.

        Up to CHUNK of them. What a batch took since `take_out` is taken out here.
        """

        def transaction(tx: Connection) -> Outcome:
            take_turns(tx, [SPLIT])
            rows = tx.execute(
                select(events)
                .where(events.c.id.in_(output_ids), events.c.state != EventState.FORGOTTEN)
                .order_by(events.c.id)
                .with_for_update(key_share=True)
            ).all()
            ids = [row.id for row in rows]
            done = _take_out(tx, wanted, _learned_in(tx, ids), now)
            added = Counts(len(ids), 0, 0, 0)
            for purge in REMNANTS:
                added = _plus(added, purge(tx, wanted, ids, now))
            _bury(tx, wanted, rows, now)
            _add(tx, wanted, added)
            return done

        return await self._database.write(transaction)

    async def purge_feedback(
        self, wanted: Forgetting, feedback_ids: Sequence[int], now: datetime
    ) -> None:
        """Take from some feedback what it says. What still waits for its output says nothing
        any more; other verdicts stay, for what followed from them."""

        def transaction(tx: Connection) -> None:
            some = feedback.c.id.in_(feedback_ids)
            waiting = is_one_of(feedback.c.state, FeedbackState.WAITING)
            tx.execute(update(feedback).where(some, waiting).values(approved=None))
            _purge_effects(tx, wanted, some)
            _add(tx, wanted, Counts(0, forget_feedback(tx, some, now), 0, 0))

        await self._database.write(transaction)

    async def purge_letters(
        self, wanted: Forgetting, letters: Sequence[Letter], now: datetime
    ) -> None:
        """Take the bytes out of some dead letters. Their digests stay: a record that is read
        again is the same letter, and is not stored again."""

        def transaction(tx: Connection) -> None:
            tally = Tally()
            for letter in letters:
                emptied = tx.execute(
                    update(dead_letters)
                    .where(
                        dead_letters.c.id == letter.id, dead_letters.c.reason != FORGOTTEN_LETTER
                    )
                    .values(
                        raw=b"",
                        detail=wanted.in_words,
                        reason=FORGOTTEN_LETTER,
                        published_at=func.coalesce(dead_letters.c.published_at, microseconds(now)),
                        taken_until=None,
                    )
                )
                if emptied.rowcount:
                    tally.move("dead_letter", letter.kind, letter.reason, FORGOTTEN_LETTER)
                    _add(tx, wanted, Counts(0, 0, 1, 0))
            tally.write(tx, now)

        await self._database.write(transaction)

    async def finish(self, wanted: Forgetting, now: datetime) -> None:
        """Purge what is found by other ways than by its output; then no table has it."""

        def transaction(tx: Connection) -> None:
            take_turns(tx, [SPLIT])
            forgotten = forget_feedback(tx, feedback.c.id.in_(_UNCLEAR), now)
            imported = _imported_by(wanted.target)
            n_retired = _retire(tx, wanted, imported, now) if imported is not None else 0
            _add(tx, wanted, Counts(0, forgotten, 0, n_retired))
            tx.execute(
                update(forgettings)
                .where(forgettings.c.id == wanted.id)
                .values(state=ForgettingState.PURGED, purged_at=now)
            )

        await self._database.write(transaction)

    async def scrub(self, *, rewrite: bool) -> bool:
        """Clear what the tables' files still hold of rows that were overwritten.

        `rewrite` writes the files anew, which takes time and room. False when a reader stood
        in the way for too long.
        """
        return await self._database.scrub([table.name for table in SCRUBBED], rewrite=rewrite)

    # --- files ----------------------------------------------------------------------

    async def doomed(
        self,
        run_ids: Iterable[str],
        task_types_of: Callable[[str], frozenset[str] | None],
    ) -> Doomed:
        """Of some runs those whose files may say what was forgotten.

        Because a forgotten event is in their batch; because an example has left the held-out set
        since they were planned, which such files have copies of; or because their version is
        tainted, of which a checkpoint is left. `task_types_of` a line that nobody knows: all.
        """
        wanted = sorted(run_ids)

        def query(tx: Connection) -> Doomed:
            found: dict[str, bool] = {}
            for some in _chunks(wanted):
                for row in tx.execute(select(runs).where(runs.c.id.in_(some))).all():
                    if _has_forgotten(tx, row, task_types_of(row.line)):
                        found[row.id] = RunState(row.state).active
            return Doomed(
                frozenset(run_id for run_id, active in found.items() if not active),
                frozenset(run_id for run_id, active in found.items() if active),
            )

        return await self._database.read(query)

    async def doomed_artifacts(self) -> Sequence[str]:
        """The artifacts of the versions that were tainted when weights were last to be deleted."""

        def query(tx: Connection) -> Sequence[str]:
            last = tx.execute(
                select(func.max(forgettings.c.purged_at)).where(forgettings.c.delete_weights)
            ).scalar()
            if last is None:
                return ()
            by_then = set(
                tx.execute(
                    select(transitions.c.ref).where(
                        transitions.c.kind == "version",
                        transitions.c.to_state == VersionState.TAINTED,
                        transitions.c.at <= last,
                    )
                ).scalars()
            )
            rows = tx.execute(
                select(versions.c.id, versions.c.artifact).where(
                    _IS_TAINTED, versions.c.artifact.is_not(None)
                )
            )
            return [row.artifact for row in rows if str(row.id) in by_then]

        return await self._database.read(query)

    async def any(self) -> bool:
        """Whether anything was ever to be forgotten here."""
        query = select(forgettings.c.id).limit(1)
        return await self._database.read(lambda tx: tx.execute(query).first() is not None)

    async def complete(self, now: datetime) -> None:
        """No file here says any more what the tables do not."""

        def transaction(tx: Connection) -> None:
            tx.execute(
                update(forgettings)
                .where(forgettings.c.state == ForgettingState.PURGED)
                .values(state=ForgettingState.COMPLETE, complete_at=now)
            )

        await self._database.write(transaction)

    # --- learning again -------------------------------------------------------------

    async def tainted_lines(self) -> Sequence[str]:
        """The lines with tainted versions, by name."""
        query = select(versions.c.line).distinct().where(_IS_TAINTED)
        return await self._database.read(lambda tx: sorted(tx.execute(query).scalars()))

    async def retrain(
        self, line: ModelLine, rules: SplitRules, actor: str, now: datetime
    ) -> BatchSealed | None:
        """Seal what the line's tainted versions had learned, less what was forgotten, as one
        batch with a run. None when there is nothing, or it was done before.

        The run starts from the champion, which is clean, so that what it makes is.
        """

        def transaction(tx: Connection) -> BatchSealed | None:
            take_turns(tx, [SPLIT])
            rows = _lost_lessons(tx, line.name)
            if not rows:
                return None
            for some in _chunks(rows):
                tx.execute(insert_new(tx, returned_events), some)
            trigger = Trigger.RETRAIN
            return seal_rows(tx, line, [], self._rejected, trigger, rules, actor, now)

        return await self._database.write(transaction)

    # --- inside ---------------------------------------------------------------------

    async def _pages(
        self, key: ColumnElement[int], last: int, *conditions: ColumnElement[bool]
    ) -> Sequence[int]:
        """Row ids up to `last`, ascending, a page at a time: the table may be large."""
        found: list[int] = []
        for after in range(0, last, PAGE):
            page = (key > after, key <= min(after + PAGE, last), *conditions)
            found += await self._database.read(lambda tx, page=page: _ids(tx, key, *page))  # type: ignore[misc]
        return found


_FORGET: Final = "forget"
_LAST: Final = ("last_event", "last_feedback", "last_letter")
_COUNTS: Final = ("n_outputs", "n_feedback", "n_dead_letters", "n_held_out", "n_versions")
_IS_TAINTED: Final = versions.c.state == VersionState.TAINTED
_MAY_LEARN: Final = is_one_of(runs.c.state, *UNFINISHED_RUN_STATES) & runs.c.cancel_asked_at.is_(
    None
)
_SAYS_SOMETHING: Final = feedback.c.payload != FORGOTTEN_FEEDBACK
_UNCLEAR: Final = (
    select(feedback.c.id)
    .join(
        events,
        (events.c.task_type == feedback.c.task_type) & (events.c.task_id == feedback.c.task_id),
    )
    .where(
        feedback.c.state == FeedbackState.QUARANTINED,
        events.c.state == EventState.FORGOTTEN,
    )
)
"""Feedback that several outputs share, one of which was forgotten."""


Purge = Callable[[Connection, Forgetting, Sequence[int], datetime], Counts]
"""Purges what was made of some outputs, in the transaction that makes tombstones of them."""


def _purge_feedback(
    tx: Connection, wanted: Forgetting, ids: Sequence[int], now: datetime
) -> Counts:
    on_them = feedback.c.output_id.in_(ids)
    _purge_effects(tx, wanted, on_them)
    return Counts(0, forget_feedback(tx, on_them, now), 0, 0)


def _purge_effects(tx: Connection, wanted: Forgetting, which: ColumnElement[bool]) -> None:
    """What some feedback turned stays turned; the reasons may quote it."""
    of_them = feedback_effects.c.feedback_id.in_(select(feedback.c.id).where(which))
    tx.execute(update(feedback_effects).where(of_them).values(reason=wanted.in_words))


def _purge_held_out(
    tx: Connection, wanted: Forgetting, ids: Sequence[int], now: datetime
) -> Counts:
    return Counts(0, 0, 0, _retire(tx, wanted, evaluation_examples.c.event_id.in_(ids), now))


def _purge_uses(tx: Connection, wanted: Forgetting, ids: Sequence[int], now: datetime) -> Counts:
    """What would train again: that they trained stays in batch_members."""
    for table in (replay_memory, returned_events, rejected_outputs):
        tx.execute(delete(table).where(table.c.event_id.in_(ids)))
    return _NOTHING


def _purge_words(tx: Connection, wanted: Forgetting, ids: Sequence[int], now: datetime) -> Counts:
    """What validators, operators and trainers said of them, who may have quoted them."""
    of_events = (transitions.c.kind == "event", transitions.c.ref.in_([str(id) for id in ids]))
    tx.execute(update(transitions).where(*of_events).values(reason=wanted.in_words))
    failed = (
        select(runs.c.id)
        .join(batch_members, batch_members.c.batch_id == runs.c.batch_id)
        .where(batch_members.c.event_id.in_(ids), runs.c.failures > 0)
    )
    run_ids = tx.execute(failed.distinct()).scalars().all()
    said = {"message": wanted.in_words}
    for some in _chunks(run_ids):
        tx.execute(update(runs).where(runs.c.id.in_(some), runs.c.error.is_not(None)).values(said))
        attempts = (run_attempts.c.run_id.in_(some), run_attempts.c.result == "failed")
        tx.execute(update(run_attempts).where(*attempts).values(said))
        ends = transitions.c.to_state.in_([RunState.FAILED, RunState.PLANNED])
        of_runs = (transitions.c.kind == "run", transitions.c.ref.in_(some), ends)
        tx.execute(update(transitions).where(*of_runs).values(reason=wanted.in_words))
    return _NOTHING


def _purge_screening(
    tx: Connection, wanted: Forgetting, ids: Sequence[int], now: datetime
) -> Counts:
    """What validators found in them and left of them, and what new events are compared with."""
    said: dict[str, Any] = {"text": None, "findings": []}
    tx.execute(update(screenings).where(screenings.c.event_id.in_(ids)).values(said))
    for table in (firewall_bands, firewall_kinds, firewall_stops):
        tx.execute(delete(table).where(table.c.event_id.in_(ids)))
    return _NOTHING


_NOTHING: Final = Counts(0, 0, 0, 0)
REMNANTS: Final[Sequence[Purge]] = (
    _purge_feedback,
    _purge_held_out,
    _purge_uses,
    _purge_words,
    _purge_screening,
)


def _take_out(
    tx: Connection, wanted: Forgetting, batch_ids: Sequence[str], now: datetime
) -> Outcome:
    """End the runs that learn from some batches, then taint what came of them and all that was
    trained from it, and end the runs that go on from such a version."""
    done = Outcome()
    for some in _chunks(batch_ids):
        done.runs += _call_off(tx, wanted, runs.c.batch_id.in_(some), now)
        tainted = taint(tx, knowing(_made_in(some)), wanted.in_words, wanted.actor, now)
        done.versions += _described(tainted.rows)
        done.replaced += tainted.replaced
    if done.versions:
        goes_on = runs.c.parent_id.in_(select(versions.c.id).where(_IS_TAINTED))
        done.runs += _call_off(tx, wanted, goes_on, now)
        n_versions = forgettings.c.n_versions + len(done.versions)
        tx.execute(
            update(forgettings).where(forgettings.c.id == wanted.id).values(n_versions=n_versions)
        )
    return done


def _call_off(
    tx: Connection, wanted: Forgetting, which: ColumnElement[bool], now: datetime
) -> list[RunCancelled | RunCancelAsked]:
    ending = tx.execute(select(runs.c.id).where(_MAY_LEARN, which).order_by(runs.c.id)).scalars()
    locked = [locked_run(tx, run_id) for run_id in ending.all()]
    return [
        call_off(tx, row, wanted.in_words, wanted.actor, now)
        for row in locked
        if RunState(row.state) in UNFINISHED_RUN_STATES  # it may have ended before it was locked
    ]


def _bury(tx: Connection, wanted: Forgetting, rows: Sequence[Row[Any]], now: datetime) -> None:
    """Leave of some outputs their ids, for ever: they stop the same events from coming again."""
    tally = Tally()
    for row in rows:
        tally.move(EventKind.OUTPUT, row.task_type, row.state, EventState.FORGOTTEN, row.confidence)
    tally.write(tx, now)
    tx.execute(
        update(events)
        .where(events.c.id.in_([row.id for row in rows]))
        .values(
            payload=FORGOTTEN_OUTPUT,
            subject=None,
            model_version=None,
            reason=wanted.in_words,
            state=EventState.FORGOTTEN,
            state_since=now,
        )
    )
    record(
        tx,
        [
            Move(
                "event",
                str(row.id),
                row.state,
                EventState.FORGOTTEN,
                wanted.in_words,
                wanted.actor,
            )
            for row in rows
        ],
        now,
    )


def _retire(tx: Connection, wanted: Forgetting, which: ColumnElement[bool], now: datetime) -> int:
    """Take examples out of the frozen set; what evaluations say of them keeps its ids."""
    rows = tx.execute(select(evaluation_examples).where(which)).all()
    if not rows:
        return 0
    tx.execute(
        insert(retired_examples),
        [
            {
                "id": row.id,
                "task_type": row.task_type,
                "event_id": row.event_id,
                "batch_id": row.batch_id,
                "source": row.source,
                "forgetting_id": wanted.id,
                "added_at": row.added_at,
                "retired_at": now,
            }
            for row in rows
        ],
    )
    for some in _chunks([row.id for row in rows]):
        tx.execute(delete(evaluation_examples).where(evaluation_examples.c.id.in_(some)))
    _rename_categories(tx, {row.category for row in rows} - {None})
    return len(rows)


def _rename_categories(tx: Connection, categories: set[str]) -> None:
    """Take out of reports the categories that no example has any more: producers name them."""
    for category in sorted(categories):
        if not _count(tx, evaluation_examples, evaluation_examples.c.category == category):
            for row in tx.execute(select(evaluations.c.id, evaluations.c.report)).all():
                slices = (row.report.get("forgetting") or {}).get("slices", ())
                named = [
                    one for one in slices if (one["kind"], one["name"]) == ("category", category)
                ]
                for one in named:
                    one["name"] = "forgotten"
                if named:
                    tx.execute(
                        update(evaluations)
                        .where(evaluations.c.id == row.id)
                        .values(report=row.report)
                    )


def _lost_lessons(tx: Connection, line: str) -> Sequence[Mapping[str, Any]]:
    """What the versions of a line had learned that stood when they were tainted: rows of
    returned_events, without what a batch has tried again since."""
    since = {
        row.ref: row.at
        for row in tx.execute(
            select(transitions.c.ref, transitions.c.at).where(
                transitions.c.kind == "version",
                transitions.c.to_state == VersionState.TAINTED,
                transitions.c.from_state.in_([VersionState.RELEASED, VersionState.SUPERSEDED]),
            )
        )
    }
    made = tx.execute(
        select(versions.c.id, runs.c.batch_id)
        .join(runs, runs.c.id == versions.c.run_id)
        .where(versions.c.line == line, _IS_TAINTED)
        .order_by(versions.c.id)
    ).all()
    again, at = batch_members.alias("again"), batches.alias("at")
    lost: dict[int, str] = {}
    for row in made:
        if (tainted_at := since.get(str(row.id))) is None:
            continue
        tried_since = (
            select(again.c.event_id)
            .join(at, at.c.id == again.c.batch_id)
            .where(
                again.c.event_id == batch_members.c.event_id,
                again.c.role == Role.RETRY,
                at.c.sealed_at >= tainted_at,
            )
            .exists()
        )
        learned = (
            select(batch_members.c.event_id)
            .join(events, events.c.id == batch_members.c.event_id)
            .where(
                batch_members.c.batch_id == row.batch_id,
                batch_members.c.role.in_([Role.TRAIN, Role.RETRY]),
                events.c.state == EventState.SEALED,
                ~rejected_since(events.c.id),
                ~tried_since,
            )
        )
        lost.update(dict.fromkeys(tx.execute(learned).scalars(), row.batch_id))
    return [
        {"line": line, "event_id": event_id, "batch_id": batch_id}
        for event_id, batch_id in sorted(lost.items())
    ]


def _has_forgotten(tx: Connection, run: Row[Any], task_types: frozenset[str] | None) -> bool:
    in_batch = (
        select(events.c.id)
        .join(batch_members, batch_members.c.event_id == events.c.id)
        .where(batch_members.c.batch_id == run.batch_id, events.c.state == EventState.FORGOTTEN)
    )
    made = select(versions.c.id).where(versions.c.run_id == run.id, _IS_TAINTED)
    retired = select(retired_examples.c.id).where(retired_examples.c.retired_at >= run.planned_at)
    if task_types is not None:
        retired = retired.where(retired_examples.c.task_type.in_(sorted(task_types)))
    return any(tx.execute(one.limit(1)).first() is not None for one in (in_batch, made, retired))


def _made_in(batch_ids: Sequence[str]) -> Select[tuple[int]]:
    """The versions that some batches made."""
    return (
        select(versions.c.id)
        .join(runs, runs.c.id == versions.c.run_id)
        .where(runs.c.batch_id.in_(batch_ids))
    )


def _learned_in(tx: Connection, output_ids: Sequence[int]) -> Sequence[str]:
    found: set[str] = set()
    for some in _chunks(output_ids):
        members = select(batch_members.c.batch_id).where(
            batch_members.c.event_id.in_(some), batch_members.c.role.in_(LEARNED_ROLES)
        )
        found.update(tx.execute(members.distinct()).scalars())
    return sorted(found)


def _imported_by(target: Target) -> ColumnElement[bool] | None:
    """Examples that somebody labelled for a producer: no event stands behind them."""
    if target.kind is not TargetKind.PRODUCER:
        return None
    return evaluation_examples.c.event_id.is_(None) & (
        evaluation_examples.c.producer == target.name
    )


def _described(rows: Sequence[Row[Any]]) -> list[KnowingVersion]:
    return [
        KnowingVersion(row.line, number_of(row), row.state, row.state == VersionState.RELEASED)
        for row in rows
    ]


def _last(tx: Connection) -> tuple[int, int, int]:
    """The newest row of each table that a forgetting looks through."""
    newest = [
        tx.execute(select(func.max(table.c.id))).scalar() or 0
        for table in (events, feedback, dead_letters)
    ]
    return newest[0], newest[1], newest[2]


def _add(tx: Connection, wanted: Forgetting, counts: Counts) -> None:
    tx.execute(
        update(forgettings)
        .where(forgettings.c.id == wanted.id)
        .values(
            n_outputs=forgettings.c.n_outputs + counts.outputs,
            n_feedback=forgettings.c.n_feedback + counts.feedback,
            n_dead_letters=forgettings.c.n_dead_letters + counts.dead_letters,
            n_held_out=forgettings.c.n_held_out + counts.held_out,
        )
    )


def _plus(one: Counts, other: Counts) -> Counts:
    return Counts(
        one.outputs + other.outputs,
        one.feedback + other.feedback,
        one.dead_letters + other.dead_letters,
        one.held_out + other.held_out,
    )


def _ids(tx: Connection, key: ColumnElement[int], *conditions: ColumnElement[bool]) -> list[int]:
    return list(tx.execute(select(key).where(*conditions).order_by(key)).scalars())


def _count(tx: Connection, table: Table, *conditions: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(table).where(*conditions)
    return int(tx.execute(query).scalar_one())


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
