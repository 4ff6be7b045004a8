"""Settings that were changed at run time: what holds, every change, what an undo takes back.

Append only, and knows no setting: a path is a list of names, a value is JSON. A change is
compare-and-set on the revision that its maker saw, so that what was validated together is
what is stored together, and of two hands one is told to look again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, func, insert, select

from daemon.settings import KeyPath
from daemon.store.database import Database
from daemon.store.dialect import insert_new
from daemon.store.tables import setting_changes
from daemon.store.views.paging import Page
from learning.errors import ConflictError, NotFoundError

_IS_UNDO = setting_changes.c.undoes.is_not(None)
_UNDONE = select(setting_changes.c.undoes).where(_IS_UNDO)
_STANDS = ~_IS_UNDO & setting_changes.c.revision.not_in(_UNDONE)


class SettingsMovedError(ConflictError):
    """The settings were changed by another hand since they were looked at."""

    def __init__(self, seen: int, revision: int) -> None:
        super().__init__(
            f"the settings are at revision {revision} now, not at {seen}:"
            " `learnd settings history` shows what changed; look, and try again"
        )
        self.seen, self.revision = seen, revision


class UnknownRevisionError(NotFoundError):
    """No change of the settings has this number."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"there is no revision {revision}; `learnd settings history` lists them")
        self.revision = revision


class NothingToUndoError(ConflictError):
    """There is no change that could be taken back, or it was taken back or overtaken already."""


@dataclass(frozen=True)
class StoredSetting:
    """What the store says of one setting, and who said so."""

    value: Any
    """JSON; never None."""
    revision: int
    actor: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class StoredSettings:
    """All that the store says of settings, as of one revision; 0 while nothing was changed."""

    revision: int = 0
    values: Mapping[KeyPath, StoredSetting] = field(default_factory=dict)


@dataclass(frozen=True)
class SettingMove:
    """How one setting changed; None where the store says nothing of it."""

    path: KeyPath
    before: Any
    after: Any

    @property
    def key(self) -> str:
        """Its path as a person types it."""
        return ".".join(self.path)


@dataclass(frozen=True)
class SettingChange:
    """Settings that were changed together."""

    revision: int
    moves: Sequence[SettingMove]
    actor: str
    reason: str
    at: datetime
    undoes: int | None
    undone_by: int | None


class SettingChanges:
    """The changes of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def revision(self) -> int:
        """The number of the last change; 0 before the first."""
        return await self._database.read(_revision)

    async def stored(self) -> StoredSettings:
        """What holds now."""
        return await self._database.read(stored_settings)

    async def change(
        self,
        seen: int,
        values: Mapping[KeyPath, Any],
        *,
        reason: str,
        actor: str,
        now: datetime,
        undoes: int | None = None,
    ) -> tuple[SettingChange, StoredSettings]:
        """Store values as the revision after `seen`; None takes back what the store says.

        Returns the change, and what holds with it. Raises SettingsMovedError when another
        hand was quicker; then nothing is stored.
        """

        def transaction(tx: Connection) -> tuple[SettingChange, StoredSettings]:
            holding = stored_settings(tx)
            moves = [
                SettingMove(path, _value_of(holding.values.get(path)), value)
                for path, value in values.items()
            ]
            change = SettingChange(seen + 1, moves, actor, reason, now, undoes, None)
            if holding.revision != seen or not _append(tx, change):
                raise SettingsMovedError(seen, _revision(tx))
            return change, stored_settings(tx)

        return await self._database.write(transaction)

    async def one(self, revision: int) -> SettingChange:
        """One change. Raises UnknownRevisionError."""
        return await self._database.read(lambda tx: _one(tx, revision))

    async def last_to_undo(self, path: KeyPath | None = None) -> SettingChange:
        """The last change, of one setting or of any, that stands and is no undo itself.

        Raises NothingToUndoError.
        """
        return await self._database.read(lambda tx: last_to_undo(tx, path))

    async def to_undo(self, revision: int) -> SettingChange:
        """A change that can be taken back.

        Raises UnknownRevisionError, and NothingToUndoError when it is an undo, was taken back,
        or a later change that stands is about one of its settings.
        """
        return await self._database.read(lambda tx: to_undo(tx, revision))

    async def page(
        self, *, path: KeyPath | None = None, before: int | None = None, limit: int = 50
    ) -> Page[SettingChange, int]:
        """Changes with a revision below `before`, of one setting or of all, newest first."""

        def query(tx: Connection) -> Page[SettingChange, int]:
            wanted = select(setting_changes.c.revision).distinct()
            if path is not None:
                wanted = wanted.where(setting_changes.c.path == _text(path))
            if before is not None:
                wanted = wanted.where(setting_changes.c.revision < before)
            revisions = (
                tx.execute(wanted.order_by(setting_changes.c.revision.desc()).limit(limit + 1))
                .scalars()
                .all()
            )
            shown = revisions[:limit]
            following = shown[-1] if len(revisions) > limit else None
            return Page(_changes(tx, shown), following)

        return await self._database.read(query)


def stored_settings(tx: Connection) -> StoredSettings:
    """What holds now."""
    newest = (
        select(setting_changes.c.path, func.max(setting_changes.c.revision).label("revision"))
        .group_by(setting_changes.c.path)
        .subquery()
    )
    rows = tx.execute(
        select(setting_changes).join(
            newest,
            and_(
                setting_changes.c.path == newest.c.path,
                setting_changes.c.revision == newest.c.revision,
            ),
        )
    )
    values = {
        tuple(json.loads(row.path)): StoredSetting(
            json.loads(row.after), row.revision, row.actor, row.reason, row.at
        )
        for row in rows
        if row.after is not None
    }
    return StoredSettings(_revision(tx), values)


def last_to_undo(tx: Connection, path: KeyPath | None = None) -> SettingChange:
    """See SettingChanges.last_to_undo."""
    query = select(func.max(setting_changes.c.revision)).where(_STANDS)
    if path is not None:
        query = query.where(setting_changes.c.path == _text(path))
    revision = tx.execute(query).scalar()
    if revision is None:
        of = f" of {'.'.join(path)}" if path is not None else ""
        raise NothingToUndoError(f"there is no change{of} to undo: it is as configured")
    return to_undo(tx, revision)


def to_undo(tx: Connection, revision: int) -> SettingChange:
    """See SettingChanges.to_undo."""
    change = _one(tx, revision)
    if change.undoes is not None:
        raise NothingToUndoError(f"revision {revision} is an undo: set the value that you want")
    if change.undone_by is not None:
        raise NothingToUndoError(f"revision {change.undone_by} has undone {revision} already")
    later = tx.execute(
        select(func.min(setting_changes.c.revision)).where(
            _STANDS,
            setting_changes.c.revision > revision,
            setting_changes.c.path.in_([_text(move.path) for move in change.moves]),
        )
    ).scalar()
    if later is not None:
        raise NothingToUndoError(
            f"revision {later} has changed a setting of {revision} again: undo that first"
        )
    return change


def _append(tx: Connection, change: SettingChange) -> bool:
    """Whether the change is stored: its first row is, unless another has its revision."""
    first, *others = [
        {
            "revision": change.revision,
            "item": item,
            "path": _text(move.path),
            "before": _json(move.before),
            "after": _json(move.after),
            "actor": change.actor,
            "reason": change.reason,
            "undoes": change.undoes,
            "at": change.at,
        }
        for item, move in enumerate(change.moves)
    ]
    if tx.execute(insert_new(tx, setting_changes, "revision").values(**first)).first() is None:
        return False
    if others:
        tx.execute(insert(setting_changes), others)
    return True


def _one(tx: Connection, revision: int) -> SettingChange:
    found = _changes(tx, [revision])
    if not found:
        raise UnknownRevisionError(revision)
    return found[0]


def _changes(tx: Connection, revisions: Sequence[int]) -> list[SettingChange]:
    """The changes of these revisions that there are, newest first."""
    rows: dict[int, list[Row[Any]]] = {}
    for row in tx.execute(
        select(setting_changes)
        .where(setting_changes.c.revision.in_(revisions))
        .order_by(setting_changes.c.revision.desc(), setting_changes.c.item)
    ):
        rows.setdefault(row.revision, []).append(row)
    undone_by = {
        row.undoes: row.revision
        for row in tx.execute(
            select(setting_changes.c.undoes, setting_changes.c.revision).where(
                setting_changes.c.undoes.in_(revisions)
            )
        )
    }
    return [
        SettingChange(
            revision,
            [
                SettingMove(tuple(json.loads(row.path)), _read(row.before), _read(row.after))
                for row in items
            ],
            items[0].actor,
            items[0].reason,
            items[0].at,
            items[0].undoes,
            undone_by.get(revision),
        )
        for revision, items in rows.items()
    ]


def _revision(tx: Connection) -> int:
    revision: int | None = tx.execute(select(func.max(setting_changes.c.revision))).scalar()
    return revision or 0


def _value_of(stored: StoredSetting | None) -> Any:
    return None if stored is None else stored.value


def _text(path: KeyPath) -> str:
    return json.dumps(path)


def _json(value: Any) -> str | None:
    """ASCII, so that both databases keep any text that a value holds."""
    return None if value is None else json.dumps(value, allow_nan=False)


def _read(text: str | None) -> Any:
    return None if text is None else json.loads(text)
