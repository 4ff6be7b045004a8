"""What stands between the queue and a batch: nothing is sealed before it was screened.

The transaction that seals takes only events that have a screening under the rules in force
(`is_cleared`), so it does not matter who screened, when, or whether he was stopped half-way.
What a screening scrubbed is learned from in its scrubbed form, everywhere (`learned_text`).
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, func, select, update

from daemon.store.bookkeeping import Tally
from daemon.store.database import Database
from daemon.store.dialect import CHUNK, replace_all, take_turns
from daemon.store.intake import move_event
from daemon.store.split_sides import SPLIT
from daemon.store.tables import batch_members, events, is_one_of, screenings
from learning.events import OutputEvent
from learning.facts import EventsScreened
from learning.lifecycle import REJECTED_STATES, EventState
from learning.lines import ModelLine
from learning.policy import Verdict
from learning.preferences import Objective
from learning.screening import CLEARED, Finding, Screened, ScreeningOutcome

SCREENING = "screening"
"""The turn of whoever stores screenings, and the actor of what follows from them."""
FIREWALL = "firewall"
"""Whose complaints those of a `Suspicion` are."""
LOOK_BACK = 1_000
"""The newest rejections of a task type that are screened, for lines that learn from such."""

_WITH_TOPICS = ("kafka", "file")
"""Sources whose topics are few."""

Ruleset = Callable[[], str | None]
"""The digest of the rules in force; None where nothing has to be screened."""

_IS_QUEUED = is_one_of(events.c.state, EventState.QUEUED)


@dataclass(frozen=True)
class Passing:
    """A queued event that the validators let pass, about to be cleared for sealing."""

    id: int
    producer: str
    task_type: str
    source: str
    topic: str
    received_at: datetime
    by_human: bool
    """Whether a person's approval stands behind it."""
    event: OutputEvent


class Suspicion(Protocol):
    """Compares events with each other and with the past, and stops those that look wrong."""

    def __call__(
        self, tx: Connection, passing: Sequence[Passing], now: datetime
    ) -> Mapping[int, str]:
        """The reasons in words, by row id, why some of them must wait for an operator.

        Called once for each event, in the order of their ids, in the transaction that clears
        the others for sealing; it has the turn `screening`, so that no other daemon screens
        meanwhile. It may write what it has to remember of those that pass.
        """
        ...


@dataclass(frozen=True)
class Unscreened:
    """A stored event that has no screening under the rules in force."""

    id: int
    event: OutputEvent


def without_rules() -> str | None:
    """The rules of a store in which nothing has to be screened."""
    return None


class Screenings:
    """What is still to be screened in one database, and what was."""

    def __init__(
        self, database: Database, ruleset: Ruleset, suspicion: Suspicion | None = None
    ) -> None:
        self._database = database
        self._ruleset = ruleset
        self._suspicion = suspicion

    async def waiting(self, line: ModelLine, size: int, most: int) -> Sequence[Unscreened]:
        """The first `most` that are not screened among the oldest `size` queued of a line."""

        def query(tx: Connection) -> list[Unscreened]:
            ids = oldest_queued(tx, line, size)
            return _not_cleared(tx, ids, self._ruleset(), most, select(events).where(_IS_QUEUED))

        return await self._database.read(query)

    async def waiting_rejected(self, line: ModelLine, most: int) -> Sequence[Unscreened]:
        """As `waiting`, of the newest rejected outputs, which a line may learn from too."""
        if line.objective is Objective.SFT:
            return ()

        def query(tx: Connection) -> list[Unscreened]:
            ids = sorted(id for name in line.task_types for id in _newest_rejected(tx, name))
            return _not_cleared(tx, ids, self._ruleset(), most, select(events).where(_IS_FREE))

        return await self._database.read(query)

    async def add(
        self, screened: Mapping[int, Screened], ruleset: str, now: datetime
    ) -> EventsScreened:
        """Store what the validators said of some events, and quarantine what they stopped.

        One transaction. Passed over is what meanwhile is in a batch, or was screened under the
        same rules by another daemon.
        """

        def transaction(tx: Connection) -> EventsScreened:
            # With the turn of whoever seals, too: what is in a batch must not change any more.
            take_turns(tx, [SCREENING, SPLIT])
            rows = [
                row
                for row in _locked(tx, screened)
                if row.screened_by != ruleset and row.outcome != ScreeningOutcome.RELEASED
            ]
            found = {row.id: screened[row.id] for row in rows}
            suspects = self._suspects(tx, rows, found, now)
            _store(tx, found, suspects, ruleset, now)
            tally = Tally()
            for row in rows:
                reason = suspects.get(row.id) or found[row.id].reason
                if reason and row.state == EventState.QUEUED:
                    stopped = Verdict(EventState.QUARANTINED, reason, row.by_human)
                    move_event(tx, row, stopped, SCREENING, now, tally)
            tally.write(tx, now)
            return _told(rows, found, suspects)

        return await self._database.write(transaction)

    def _suspects(
        self,
        tx: Connection,
        rows: Sequence[Row[Any]],
        found: Mapping[int, Screened],
        now: datetime,
    ) -> Mapping[int, str]:
        """What the comparison with other events stops; each event is compared once."""
        if self._suspicion is None:
            return {}
        passing = [
            _passing(row, found[row.id])
            for row in rows
            if row.screened_by is None
            and row.state == EventState.QUEUED
            and not found[row.id].complaints
        ]
        return self._suspicion(tx, passing, now) if passing else {}


def oldest_queued(tx: Connection, line: ModelLine, n: int) -> list[int]:
    """The lowest ids of a line's queued events, ascending.

    Asked for one task type at a time, so that each answer comes off the index in order.
    """
    ids = heapq.merge(
        *(
            tx.execute(
                select(events.c.id)
                .where(_IS_QUEUED, events.c.task_type == task_type)
                .order_by(events.c.id)
                .limit(n)
            ).scalars()
            for task_type in sorted(line.task_types)
        )
    )
    return list(itertools.islice(ids, n))


def is_cleared(event_id: ColumnElement[int], ruleset: str) -> ColumnElement[bool]:
    """Whether an event was screened under these rules and may be sealed, or was released."""
    return exists().where(
        screenings.c.event_id == event_id,
        ((screenings.c.ruleset == ruleset) & screenings.c.outcome.in_(CLEARED))
        | (screenings.c.outcome == ScreeningOutcome.RELEASED),
    )


def release(tx: Connection, event_id: int, now: datetime) -> bool:
    """An operator lets an event pass that screening stopped: no rules stop it again.

    Returns whether screening had stopped it; otherwise nothing is done.
    """
    released = tx.execute(
        update(screenings)
        .where(screenings.c.event_id == event_id, screenings.c.outcome == ScreeningOutcome.STOPPED)
        .values(outcome=ScreeningOutcome.RELEASED, at=now)
    )
    return released.rowcount == 1


def topic_of(row: Row[Any]) -> str:
    """What an event's topic is called where topics are told apart; that of a request is its own."""
    return str(row.topic if row.source in _WITH_TOPICS else row.source)


def note_import(
    tx: Connection, screened: Mapping[int, Screened], ruleset: str, now: datetime
) -> None:
    """Store what the validators said of events that are new in this transaction."""
    _store(tx, screened, {}, ruleset, now)


def learned_text() -> ColumnElement[str]:
    """The JSON of an event as it is learned from, in a query of `events`."""
    scrubbed = (
        select(screenings.c.text).where(screenings.c.event_id == events.c.id).scalar_subquery()
    )
    return func.coalesce(scrubbed, events.c.payload).label("learned_text")


def learned_events(tx: Connection, event_ids: Collection[int]) -> dict[int, OutputEvent]:
    """Some events as they are learned from."""
    wanted = sorted(event_ids)
    return {
        row.id: OutputEvent.model_validate_json(row.learned_text)
        for start in range(0, len(wanted), CHUNK)
        for row in tx.execute(
            select(events.c.id, learned_text())
            .where(events.c.id.in_(wanted[start : start + CHUNK]))
            .order_by(events.c.id)
        )
    }


_IS_FREE = is_one_of(events.c.state, *REJECTED_STATES) & ~exists().where(
    batch_members.c.event_id == events.c.id
)
"""Rejected, and in no batch: what is in one keeps the screening that it got in with."""


def _newest_rejected(tx: Connection, task_type: str) -> Iterator[int]:
    yield from tx.execute(
        select(events.c.id)
        .where(is_one_of(events.c.state, *REJECTED_STATES), events.c.task_type == task_type)
        .order_by(events.c.state_since.desc(), events.c.id.desc())
        .limit(LOOK_BACK)
    ).scalars()


def _not_cleared(
    tx: Connection,
    ids: Sequence[int],
    ruleset: str | None,
    most: int,
    those: Select[Any],
) -> list[Unscreened]:
    """The first `most` of some events without a screening under the rules."""
    found: list[Unscreened] = []
    if ruleset is None:
        return found
    for start in range(0, len(ids), CHUNK):
        rows = tx.execute(
            those.where(
                events.c.id.in_(ids[start : start + CHUNK]), ~_is_screened(events.c.id, ruleset)
            )
            .order_by(events.c.id)
            .limit(most - len(found))
        )
        found += [Unscreened(row.id, OutputEvent.model_validate_json(row.payload)) for row in rows]
        if len(found) == most:
            break
    return found


def _is_screened(event_id: ColumnElement[int], ruleset: str) -> ColumnElement[bool]:
    return exists().where(
        screenings.c.event_id == event_id,
        (screenings.c.ruleset == ruleset) | (screenings.c.outcome == ScreeningOutcome.RELEASED),
    )


def _locked(tx: Connection, event_ids: Collection[int]) -> Iterator[Row[Any]]:
    """Those of some events whose screening may still change, with the one that they have."""
    wanted = sorted(event_ids)
    for start in range(0, len(wanted), CHUNK):
        yield from tx.execute(
            select(events, screenings.c.ruleset.label("screened_by"), screenings.c.outcome)
            .outerjoin(screenings, screenings.c.event_id == events.c.id)
            .where(events.c.id.in_(wanted[start : start + CHUNK]), _IS_QUEUED | _IS_FREE)
            .order_by(events.c.id)
            .with_for_update(key_share=True, of=events)
        ).all()


def _passing(row: Row[Any], screened: Screened) -> Passing:
    return Passing(
        id=row.id,
        producer=row.producer,
        task_type=row.task_type,
        source=row.source,
        topic=topic_of(row),
        received_at=row.received_at,
        by_human=row.by_human,
        event=screened.event or OutputEvent.model_validate_json(row.payload),
    )


def _store(
    tx: Connection,
    screened: Mapping[int, Screened],
    suspects: Mapping[int, str],
    ruleset: str,
    now: datetime,
) -> None:
    rows = [
        {
            "event_id": event_id,
            "ruleset": ruleset,
            "outcome": ScreeningOutcome.STOPPED if event_id in suspects else one.outcome,
            "findings": _findings(one, suspects.get(event_id)),
            "cost": dict(one.seconds),
            "text": None if one.event is None else one.event.model_dump_json(exclude_unset=True),
            "at": now,
        }
        for event_id, one in screened.items()
    ]
    replace_all(tx, screenings, ["event_id"], rows)


def _findings(screened: Screened, suspicion: str | None) -> list[dict[str, Any]]:
    complaints = [
        *screened.complaints,
        *([Finding(FIREWALL, suspicion)] if suspicion is not None else []),
    ]
    return [
        {"validator": one.validator, "message": one.message, "scrubbed": scrubbed}
        for ones, scrubbed in ((complaints, False), (screened.scrubbed, True))
        for one in ones
    ]


def _told(
    rows: Sequence[Row[Any]], found: Mapping[int, Screened], suspects: Mapping[int, str]
) -> EventsScreened:
    outcomes: Counter[tuple[str, ScreeningOutcome]] = Counter()
    complaints: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    checks: Counter[str] = Counter()
    for row in rows:
        one = found[row.id]
        outcome = ScreeningOutcome.STOPPED if row.id in suspects else one.outcome
        outcomes[row.task_type, outcome] += 1
        complaints.update(finding.validator for finding in one.complaints)
        complaints[FIREWALL] += row.id in suspects
        for validator, taken in one.seconds.items():
            seconds[validator] += taken
            checks[validator] += 1
    return EventsScreened(outcomes, +complaints, checks, seconds)
