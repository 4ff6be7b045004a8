"""Measure how long the event loop keeps its callers waiting.

Everything of the daemon shares one loop: a stall delays answers, heartbeats and the stop.
"""

import asyncio
from collections.abc import Callable

LOOK_SECONDS = 0.05
WINDOW_SECONDS = 60.0


class LoopLag:
    """The longest stall of late: of the last one to two minutes."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._window_ends = monotonic() + WINDOW_SECONDS
        self._before = 0.0
        self._now = 0.0

    @property
    def longest_seconds(self) -> float:
        """Each scraper sees a stall, however often the others ask."""
        return max(self._before, self._now)

    def note(self, seconds: float) -> None:
        """A timer fired so much too late."""
        now = self._monotonic()
        if now >= self._window_ends:
            self._before, self._now = self._now, 0.0
            self._window_ends = now + WINDOW_SECONDS
        self._now = max(self._now, seconds)

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            due = self._monotonic() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self.note(self._monotonic() - due)
