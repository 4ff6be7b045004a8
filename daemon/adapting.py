"""Adapt settings to what people say of the outputs: the loop around learning/adaptation.py.

A step is a change of settings like a person's: through the desk, validated, in the history with
its numbers, taken over by every daemon, undone with one command. It is compare-and-set on the
revision that it was decided at, so that of several daemons one makes it.
"""

import asyncio
from collections.abc import Sequence

import structlog

from daemon.changing_settings import SettingsDesk
from daemon.live_settings import LiveSettings
from daemon.settings_sources import SettingsError
from daemon.store.knobs import Knobs, KnobsSeen
from daemon.store.setting_changes import SettingChange, SettingsMovedError
from learning.adaptation import ACTOR, AUTO_APPROVAL, THRESHOLD, Thought, consider
from learning.clock import Clock
from learning.errors import ConflictError
from learning.ports import StoreUnavailableError

log = structlog.get_logger(__name__)


class Adapter:
    """Thinks the adapting settings over, again and again."""

    def __init__(self, knobs: Knobs, desk: SettingsDesk, live: LiveSettings, clock: Clock) -> None:
        self._knobs = knobs
        self._desk = desk
        self._live = live
        self._clock = clock

    async def run(self) -> None:
        """Adapt, until cancelled. Not at once: at a start nothing is known yet."""
        while True:
            await asyncio.sleep(self._live.now.adaptation.every_seconds)
            try:
                await self.adapt()
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="adaptation", error=str(error))

    async def thoughts(self) -> Sequence[Thought]:
        """What it thinks of each setting now; nothing is changed."""
        return (await self._think())[1]

    async def adapt(self) -> SettingChange | None:
        """Make the first step that is wanted, if any; another one waits for the next look.

        None too when another hand was quicker. Raises StoreUnavailableError.
        """
        seen, thoughts = await self._think()
        for knob, thought in zip(seen.knobs, thoughts, strict=True):
            if thought.step is None:
                continue
            try:
                if thought.step.value is None:
                    return await self._desk.undo(
                        revision=knob.adapted_by,
                        key=None,
                        reason=thought.reason,
                        actor=ACTOR,
                        if_revision=seen.revision,
                    )
                return await self._desk.change(
                    {thought.key: thought.step.value},
                    reason=thought.reason,
                    actor=ACTOR,
                    if_revision=seen.revision,
                )
            except SettingsMovedError:
                return None
            except (SettingsError, ConflictError) as error:
                log.warning("settings cannot adapt", key=thought.key, why=str(error))
        return None

    async def _think(self) -> tuple[KnobsSeen, Sequence[Thought]]:
        settings, now = self._live.now, self._clock()
        rules = settings.adaptation_rules()
        values = {
            THRESHOLD: settings.policy.feedback_threshold,
            AUTO_APPROVAL: float(settings.policy.enable_auto_approval),
        }
        seen = await self._knobs.look(values, rules.window, now)
        return seen, consider(seen.knobs, seen.evidence, seen.changes_today, rules, now)
