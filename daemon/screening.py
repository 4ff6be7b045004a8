"""Have stored events screened as far as the next batches need it, and no further.

Between the store, which knows what is not screened under the rules in force, and the process
that runs the validators. What was found is stored in small parts, so that little is done
twice after a kill; what is still missing then is asked for again.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from consumers.screening.in_force import validators_in_force
from consumers.screening.process import ScreeningProcess
from daemon.store import Store
from daemon.store.imports import ScreenedRows
from daemon.store.screenings import Unscreened
from learning.clock import Clock
from learning.events import OutputEvent
from learning.facts import Announce
from learning.lifecycle import EventState
from learning.lines import ModelLine
from learning.ports import JudgedOutput
from learning.screening import CannotScreenError, Screened, ScreeningRules

log = structlog.get_logger(__name__)

PART = 50
"""Events that are screened and stored together."""
TURN_SECONDS = 10.0
"""So long one line has its events screened before the next one gets its turn."""


class RulesInForce:
    """The digest of the rules of now; made once for each change."""

    def __init__(self, rules: Callable[[], ScreeningRules]) -> None:
        self._rules = rules
        self._validators = validators_in_force()
        self._known: tuple[ScreeningRules | None, str] = (None, "")

    def __call__(self) -> str:
        """The digest. May be asked from any thread."""
        rules, (known, digest) = self._rules(), self._known
        if known is not rules:
            digest = rules.digest(self._validators)
            self._known = (rules, digest)
        return digest


class Screening:
    """Screens for whoever seals. Used from the event loop."""

    def __init__(
        self,
        store: Store,
        process: ScreeningProcess,
        rules: Callable[[], ScreeningRules],
        announce: Announce,
        clock: Clock,
    ) -> None:
        self._store = store
        self._process = process
        self._rules = rules
        self._digest = RulesInForce(rules)
        self._announce = announce
        self._clock = clock
        self._lock = asyncio.Lock()
        self.trouble = ""
        """Why validators cannot be run, in words; empty while they can."""

    async def clear(self, line: ModelLine, size: int) -> bool:
        """Have the oldest `size` queued events of a line screened, and what it may learn from
        beside them. Returns whether all of it is, or the turn was over before.

        Raises CannotScreenError, and StoreUnavailableError; what was screened until then stays.
        """
        until = asyncio.get_running_loop().time() + TURN_SECONDS
        waiting = self._store.screenings.waiting
        waiting_rejected = self._store.screenings.waiting_rejected
        while True:
            async with self._lock:  # another one's part would be screened twice
                part = await waiting(line, size, PART) or await waiting_rejected(line, PART)
                if not part:
                    return True
                await self._screen(part, until)
            if asyncio.get_running_loop().time() > until:
                return False

    async def of_rows(
        self, rows: Sequence[JudgedOutput]
    ) -> tuple[Sequence[JudgedOutput], ScreenedRows]:
        """Screen rows that are not stored yet. Those that are stopped become quarantined.

        Raises CannotScreenError.
        """
        ruleset = self._digest()
        found: dict[tuple[str, str], Screened] = {}
        for row in rows:
            key = (row.producer, row.event_id)
            if row.state == EventState.QUEUED and key not in found:
                found[key] = await self.of_event(OutputEvent.model_validate_json(row.text))
        return [_as_screened(row, found) for row in rows], ScreenedRows(ruleset, found)

    async def of_event(self, event: OutputEvent) -> Screened:
        """What the validators say of an event. Raises CannotScreenError."""
        try:
            screened = await self._process.screen(event, self._rules())
        except CannotScreenError as error:
            if str(error) != self.trouble:
                log.error("outputs cannot be screened, and wait", why=str(error))
            self.trouble = str(error)
            raise
        self.trouble = ""
        return screened

    async def _screen(self, part: Sequence[Unscreened], until: float) -> None:
        """Screen what there is time for, at least one, and store it."""
        loop = asyncio.get_running_loop()
        ruleset = self._digest()
        found: dict[int, Screened] = {}
        try:
            for one in part:
                found[one.id] = await self.of_event(one.event)
                if loop.time() > until:
                    break
        finally:
            if found:
                told = await self._store.screenings.add(found, ruleset, self._clock())
                self._announce(told)


def _as_screened(row: JudgedOutput, found: Mapping[tuple[str, str], Screened]) -> JudgedOutput:
    one = found.get((row.producer, row.event_id))
    if row.state != EventState.QUEUED or one is None or not one.complaints:
        return row
    return row._replace(state=EventState.QUARANTINED, reason=one.reason)
