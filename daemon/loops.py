"""The daemon's own clockwork: seal what is due, size batches, expire what is held, digest feedback.

Each loop is a coroutine that works until it is cancelled; daemon/app.py owns their tasks.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from consumers.pressure import Pressure
from daemon.store import Store
from daemon.store.digest import MOST as MOST_DIGESTED
from finetune.waking import woken
from learning.batch_sizing import choose_size
from learning.batching import BatchRules, due, is_about_to_fill
from learning.clock import Clock
from learning.facts import Announce, EventsExpired
from learning.lines import ModelLine, ModelLines
from learning.policy import Policy
from learning.ports import StoreUnavailableError
from learning.sampling import SplitRulesOf
from learning.screening import CannotScreenError

log = structlog.get_logger(__name__)

SEAL_SECONDS = 1.0
"""How often age is looked at; new events wake the sealer at once."""
SEAL_PAUSE_SECONDS = 0.2
"""A stream wakes the sealer with each block that is stored; so often it may look."""
SIZE_EVERY = timedelta(seconds=30)
"""How often a line's batch size is thought over; the end of a run asks for it at once."""
EXPIRE_SECONDS = 60.0
STORE_RETRY_SECONDS = 2.0
COUNT_SECONDS = 1.0
STORE_QUIET_SECONDS = 30.0
FOLD_SECONDS = 3_600.0
DIGEST_SECONDS = 2.0
"""How often feedback is looked for that another daemon stored; this one's wakes the digester."""
DIGEST_PAUSE_SECONDS = 0.2


Clear = Callable[[ModelLine, int], Awaitable[bool]]
"""Has the oldest events of a line screened. Returns whether all are; raises CannotScreenError."""


async def without_screening(line: ModelLine, size: int) -> bool:
    """Where nothing has to be screened."""
    return True


class Sealer:
    """Turns queues into batches by size and by age, and lets the size follow what is learned."""

    def __init__(
        self,
        store: Store,
        lines: ModelLines,
        batch_rules: Callable[[], BatchRules],
        split_rules: SplitRulesOf,
        announce: Announce,
        clock: Clock,
        *,
        expect: Callable[[ModelLine], None] = lambda line: None,
        expect_at: float = 0.0,
        clear: Clear = without_screening,
    ) -> None:
        """`expect` is told once of each batch of which a share of `expect_at` waits; `clear`
        has the oldest events of a line screened."""
        self._store = store
        self._lines = lines
        self._expect = expect
        self._expect_at = expect_at
        self._clear = clear
        self._expected: set[str] = set()
        self._batch_rules = batch_rules
        self._split_rules = split_rules
        self._announce = announce
        self._clock = clock
        self._wake = asyncio.Event()
        self._sized_at: dict[str, datetime] = {}

    def size_anew(self) -> None:
        """A run has ended: think over the batch sizes, then look what is due."""
        self._sized_at.clear()
        self.wake()

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
            await woken(self._wake, within_seconds=SEAL_SECONDS)

    async def seal_due(self, only: ModelLine | None = None) -> None:
        """Seal one batch of each line where one is due, or of one line, if it is."""
        lines = (
            self._lines.owners(await self._store.queue.waiting_task_types())
            if only is None
            else [only]
        )
        for line in lines:
            await self._size(line)
        sizes = await self._store.batch_sizes.current()
        for line in lines:
            if line.base_model is None:
                continue  # without a base model the events wait where feedback reaches them
            rules = self._batch_rules()
            if line.name in sizes:
                rules = replace(rules, batch_size=sizes[line.name].size)
            queue = await self._store.queue.look(line)
            batch = due(queue, rules, self._clock())
            self._tell(line, is_about_to_fill(queue, rules, self._expect_at))
            if batch is None or not await self._cleared(line, batch.size):
                continue
            batch = due(await self._store.queue.look(line), rules, self._clock())
            if batch is None:
                continue  # not enough is left of it
            sealed = await self._store.queue.seal(
                line, batch, self._split_rules(line.name), "sealer", self._clock()
            )
            if sealed is not None:
                self._announce(sealed)

    async def _cleared(self, line: ModelLine, size: int) -> bool:
        """Whether the oldest events of a line are screened now; the other lines have their turn
        before those that take long."""
        try:
            cleared = await self._clear(line, size)
        except CannotScreenError:
            return False  # it was logged, and health says so
        if not cleared:
            self.wake()
        return cleared

    def _tell(self, line: ModelLine, is_near: bool) -> None:
        """Once a batch: a stream that then dries up should not be prepared for again and again."""
        if is_near and line.name not in self._expected:
            self._expect(line)
        (self._expected.add if is_near else self._expected.discard)(line.name)

    async def _size(self, line: ModelLine) -> None:
        """Let a line's batch size follow its experience, unless that was done just now."""
        sizes, now = self._store.batch_sizes, self._clock()
        last = self._sized_at.get(line.name)
        if not sizes.rules.adaptive or (last is not None and now - last < SIZE_EVERY):
            return
        self._sized_at[line.name] = now
        present, experience = await sizes.experience(line, now)
        if present.pinned:
            return
        changed = await sizes.change(present, choose_size(experience, sizes.rules), now)
        if changed is not None:
            self._announce(changed)


class FeedbackDigester:
    """Has feedback taken into account soon after it has met its output."""

    def __init__(self, store: Store, announce: Announce, clock: Clock) -> None:
        self._store = store
        self._announce = announce
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: events were stored."""
        self._wake.set()

    async def run(self) -> None:
        """Digest what waits, until cancelled."""
        while True:
            self._wake.clear()
            try:
                more = await self.digest_some()
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="digest", error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)
                continue
            await asyncio.sleep(DIGEST_PAUSE_SECONDS)
            if not more:
                await woken(self._wake, within_seconds=DIGEST_SECONDS)

    async def digest_some(self) -> bool:
        """Digest the oldest feedback that waits. Returns whether more may wait."""
        n, facts = await self._store.digest.digest(self._clock())
        for fact in facts:
            self._announce(fact)
        return n == MOST_DIGESTED


async def watch_pressure(store: Store, pressure: Pressure) -> None:
    """Count what waits, and find out when the store takes writes again, until cancelled."""
    while True:
        try:
            pressure.count(await store.queue.count_waiting())
            # A source that has something to store tries again by itself, and knows better.
            if pressure.quiet_seconds > STORE_QUIET_SECONDS:
                await store.queue.try_to_write()
                pressure.store_answered()
        except StoreUnavailableError as error:
            pressure.store_failed(str(error))
        await asyncio.sleep(COUNT_SECONDS)


async def expire_held(
    store: Store, policy: Callable[[], Policy], announce: Announce, clock: Clock
) -> None:
    """Expire events that waited too long for a verdict, until cancelled."""
    while True:
        now = clock()
        try:
            count = await store.queue.expire(now - policy().hold, now)
        except StoreUnavailableError as error:
            log.warning("store unavailable", loop="expiry", error=str(error))
        else:
            if count:
                announce(EventsExpired(count))
        await asyncio.sleep(EXPIRE_SECONDS)


async def fold_old_hours(store: Store, clock: Clock) -> None:
    """Make days of the old hours that statistics are kept by, until cancelled."""
    while True:
        try:
            await store.over_time.fold(clock())
        except StoreUnavailableError as error:
            log.warning("store unavailable", loop="statistics", error=str(error))
        await asyncio.sleep(FOLD_SECONDS)
