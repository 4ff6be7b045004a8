"""Look at what people say of each champion, and step back where the one before was better.

Only ever back, at most so many times a day, and never against an operator's fresh choice; where
it may not, it says so. Wakes by itself; the counts come with the feedback that is digested.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import structlog

from daemon.store.live_verdicts import Evidence, LiveVerdicts
from daemon.store.registry import PairMovedError, SeenPair, StepBackLimits
from learning.clock import Clock
from learning.errors import ConflictError
from learning.facts import Announce, RollbackHeldBack
from learning.live_verdict import LiveVerdict, Standing, VerdictRules
from learning.ports import StoreUnavailableError
from monitoring.health import Check

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5.0


class StepBack(Protocol):
    """How a champion is moved back; daemon.operations.DaemonOperations.step_back."""

    def __call__(
        self, seen: SeenPair, to: str, *, reason: str, limits: StepBackLimits
    ) -> Awaitable[object]:
        """Verify the files of `to`, move the champion, tell it.

        Raises ConflictError when that is not possible, and then nothing was done.
        """
        ...


class VerdictWatch:
    """The live verdict's loop, of one daemon. Several of them make one rollback."""

    def __init__(
        self,
        verdicts: LiveVerdicts,
        step_back: StepBack,
        limits: Callable[[], StepBackLimits],
        announce: Announce,
        clock: Clock,
    ) -> None:
        self._verdicts = verdicts
        self._step_back = step_back
        self._limits = limits
        self._announce = announce
        self._clock = clock
        self._seen: dict[str, tuple[Evidence, VerdictRules]] = {}
        self._held_back: dict[str, str] = {}

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            try:
                await self.look()
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="live verdict", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    def check(self) -> Check:
        """Whether a champion is worse than its predecessor, and stays nevertheless."""
        return Check(
            "live verdict", ok=not self._held_back, detail="; ".join(self._held_back.values())
        )

    async def look(self) -> None:
        """Judge every line whose champion has verdicts, and act on it."""
        found = await self._verdicts.champions()
        rules = self._verdicts.rules
        for line in self._held_back.keys() - {one.line for one in found}:
            del self._held_back[line]
        for one in found:
            # A line that is held back is tried again: time passes, and files are restored.
            if self._seen.get(one.line) == (one, rules) and one.line not in self._held_back:
                continue
            verdict = one.judged(rules)
            await self._verdicts.keep(one, verdict, self._clock())
            await self._act(one, verdict, rules)
            self._seen[one.line] = one, rules

    async def _act(self, one: Evidence, verdict: LiveVerdict, rules: VerdictRules) -> None:
        if verdict.standing is not Standing.WORSE or one.pair is None or one.predecessor is None:
            self._held_back.pop(one.line, None)
            return
        try:
            if not rules.automatic_rollback:
                raise ConflictError("verdict.automatic_rollback is off")
            await self._step_back(
                one.pair, one.predecessor, reason=verdict.reason, limits=self._limits()
            )
        except PairMovedError:
            self._held_back.pop(one.line, None)  # another daemon was quicker, or an operator
        except ConflictError as error:
            self._hold_back(one, verdict, str(error))
        else:
            self._held_back.pop(one.line, None)

    def _hold_back(self, one: Evidence, verdict: LiveVerdict, why: str) -> None:
        said = f"{one.line} {one.version} is worse than {one.predecessor} and stays: {why}"
        if self._held_back.get(one.line) != said:
            self._held_back[one.line] = said
            self._announce(
                RollbackHeldBack(one.line, one.version, str(one.predecessor), verdict.reason, why)
            )
