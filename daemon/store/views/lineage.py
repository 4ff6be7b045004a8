"""Which versions know an event, and which events made a version: both ways, through parents.

A version knows an event when it, or a version that it was trained from, was made by a run
on a batch in which the event trained (as train, replay or retry), or was learned from as
rejected (as preference). A held-out event judges versions and is known to none; its membership
is told apart.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import CTE, ColumnElement, Connection, Row, func, literal, select

from daemon.store.database import Database
from daemon.store.names import is_event
from daemon.store.registry import knowing, number_of
from daemon.store.tables import (
    batch_members,
    batches,
    evaluation_examples,
    events,
    imports,
    rejected_outputs,
    runs,
    versions,
)
from daemon.store.views.events import EventSummary, summary_of
from daemon.store.views.models import version_row
from daemon.store.views.paging import Page
from daemon.store.views.runs import members_by_role
from daemon.store.views.version_numbers import champion_ids, number, numbers_of
from learning.errors import NotFoundError
from learning.lifecycle import LEARNED_ROLES, Role

MOST_VERSIONS = 500
"""How many versions one answer lists, the newest first; the count is always of all."""

EVENT_FORMS = "EVENT_ID (a number) or PRODUCER/EVENT_ID"
FORMS = "EVENT_ID (a number), PRODUCER/EVENT_ID, b-BATCH, r-RUN, or LINE@VERSION"


class UnreadableIdError(NotFoundError):
    """A text is none of the ids that were asked for."""

    def __init__(self, text: str, what: str, forms: str) -> None:
        super().__init__(f"{text!r} is no id of {what}: give {forms}")
        self.text = text


@dataclass(frozen=True)
class Use:
    """One batch that an event is a member of, and what came of it."""

    batch_id: str
    line: str
    role: str
    better: str | None
    """PRODUCER/EVENT_ID of the better answer, where it is the rejected one of a pair."""
    worse: Sequence[str]
    """The rejected answers that this one was the better answer to."""
    sealed_at: datetime
    run_id: str | None
    run_state: str | None
    outcome: str | None
    version: str | None
    version_state: str | None


@dataclass(frozen=True)
class Knowing:
    """A version that knows an event."""

    line: str
    version: str
    state: str
    is_champion: bool
    parent: str | None
    directly: bool
    """Whether its own run trained on the event; otherwise it knows it through its parent."""


@dataclass(frozen=True)
class EventLineage:
    """Forward: from an event to the versions that know it."""

    event: EventSummary
    uses: Sequence[Use]
    held_out: bool
    frozen: bool
    """Whether it stands in the frozen held-out set."""
    rejected_use: str | None
    """Of a rejected output that its line has looked at; see learning.preferences.RejectedUse."""
    known_by: Sequence[Knowing]
    n_known_by: int
    kind: Literal["event"] = "event"


@dataclass(frozen=True)
class Member:
    """One event of a batch."""

    event_row_id: int
    producer: str
    event_id: str
    task_type: str
    role: str
    better: str | None
    """PRODUCER/EVENT_ID of the better answer, of the rejected one of a pair."""


@dataclass(frozen=True)
class Imported:
    """The dataset file that a batch was made of."""

    file: str
    sha256: str


@dataclass(frozen=True)
class BatchLineage:
    """A batch, in the middle: its events on one side, its run and version on the other."""

    batch_id: str
    line: str
    trigger: str
    state: str
    actor: str
    sealed_at: datetime
    imported: Imported | None
    run_id: str | None
    run_state: str | None
    outcome: str | None
    version: str | None
    version_state: str | None
    counts: Mapping[str, int]
    """Members by role."""
    members: Page[Member, int]
    kind: Literal["batch"] = "batch"


@dataclass(frozen=True)
class Generation:
    """One version in a chain of parents, and the batch that made it."""

    version: str
    state: str
    is_champion: bool
    run_id: str | None
    batch_id: str | None
    counts: Mapping[str, int]


@dataclass(frozen=True)
class VersionLineage:
    """Backward: from a version through its parents to the events that made it."""

    line: str
    version: str
    state: str
    is_champion: bool
    base_model: str
    chain: Sequence[Generation]
    """The version itself first, the declared base last."""
    n_events: int
    """Different events that trained it or its parents."""
    events: Page[Member, int]
    """These events, each once, with its role in the oldest batch that trained on it."""
    kind: Literal["version"] = "version"


_better = events.alias("better")
_BETTER = (_better.c.producer + "/" + _better.c.event_id).label("better")
_MEMBER: tuple[ColumnElement[Any], ...] = (
    events.c.id,
    events.c.producer,
    events.c.event_id,
    events.c.task_type,
    batch_members.c.role,
    _BETTER,
)

Lineage = EventLineage | BatchLineage | VersionLineage


class Lineages:
    """Answers `learnd lineage ID`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, text: str, *, after: int | None = None, limit: int = 100) -> Lineage:
        """The lineage of an id in one of FORMS; `after` and `limit` page through events.

        Raises UnreadableIdError, and NotFoundError when there is no such thing.
        """
        return await self._database.read(lambda tx: _lineage(tx, text, after, limit))

    async def event_name(self, text: str) -> str:
        """An event as PRODUCER/EVENT_ID. Raises UnreadableIdError and NotFoundError."""
        row = await self._database.read(lambda tx: event_row(tx, text))
        return f"{row.producer}/{row.event_id}"


def _lineage(tx: Connection, text: str, after: int | None, limit: int) -> Lineage:
    if _names_an_event(text):
        return lineage_of_event(tx, event_row(tx, text))
    if "@" in text:
        line, _, version = text.partition("@")
        return _of_version(tx, version_row(tx, line, version), after, limit)
    if text.startswith("b-"):
        return _of_batch(tx, batches.c.id == text, text, after, limit)
    if text.startswith("r-"):
        return _of_batch(tx, runs.c.id == text, text, after, limit)
    raise UnreadableIdError(text, "anything that has a lineage", FORMS)


# --- forward --------------------------------------------------------------------------


def _names_an_event(text: str) -> bool:
    return "/" in text or re.fullmatch(r"[0-9]{1,18}", text) is not None


def event_row(tx: Connection, text: str) -> Row[Any]:
    """An event by its row id or as PRODUCER/EVENT_ID.

    Raises UnreadableIdError, and NotFoundError when there is no such event.
    """
    if not _names_an_event(text):
        raise UnreadableIdError(text, "an event", EVENT_FORMS)
    producer, slash, event_id = text.partition("/")
    wanted = is_event(tx, producer, event_id) if slash else events.c.id == int(text)
    row = tx.execute(select(events).where(wanted)).first()
    if row is None:
        raise NotFoundError(f"no event {text}; `learnd events list` shows what is stored")
    return row


def lineage_of_event(tx: Connection, row: Row[Any]) -> EventLineage:
    """Forward from a row of the events table."""
    worse = _worse_than(tx, row.id)
    uses = [
        Use(
            batch_id=use.batch_id,
            line=use.line,
            role=use.role,
            better=use.better,
            worse=worse.get(use.batch_id, ()),
            sealed_at=use.sealed_at,
            run_id=use.run_id,
            run_state=use.run_state,
            outcome=use.outcome,
            version=use.version,
            version_state=use.version_state,
        )
        for use in tx.execute(
            _batches_with_results()
            .add_columns(batch_members.c.role, _BETTER)
            .join(batch_members, batch_members.c.batch_id == batches.c.id)
            .outerjoin(_better, _better.c.id == batch_members.c.preferred_id)
            .where(batch_members.c.event_id == row.id)
            .order_by(batches.c.sealed_at, batches.c.id)
        )
    ]
    frozen = tx.execute(
        select(evaluation_examples.c.id).where(evaluation_examples.c.event_id == row.id)
    ).first()
    known_by, n_known_by = _versions_that_know(tx, row.id)
    return EventLineage(
        event=summary_of(row),
        uses=uses,
        held_out=any(use.role == Role.HELD_OUT for use in uses),
        frozen=frozen is not None,
        rejected_use=tx.execute(
            select(rejected_outputs.c.use).where(rejected_outputs.c.event_id == row.id)
        ).scalar(),
        known_by=known_by,
        n_known_by=n_known_by,
    )


def _worse_than(tx: Connection, event_row_id: int) -> Mapping[str, Sequence[str]]:
    """The rejected answers that an event was the better one to, by batch."""
    own, other = batch_members.alias("own"), batch_members.alias("other")
    rows = tx.execute(
        select(other.c.batch_id, events.c.producer, events.c.event_id)
        .select_from(own)
        .join(
            other,
            (other.c.batch_id == own.c.batch_id) & (other.c.preferred_id == own.c.event_id),
        )
        .join(events, events.c.id == other.c.event_id)
        .where(own.c.event_id == event_row_id)
        .order_by(events.c.id)
    )
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row.batch_id].append(f"{row.producer}/{row.event_id}")
    return found


def _versions_that_know(tx: Connection, event_row_id: int) -> tuple[Sequence[Knowing], int]:
    made_from_it = (
        select(versions.c.id)
        .join(runs, runs.c.id == versions.c.run_id)
        .join(batch_members, batch_members.c.batch_id == runs.c.batch_id)
        .where(
            batch_members.c.event_id == event_row_id,
            batch_members.c.role.in_(LEARNED_ROLES),
        )
    )
    direct = set(tx.execute(made_from_it).scalars())
    knowing_it = knowing(made_from_it)
    n_known_by = tx.execute(select(func.count()).select_from(knowing_it.subquery())).scalar_one()
    rows = tx.execute(
        select(versions)
        .where(versions.c.id.in_(knowing_it))
        .order_by(versions.c.id.desc())
        .limit(MOST_VERSIONS)
    ).all()
    parents = numbers_of(tx, (row.parent_id for row in rows))
    champions = champion_ids(tx)
    return [
        Knowing(
            line=row.line,
            version=number_of(row),
            state=row.state,
            is_champion=row.id in champions,
            parent=parents.get(row.parent_id),
            directly=row.id in direct,
        )
        for row in rows
    ], n_known_by


# --- in the middle --------------------------------------------------------------------


def _batches_with_results() -> Any:
    return (
        select(
            batches.c.id.label("batch_id"),
            batches.c.line,
            batches.c.trigger,
            batches.c.state,
            batches.c.actor,
            batches.c.sealed_at,
            runs.c.id.label("run_id"),
            runs.c.state.label("run_state"),
            runs.c.outcome,
            number.label("version"),
            versions.c.state.label("version_state"),
        )
        .outerjoin(runs, runs.c.batch_id == batches.c.id)
        .outerjoin(versions, versions.c.run_id == runs.c.id)
    )


def _of_batch(
    tx: Connection, wanted: ColumnElement[bool], text: str, after: int | None, limit: int
) -> BatchLineage:
    row = tx.execute(_batches_with_results().where(wanted)).first()
    if row is None:
        raise NotFoundError(f"there is no {text}; `learnd runs` lists runs with their batches")
    members = (
        select(*_MEMBER)
        .join(events, events.c.id == batch_members.c.event_id)
        .outerjoin(_better, _better.c.id == batch_members.c.preferred_id)
        .where(batch_members.c.batch_id == row.batch_id)
    )
    if after is not None:
        members = members.where(batch_members.c.event_id > after)
    rows = tx.execute(members.order_by(batch_members.c.event_id).limit(limit)).all()
    return BatchLineage(
        batch_id=row.batch_id,
        line=row.line,
        trigger=row.trigger,
        state=row.state,
        actor=row.actor,
        sealed_at=row.sealed_at,
        imported=_file_of(tx, row.batch_id),
        run_id=row.run_id,
        run_state=row.run_state,
        outcome=row.outcome,
        version=row.version,
        version_state=row.version_state,
        counts=members_by_role(tx, row.batch_id),
        members=_member_page(rows, limit),
    )


def _file_of(tx: Connection, batch_id: str) -> Imported | None:
    row = tx.execute(
        select(imports.c.file, imports.c.sha256).where(imports.c.batch_id == batch_id)
    ).first()
    return None if row is None else Imported(row.file, row.sha256)


def _member_page(rows: Sequence[Row[Any]], limit: int) -> Page[Member, int]:
    return Page(
        [
            Member(row.id, row.producer, row.event_id, row.task_type, row.role, row.better)
            for row in rows
        ],
        rows[-1].id if len(rows) == limit else None,
    )


# --- backward -------------------------------------------------------------------------


def _of_version(tx: Connection, row: Row[Any], after: int | None, limit: int) -> VersionLineage:
    chain = _chain(row.id)
    champions = champion_ids(tx)
    generations = tx.execute(
        select(versions, runs.c.batch_id)
        .join(chain, chain.c.id == versions.c.id)
        .outerjoin(runs, runs.c.id == versions.c.run_id)
        .order_by(chain.c.depth)
        .limit(MOST_VERSIONS)
    ).all()
    n_events, page = _events_behind(tx, chain, after, limit)
    return VersionLineage(
        line=row.line,
        version=number_of(row),
        state=row.state,
        is_champion=row.id in champions,
        base_model=row.base_model,
        chain=[
            Generation(
                version=number_of(one),
                state=one.state,
                is_champion=one.id in champions,
                run_id=one.run_id,
                batch_id=one.batch_id,
                counts=members_by_role(tx, one.batch_id) if one.batch_id is not None else {},
            )
            for one in generations
        ],
        n_events=n_events,
        events=page,
    )


def _chain(version_id: int) -> CTE:
    """The version and its ancestors, with their distance from it."""
    chain = (
        select(versions.c.id, versions.c.parent_id, literal(0).label("depth"))
        .where(versions.c.id == version_id)
        .cte("chain", recursive=True)
    )
    parent = versions.alias("parent")
    return chain.union_all(
        select(parent.c.id, parent.c.parent_id, chain.c.depth + 1).where(
            parent.c.id == chain.c.parent_id
        )
    )


def _events_behind(
    tx: Connection, chain: CTE, after: int | None, limit: int
) -> tuple[int, Page[Member, int]]:
    """How many different events trained a chain of versions, and a page of them by row id."""
    trained = (
        select(
            batch_members.c.event_id.label("event_row_id"),
            func.min(versions.c.id).label("first_version"),
        )
        .join(runs, runs.c.batch_id == batch_members.c.batch_id)
        .join(versions, versions.c.run_id == runs.c.id)
        .where(
            versions.c.id.in_(select(chain.c.id)),
            batch_members.c.role.in_(LEARNED_ROLES),
        )
        .group_by(batch_members.c.event_id)
    )
    n_events = tx.execute(select(func.count()).select_from(trained.subquery())).scalar_one()
    if after is not None:
        trained = trained.where(batch_members.c.event_id > after)
    first = trained.order_by(batch_members.c.event_id).limit(limit).subquery()
    rows = tx.execute(
        select(*_MEMBER)
        .select_from(events)
        .join(first, first.c.event_row_id == events.c.id)
        .join(versions, versions.c.id == first.c.first_version)
        .join(runs, runs.c.id == versions.c.run_id)
        .join(
            batch_members,
            (batch_members.c.batch_id == runs.c.batch_id)
            & (batch_members.c.event_id == events.c.id),
        )
        .outerjoin(_better, _better.c.id == batch_members.c.preferred_id)
        .order_by(events.c.id)
    ).all()
    return n_events, _member_page(rows, limit)
