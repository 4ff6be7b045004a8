"""How the daemon ends when what it runs does not want to."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from consumers.pressure import Pressure
from daemon import app
from daemon.app import Daemon
from daemon.live_settings import LiveSettings
from daemon.settings import Settings
from monitoring.loop_lag import LoopLag

SECONDS = 10.0


class Idle:
    """Every collaborator of a daemon with nothing to do."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def serve(self) -> None:
        await self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()

    def watch(self, loops: object) -> None: ...

    def drain(self) -> None: ...

    @property
    def queue(self) -> "Idle":
        return self

    @property
    def webhooks(self) -> "Idle":
        return self

    @property
    def over_time(self) -> "Idle":
        return self

    async def fold(self, now: object) -> int:
        return 0

    async def count_waiting(self) -> int:
        return 0

    async def expire(self, *before: object) -> int:
        return 0


class Hanging:
    """A source whose broker does not answer: neither a stop nor the first cancels end it."""

    def __init__(self, ignored: int) -> None:
        self.ignored = ignored

    async def run(self, stopping: asyncio.Event) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.ignored -= 1
                if self.ignored < 0:
                    raise


async def test_a_source_that_hangs_does_not_keep_the_daemon_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "INTAKE_STOP_SECONDS", 0.01)
    monkeypatch.setattr(app, "INSIST_SECONDS", 0.01)
    idle: Any = Idle()
    source: Any = Hanging(ignored=2)
    settings = Settings(data_dir=tmp_path)
    daemon = Daemon(
        settings=settings,
        live=LiveSettings(settings),
        url="url",
        token="token",
        store=idle,
        learner=idle,
        announcer=idle,
        source=source,
        files=None,
        sealer=idle,
        digester=idle,
        forgotten_files=idle,
        adapter=idle,
        runner=idle,
        follower=idle,
        feedback_follower=idle,
        shutdowns=idle,
        job_hints=idle,
        verdict_watch=idle,
        server=idle,
        probes=idle,
        loop_lag=LoopLag(time.monotonic),
        pressure=Pressure(time.monotonic),
        preflight=idle,
    )
    stopping = asyncio.Event()
    stopping.set()
    async with asyncio.timeout(SECONDS):
        await daemon.run(stopping)
    assert source.ignored < 0
