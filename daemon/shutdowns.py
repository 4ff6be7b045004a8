"""Models that their service is about to shut down, and that lines use: say so in good time.

What a line uses: the base model that it trains next, the champion's, and the model that the
champion itself is at a service. The dates are settings (`remote.shutdown_dates`), or what
the services themselves report; a setting goes before a report.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import structlog

from daemon.changing_settings import named_lines
from daemon.live_settings import LiveSettings
from daemon.store.views.models import Models
from finetune.remote.model import NotARemoteModelError, name_of
from finetune.waking import woken
from learning.clock import Clock
from learning.facts import Announce, ModelShutsDown
from learning.ports import ModelReference, StoreUnavailableError
from monitoring.logs import shutdown_in_words

log = structlog.get_logger(__name__)

Report = Callable[[], Awaitable[Mapping[str, date]]]
"""Asks one service: by model, the first day without it. Raises ConnectionError."""

SOON_DAYS = 30
"""From so many days before on it is a warning."""
LOOK_SECONDS = 3_600.0


@dataclass(frozen=True)
class Shutdown:
    """The end of a model that a line uses."""

    line: str
    model: str
    on: date
    """The first day without it, in UTC."""
    days_left: int
    """0 on that day, and negative after it."""

    @property
    def is_soon(self) -> bool:
        """Whether it is time to do something about it."""
        return self.days_left <= SOON_DAYS

    def __str__(self) -> str:
        return f"{self.line}: {shutdown_in_words(self.model, self.on, self.days_left)}"


def shutdowns(
    in_use: Mapping[str, Iterable[str]], dates: Mapping[str, date], now: datetime
) -> Sequence[Shutdown]:
    """The ends that are known of the models in use, by line; the nearest first."""
    found = [
        Shutdown(line, model, dates[model], (dates[model] - now.date()).days)
        for line, models in in_use.items()
        for model in set(models) & dates.keys()
    ]
    return sorted(found, key=lambda one: (one.on, one.line, one.model))


class ShutdownWatch:
    """Knows which models in use are going to end, and warns of them once a day."""

    def __init__(
        self,
        live: LiveSettings,
        models: Models,
        announce: Announce,
        clock: Clock,
        reports: Sequence[Report] = (),
    ) -> None:
        self._live = live
        self._reports = reports
        self._reported: dict[Report, Mapping[str, date]] = {}
        """What each service said last."""
        self._models = models
        self._announce = announce
        self._clock = clock
        self._warned: set[tuple[str, str, date]] = set()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: settings were changed."""
        self._wake.set()

    async def look(self) -> Sequence[Shutdown]:
        """The ends that are known of now; asks nobody while no date is set.

        Raises StoreUnavailableError.
        """
        dates: dict[str, date] = {}
        for reported in self._reported.values():
            dates |= reported
        dates |= self._live.now.remote.shutdown_dates
        if not dates:
            return ()
        champions = await self._models.champions()
        in_use = {line: {model.base_model} for line, model in champions.items()}
        for line in (*named_lines(self._live), *map(self._live.lines.get, champions)):
            if line is not None and line.base_model is not None:
                in_use.setdefault(line.name, set()).add(line.base_model)
        for name, model in await asyncio.to_thread(_served, champions):
            in_use[name].add(model)
        return shutdowns(in_use, dates, self._clock())

    async def run(self) -> None:
        """Warn of what ends soon, until cancelled."""
        while True:
            self._wake.clear()
            await self.ask()
            try:
                self.warn(await self.look())
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="shutdowns", error=str(error))
            await woken(self._wake, within_seconds=LOOK_SECONDS)

    async def ask(self) -> None:
        """Ask the services for their dates. Of one that does not answer the last ones stay."""
        for report in self._reports:
            try:
                self._reported[report] = await report()
            except ConnectionError as error:
                log.info("a service does not say which models it shuts down", error=str(error))

    def warn(self, found: Sequence[Shutdown]) -> None:
        """Tell of those that are soon, each once a day."""
        today = self._clock().date()
        self._warned = {one for one in self._warned if one[2] == today}
        for one in found:
            if one.is_soon and (one.line, one.model, today) not in self._warned:
                self._warned.add((one.line, one.model, today))
                self._announce(ModelShutsDown(one.line, one.model, one.on, one.days_left))


def _served(champions: Mapping[str, ModelReference]) -> Sequence[tuple[str, str]]:
    """The champions that a service serves, by line. Blocks on the disk."""
    served = []
    for line, model in champions.items():
        with contextlib.suppress(NotARemoteModelError):
            served.append((line, name_of(model)))
    return served
