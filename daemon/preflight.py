"""Say before any training what this machine cannot train: ask the trainer, in its own process.

`learnd check` asks for all that is configured, and a daemon when it starts and when settings
change what is trained, or how. What comes of it is advice: events are taken and queued all the
same, and a run that fails says so itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from daemon.printing import some_of
from daemon.settings import LOCAL_PROVIDERS
from finetune.trainer.protocol import TrainingSettings
from finetune.trainer_process import TrainerHost
from learning.lines import ModelLine
from learning.ports import JobFailedError

log = structlog.get_logger(__name__)

PATIENCE_SECONDS: Final = 120.0
"""To import the training libraries takes 4 to 20 s, on a machine with much to do more."""


@dataclass(frozen=True)
class Outlook:
    """What was said of the lines that train alike."""

    lines: Sequence[str]
    words: str
    """What stands in the way with what to change, or where and how they would train."""
    possible: bool | None
    """None when the trainer could not be asked in time."""

    @property
    def of(self) -> str:
        """The lines, or as many as fit into a sentence."""
        return f"training of {some_of(self.lines)}"


class Preflight:
    """Asks once, again when lines are to be trained otherwise, and remembers what was said."""

    def __init__(self, host: TrainerHost, lines: Callable[[], Iterable[ModelLine]]) -> None:
        self._host, self._lines = host, lines
        self._against: list[str] = []
        self._wake = asyncio.Event()

    @property
    def warning(self) -> str:
        """Why lines cannot be trained here; empty when nothing is known against it."""
        return some_of(self._against)

    def wake(self) -> None:
        """The lines may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Ask, and log what is to be known. Whoever wants to train meanwhile waits for it."""
        asked: Mapping[_Way, Sequence[str]] = {}
        while True:
            self._wake.clear()
            lines = list(self._lines())
            if (alike := _alike(lines)) != asked:
                asked = alike
                await self._ask(lines)
            await self._wake.wait()

    async def _ask(self, lines: Iterable[ModelLine]) -> None:
        self._against.clear()
        async for outlook in outlooks(self._host, lines):
            if outlook.possible is False:
                self._against.append(f"{outlook.of}: {outlook.words}")
                log.warning("this machine cannot train", lines=outlook.lines, why=outlook.words)
            elif outlook.possible is None:
                log.info("not known whether this machine can train", why=outlook.words)


async def outlooks(host: TrainerHost, lines: Iterable[ModelLine]) -> AsyncIterator[Outlook]:
    """One for each way in which lines are trained on this machine; PATIENCE_SECONDS at most."""
    clock = asyncio.get_running_loop().time
    end = clock() + PATIENCE_SECONDS
    for (base_model, settings), names in _alike(lines).items():
        try:
            async with asyncio.timeout_at(end):
                found = await host.preflight(base_model, settings)
        except JobFailedError as error:
            yield Outlook(names, error.message, possible=False)
        except TimeoutError:
            why = f"the trainer could not be asked within {PATIENCE_SECONDS:g} s"
            yield Outlook(names, why, possible=None)
        except OSError as error:
            yield Outlook(names, f"no trainer can be started: {error}", possible=False)
        else:
            where = f"on {found.device} in {found.precision}"
            yield Outlook(names, "; ".join([where, *found.notes]), possible=True)


_Way = tuple[str, TrainingSettings]
"""A base model, and how it is trained."""


def _alike(lines: Iterable[ModelLine]) -> Mapping[_Way, Sequence[str]]:
    """The names of the lines by what they are trained from, and how; the others are left out."""
    alike: dict[_Way, list[str]] = {}
    for line in lines:
        if line.provider in LOCAL_PROVIDERS and line.base_model is not None:
            settings = TrainingSettings.model_validate(dict(line.training))
            alike.setdefault((line.base_model, settings), []).append(line.name)
    return alike
