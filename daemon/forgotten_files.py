"""Remove the files that still say what was forgotten: datasets, work folders, and weights if asked.

What has to go follows from the tables alone, so that a sweep can be repeated at any time, after
a crash and on each node: whoever has such files removes them. Files that somebody works with
go when their run is over. Nothing of a clean version is touched.
"""

import asyncio
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon.store.forgettings import Forgettings
from finetune.artifacts import ArtifactStore
from finetune.waking import woken
from learning.clock import Clock
from learning.failpoints import reached
from learning.lines import ModelLines
from learning.ports import StoreUnavailableError

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 60.0
"""How often files are looked for that another daemon's forgetting leaves on this node."""
STORE_RETRY_SECONDS = 2.0
_OF_A_RUN = re.compile(r"\.?(r-[0-9a-f]{12})(\.new|\.old)?")
"""The folder of a run's dataset or work, or one that stood beside it when somebody was killed."""


@dataclass(frozen=True)
class Swept:
    """What a sweep removed: the files of these runs, and these artifacts."""

    runs: Sequence[str]
    artifacts: Sequence[str]
    pending: Sequence[str]
    """Runs whose files go when they are over."""


class ForgottenFiles:
    """The files of one node. `run` owns the sweeping; whoever forgot something may ask for it."""

    def __init__(
        self,
        forgettings: Forgettings,
        artifacts: ArtifactStore,
        lines: ModelLines,
        dataset_dir: Path,
        work_dir: Path,
        clock: Clock,
    ) -> None:
        self._forgettings = forgettings
        self._artifacts = artifacts
        self._lines = lines
        self._folders = (dataset_dir, work_dir)
        self._clock = clock
        self._wake = asyncio.Event()
        self._sweeping = asyncio.Lock()

    def wake(self) -> None:
        """Look now: a run has ended."""
        self._wake.set()

    async def run(self) -> None:
        """Sweep when there is something to sweep, until cancelled."""
        await self._complain()
        while True:
            self._wake.clear()
            try:
                if await self._forgettings.any():
                    await self.sweep()
            except (StoreUnavailableError, OSError) as error:
                log.warning("files are not swept yet", error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)
            await woken(self._wake, within_seconds=SWEEP_SECONDS)

    async def sweep(self) -> Swept:
        """Remove what has to go now. Raises StoreUnavailableError and OSError."""
        async with self._sweeping:
            found = await asyncio.to_thread(lambda: {name for name, _ in self._present()})
            doomed = await self._forgettings.doomed(found, self._task_types)
            await asyncio.to_thread(self._remove, doomed.runs)
            artifacts = [
                name
                for name in await self._forgettings.doomed_artifacts()
                if await asyncio.to_thread(self._artifacts.remove, name)
            ]
            if not doomed.pending:
                await self._forgettings.complete(self._clock())
            return Swept(sorted(doomed.runs), artifacts, sorted(doomed.pending))

    async def of(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Those of some runs that have files here."""
        found = await asyncio.to_thread(lambda: {name for name, _ in self._present()})
        return [run_id for run_id in run_ids if run_id in found]

    async def _complain(self) -> None:
        try:
            for number in await self._forgettings.unfinished():
                log.warning(
                    "a forgetting did not come to its end: ask for the same again",
                    forgetting=number,
                )
        except StoreUnavailableError as error:
            log.warning("store unavailable", loop="forgotten files", error=str(error))

    def _task_types(self, line: str) -> frozenset[str] | None:
        found = self._lines.get(line)
        return None if found is None else found.task_types

    def _present(self) -> Iterator[tuple[str, Path]]:
        """The folders of runs, with the run that each belongs to."""
        for parent in self._folders:
            if parent.is_dir():
                for folder in parent.iterdir():
                    if (named := _OF_A_RUN.fullmatch(folder.name)) is not None:
                        yield named[1], folder

    def _remove(self, run_ids: frozenset[str]) -> None:
        for run_id, folder in list(self._present()):
            if run_id in run_ids:
                shutil.rmtree(folder)
                reached("forgotten files removed")
