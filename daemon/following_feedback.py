"""Have the bars that outputs are judged by follow what feedback has turned.

The dials are in the store, and fade; the judge asks the live settings. This daemon's digest
wakes the follower, and for what other daemons digest it asks for one number every few seconds.
"""

import asyncio
from datetime import timedelta

import structlog

from daemon.live_settings import LiveSettings
from daemon.store.feedback_dials import FeedbackDials
from finetune.waking import woken
from learning.clock import Clock
from learning.ports import StoreUnavailableError

log = structlog.get_logger(__name__)

FOLLOW_SECONDS = 2.0
"""How often a daemon looks whether another one has turned something."""
FADE_EVERY = timedelta(minutes=1)
"""How often dials are read because they fade: by a ten-thousandth in between."""


class FeedbackFollower:
    """Keeps the live settings at what the dials say."""

    def __init__(self, live: LiveSettings, dials: FeedbackDials, clock: Clock) -> None:
        self._live = live
        self._dials = dials
        self._clock = clock
        self._wake = asyncio.Event()
        self._due = True
        self._revision = 0
        self._read_at = clock()
        live.listen(self.wake)

    def wake(self) -> None:
        """Look now: a dial was turned, or its bounds are others."""
        self._due = True
        self._wake.set()

    async def run(self) -> None:
        """Follow, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.look()
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="feedback", error=str(error))
            await woken(self._wake, within_seconds=FOLLOW_SECONDS)

    async def look(self) -> None:
        """Read the dials when they may say something else. Raises StoreUnavailableError."""
        now = self._clock()
        is_due, self._due = self._due, False
        try:
            revision = await self._dials.revision()
            since = now - self._read_at
            if is_due or revision != self._revision or not timedelta(0) <= since < FADE_EVERY:
                standing = await self._dials.standing(now)
                self._live.adapt(standing.offsets, standing.distrusted)
                self._revision, self._read_at = revision, now
        except StoreUnavailableError:
            self._due = True
            raise
