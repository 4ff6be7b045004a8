"""The daemon's own clockwork: seal batches when they are due, let held events expire.

Each loop is a coroutine that works until it is cancelled; daemon/app.py owns their tasks.
"""

import asyncio
import contextlib
from datetime import timedelta

import structlog

from daemon.store import Store
from learning.batching import BatchRules, due
from learning.clock import Clock
from learning.facts import Announce, EventsExpired
from learning.lines import ModelLines
from learning.ports import StoreUnavailableError
from learning.sampling import SplitRules

log = structlog.get_logger(__name__)

SEAL_SECONDS = 1.0
"""How often age is looked at; new events wake the sealer at once."""
SEAL_PAUSE_SECONDS = 0.2
"""A stream wakes the sealer with each block that is stored; so often it may look."""
EXPIRE_SECONDS = 60.0
STORE_RETRY_SECONDS = 2.0


class Sealer:
    """Turns queues into batches by size and by age."""

    def __init__(
        self,
        store: Store,
        lines: ModelLines,
        batch_rules: BatchRules,
        split_rules: SplitRules,
        announce: Announce,
        clock: Clock,
    ) -> None:
        self._store = store
        self._lines = lines
        self._batch_rules = batch_rules
        self._split_rules = split_rules
        self._announce = announce
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: events were queued, or a line became idle."""
        self._wake.set()

    async def run(self) -> None:
        """Seal what is due, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.seal_due()
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="sealer", error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)
            await asyncio.sleep(SEAL_PAUSE_SECONDS)
            # Not wait_for: up to Python 3.11 it loses a cancellation that comes with the wake-up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SEAL_SECONDS):
                    await self._wake.wait()

    async def seal_due(self) -> None:
        """Seal one batch of each line where one is due."""
        for line in self._lines.owners(await self._store.queue.waiting_task_types()):
            queue = await self._store.queue.look(line)
            batch = due(queue, self._batch_rules, self._clock())
            if batch is None or line.base_model is None:
                continue  # without a base model the events wait where feedback reaches them
            sealed = await self._store.queue.seal(
                line, batch, self._split_rules, "sealer", self._clock()
            )
            if sealed is not None:
                self._announce(sealed)


async def expire_held(store: Store, hold: timedelta, announce: Announce, clock: Clock) -> None:
    """Expire events that waited too long for a verdict, until cancelled."""
    while True:
        now = clock()
        try:
            count = await store.queue.expire(now - hold, now)
        except StoreUnavailableError as error:
            log.warning("store unavailable", loop="expiry", error=str(error))
        else:
            if count:
                announce(EventsExpired(count))
        await asyncio.sleep(EXPIRE_SECONDS)
