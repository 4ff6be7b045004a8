"""Change settings while learnd runs: validated as a whole, stored with who and why, taken over.

A change is in the store before it holds anywhere. The daemon that was asked has it when the
call returns; the others of the database look every FOLLOW_SECONDS.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import structlog

from daemon.api.ports import SettingsNow
from daemon.changeable import changeable_path, require_no_secret
from daemon.live_settings import LiveSettings
from daemon.settings import KeyPath
from daemon.settings_sources import SettingsError
from daemon.store import Store
from daemon.store.setting_changes import (
    NothingToUndoError,
    SettingChange,
    SettingChanges,
    SettingsMovedError,
    StoredSettings,
)
from daemon.store.tables import keepable
from daemon.store.views.paging import Page
from finetune.waking import woken
from learning.clock import Clock
from learning.facts import Announce, SettingsChanged
from learning.lines import ModelLine
from learning.ports import StoreUnavailableError

log = structlog.get_logger(__name__)

FOLLOW_SECONDS = 2.0
"""How often a daemon looks what others have changed."""
ATTEMPTS = 5
"""How often a change is validated anew because another hand was quicker."""
LONGEST_VALUE = 20_000
"""Characters of one value, as JSON."""


_Wanted = tuple[Mapping[KeyPath, Any], int | None]
"""Values to be stored, and the revision that they take back."""


class SettingsDesk:
    """Where settings are looked at and changed; implements daemon.api.ports.SettingOperations."""

    def __init__(
        self, live: LiveSettings, changes: SettingChanges, announce: Announce, clock: Clock
    ) -> None:
        self._live = live
        self._changes = changes
        self._announce = announce
        self._clock = clock

    def now(self) -> SettingsNow:
        """See daemon.api.ports.SettingOperations."""
        return SettingsNow(self._live.seen, self._live.now.explain(), self._live.fault)

    async def history(
        self, *, key: str | None, before: int | None, limit: int
    ) -> Page[SettingChange, int]:
        """See daemon.api.ports.SettingOperations."""
        path = None if key is None else changeable_path(key, self._live.now)
        return await self._changes.page(path=path, before=before, limit=limit)

    async def change(
        self, values: Mapping[str, Any], *, reason: str, actor: str, if_revision: int | None
    ) -> SettingChange:
        """See daemon.api.ports.SettingOperations."""
        by_path = {changeable_path(key, self._live.now): value for key, value in values.items()}
        for path, value in by_path.items():
            _require_storable(path, value)
            require_no_secret(path, value, self._live.now)

        async def wanted(stored: StoredSettings) -> _Wanted:
            for path, value in by_path.items():
                if value is None and path not in stored.values:
                    key = ".".join(path)
                    raise NothingToUndoError(f"{key} is not set in the store: it is as configured")
            return by_path, None

        return await self._store(wanted, reason, actor, if_revision)

    async def undo(
        self,
        *,
        revision: int | None,
        key: str | None,
        reason: str,
        actor: str,
        if_revision: int | None,
    ) -> SettingChange:
        """See daemon.api.ports.SettingOperations."""
        path = None if key is None else changeable_path(key, self._live.now)

        async def wanted(_stored: StoredSettings) -> _Wanted:
            undone = (
                await self._changes.to_undo(revision)
                if revision is not None
                else await self._changes.last_to_undo(path)
            )
            return {move.path: move.before for move in undone.moves}, undone.revision

        return await self._store(wanted, reason, actor, if_revision)

    async def _store(
        self,
        wanted: Callable[[StoredSettings], Awaitable[_Wanted]],
        reason: str,
        actor: str,
        if_revision: int | None,
    ) -> SettingChange:
        """Validate against what is stored, and store unless that has moved; then look again."""
        for attempt in range(1, ATTEMPTS + 1):
            stored = await self._changes.stored()
            if if_revision is not None and if_revision != stored.revision:
                raise SettingsMovedError(if_revision, stored.revision)
            values, undoes = await wanted(stored)
            self._live.tried(stored, values)
            try:
                change, stored = await self._changes.change(
                    stored.revision,
                    values,
                    reason=reason,
                    actor=actor,
                    now=self._clock(),
                    undoes=undoes,
                )
            except SettingsMovedError:
                if if_revision is not None or attempt == ATTEMPTS:
                    raise
                continue
            self._live.take(stored)
            keys = [".".join(path) for path in values]
            self._announce(SettingsChanged(change.revision, keys, actor, reason, undoes))
            return change
        raise AssertionError("the loop above ends by itself")


class SettingsFollower:
    """Takes over what other daemons change, and has the store follow every change.

    A line with a new base model is noted, a batch size begins anew, what waited for a setting
    is tried again; then `settled` is told to look.
    """

    def __init__(
        self,
        live: LiveSettings,
        store: Store,
        announce: Announce,
        clock: Clock,
        settled: Sequence[Callable[[], None]],
    ) -> None:
        self._live = live
        self._store = store
        self._announce = announce
        self._clock = clock
        self._settled = settled
        self._revision = live.revision
        self._batch_size = live.size_rules().start
        self._wake = asyncio.Event()
        live.listen(self._wake.set)

    async def run(self) -> None:
        """Follow, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.look()
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="settings", error=str(error))
            await woken(self._wake, within_seconds=FOLLOW_SECONDS)

    async def look(self) -> None:
        """Take over what is new, and settle it. Raises StoreUnavailableError: then look again."""
        if await self._store.setting_changes.revision() > self._live.seen:
            self._live.take(await self._store.setting_changes.stored())
        revision = self._live.revision
        if revision == self._revision:
            return
        now = self._clock()
        await self._store.registry.ensure_lines(named_lines(self._live), now)
        await self._store.runs.resume_waiting(now, f"tried again with settings {revision}")
        # Only after a change of it: daemons whose files differ would fight over the sizes.
        if (batch_size := self._live.size_rules().start) != self._batch_size:
            for fact in await self._store.batch_sizes.follow_settings(now):
                self._announce(fact)
            self._batch_size = batch_size
        self._revision = revision
        log.info("settings hold", revision=revision)
        for listener in self._settled:
            listener()


def named_lines(live: LiveSettings) -> list[ModelLine]:
    """The lines that the settings name; the others begin with their first run."""
    return [line for line in live.lines if line.name in live.now.lines]


def _require_storable(path: KeyPath, value: Any) -> None:
    """Raises SettingsError for what no database keeps, or too much of it."""
    if any(keepable(text) != text for text in _texts([*path, value])):
        raise SettingsError([f"{keepable('.'.join(path))}: must be text without U+0000"])
    try:
        length = len(json.dumps(value, allow_nan=False))
    except (ValueError, RecursionError):
        raise SettingsError([f"{'.'.join(path)}: must be JSON, with finite numbers"]) from None
    if length > LONGEST_VALUE:
        raise SettingsError(
            [f"{'.'.join(path)}: {length:,} characters are more than {LONGEST_VALUE:,}"]
        )


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names included."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            for name, item in value.items():
                yield name
                yield from _texts(item)
