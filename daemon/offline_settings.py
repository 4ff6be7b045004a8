"""The stored settings of a daemon that does not run: look at them, and take changes back.

The way out when a daemon refuses to start because what the store says does not fit its file any
more. Sets no value: that needs a daemon, which validates it together with the others.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from daemon.api.ports import SettingsNow
from daemon.installation import DatabaseInUseError, only_daemon_on
from daemon.live_settings import overlaid, source_of
from daemon.settings import Setting, Settings, without_password
from daemon.settings_sources import SettingsError
from daemon.store import Store
from daemon.store.database import address_of
from daemon.store.setting_changes import (
    NothingToUndoError,
    SettingChange,
    SettingChanges,
    StoredSettings,
)
from daemon.store.views.paging import Page
from learning.clock import Clock
from learning.errors import ConflictError, NotFoundError


class DaemonRunsError(ConflictError):
    """A daemon holds the database, so it has to be asked."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"a daemon is using {file}: ask it, without --offline")
        self.file = file


class NoDatabaseError(NotFoundError):
    """There is no database at the address, and none is made by looking."""

    def __init__(self, url: str) -> None:
        super().__init__(f"there is no database {without_password(url)} yet: nothing is stored")


class OfflineSettings:
    """What the store says of the settings, under the settings that a daemon would start with."""

    def __init__(self, given: Settings, changes: SettingChanges, clock: Clock) -> None:
        self._given = given
        self._changes = changes
        self._clock = clock

    async def now(self) -> SettingsNow:
        """What is stored, and nothing else; with why a daemon would not start."""
        stored = await self._changes.stored()
        shown = [
            Setting(".".join(path), json.dumps(one.value), source_of(one), changeable=True)
            for path, one in sorted(stored.values.items())
        ]
        return SettingsNow(stored.revision, shown, self._fault(stored))

    async def history(
        self, key: str | None, *, before: int | None, limit: int
    ) -> Page[SettingChange, int]:
        """Changes with a revision below `before`, newest first."""
        path = None if key is None else tuple(key.split("."))
        return await self._changes.page(path=path, before=before, limit=limit)

    async def unset(self, keys: Sequence[str], *, reason: str, actor: str) -> SettingChange:
        """Take back what is stored of these keys. Raises NothingToUndoError."""
        stored = await self._changes.stored()
        by_key = {".".join(path): path for path in stored.values}
        for key in keys:
            if key not in by_key:
                known = ", ".join(sorted(by_key)) or "nothing"
                raise NothingToUndoError(f"{key} is not set in the store; stored: {known}")
        change, _ = await self._changes.change(
            stored.revision,
            {by_key[key]: None for key in keys},
            reason=reason,
            actor=actor,
            now=self._clock(),
        )
        return change

    async def undo(self, revision: int | None, *, reason: str, actor: str) -> SettingChange:
        """Take a change back, or the last one. Raises NothingToUndoError."""
        seen = await self._changes.revision()
        undone = (
            await self._changes.last_to_undo()
            if revision is None
            else await self._changes.to_undo(revision)
        )
        change, _ = await self._changes.change(
            seen,
            {move.path: move.before for move in undone.moves},
            reason=reason,
            actor=actor,
            now=self._clock(),
            undoes=undone.revision,
        )
        return change

    def _fault(self, stored: StoredSettings) -> str:
        try:
            overlaid(self._given, stored.values)
        except SettingsError as error:
            return str(error)
        return ""


@contextlib.asynccontextmanager
async def offline_settings(settings: Settings, clock: Clock) -> AsyncIterator[OfflineSettings]:
    """Open the database as a daemon would; no daemon may run on a SQLite file meanwhile.

    Raises DaemonRunsError, NoDatabaseError and StoreUnavailableError.
    """
    _require_database(settings.database_url)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_daemon_on(settings.database_url))
        except DatabaseInUseError as error:
            raise DaemonRunsError(error.file) from error
        database = await Store.open_database(settings.database_url)
        try:
            yield OfflineSettings(settings, SettingChanges(database), clock)
        finally:
            await database.close()


def _require_database(url: str) -> None:
    address = address_of(url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        raise NoDatabaseError(url)
