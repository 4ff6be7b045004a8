"""Settings that are looked at and changed, on a real database, for tests of who asks for it."""

from collections.abc import Mapping
from typing import Any

from daemon.changing_settings import SettingsDesk
from daemon.live_settings import LiveSettings
from daemon.settings import Settings
from daemon.store.database import Database
from daemon.store.setting_changes import SettingChanges
from learning.clock import Clock
from learning.facts import Announce


def settings_desk(
    database: Database,
    clock: Clock,
    given: Mapping[str, Any] | None = None,
    *,
    announce: Announce = lambda fact: None,
) -> SettingsDesk:
    """The desk of a daemon that was started with these settings and has found none stored."""
    live = LiveSettings(Settings(**(given or {})))
    return SettingsDesk(live, SettingChanges(database), announce, clock)
