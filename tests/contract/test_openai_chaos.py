"""Runs at a service that fails in every way it can, while their daemon is killed too.

Each seed is another sequence of faults, fates and kills. The service's own account of its jobs
says what is true.
"""

import asyncio
import contextlib
import itertools
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from pydantic import SecretStr

from daemon.store.tables import run_attempts
from finetune.remote.access import ServiceAccess
from finetune.remote.openai_client import OpenAIClient
from finetune.remote.openai_provider import OpenAIProvider
from finetune.remote.openai_settings import OpenAIRules
from learning.facts import CandidateDecided, RunFailed
from tests.contract.driver import Driver
from tests.contract.floor import Floor
from tests.services.fake_openai import Fate, Fault, Job, SeededFaults, Service, within_process

SEEDS = int(os.environ.get("OPENAI_CHAOS_SEEDS", "500" if os.environ.get("CI") else "40"))
"""All 500 take two minutes, which is too long for a laptop."""
FAULT_SHARE = 0.2
MOST_REQUESTS = 400
"""Of one run, whatever befalls it."""
KINDS = tuple(fault for fault in Fault if fault is not Fault.HELD)
HASTE = OpenAIRules(
    poll=timedelta(0), tries=3, retry_base=timedelta(0), retry_cap=timedelta(seconds=1)
)
ACCESS = ServiceAccess("http://service/v1", SecretStr("the-key"))
TINY = "tiny"
"""The base model of the driver's line."""


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place: nothing here outlives the test, and on a disk
    most of the time would go into waiting for it."""
    memory = Path("/dev/shm")  # noqa: S108  # a folder in it is made safely
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


class Weather(SeededFaults):
    """The faults of one seed, and the request at which the daemon is killed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, share=FAULT_SHARE, kinds=KINDS)
        chance = random.Random(-seed)
        self.fate = chance.choices([Fate.SUCCEED, Fate.FAIL, Fate.LOST], [8, 1, 1])[0]
        self.hidden = chance.choices([0, 1], [3, 1])[0]
        self._last_request = chance.randrange(1, 30)
        self._numbers = itertools.count(1)
        self.kill = asyncio.Event()

    def of(self, method: str, path: str) -> Fault | None:
        """See Faults."""
        if next(self._numbers) == self._last_request:
            self.kill.set()
        return super().of(method, path)


class Toll(NamedTuple):
    """What one seed cost."""

    was_killed: bool
    surplus_jobs: int
    more_attempts: int


class Line(httpx2.AsyncBaseTransport):
    """The line to the service of the seed; making a client takes longer than a run."""

    def __init__(self) -> None:
        self.to: httpx2.AsyncBaseTransport | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert self.to is not None
        return await self.to.handle_async_request(request)


@contextlib.asynccontextmanager
async def daemon(floor: Floor, client: OpenAIClient) -> AsyncIterator[None]:
    """A daemon from start to kill: what it knew is gone with it."""
    floor.provider = OpenAIProvider(
        client,
        ACCESS,
        floor.folder / "openai",
        floor.artifacts,
        serving=ACCESS.base_url,
        rules=HASTE,
    )
    async with floor.at_work():
        yield


def is_over(floor: Floor, run_id: str) -> bool:
    """Whether nothing more will happen to a run."""
    return any(fact.run_id == run_id for fact in floor.facts_of(CandidateDecided)) or any(
        fact.run_id == run_id and not fact.retried for fact in floor.facts_of(RunFailed)
    )


async def play(floor: Floor, client: OpenAIClient, line: Line, seed: int) -> "Toll":
    weather = Weather(seed)

    def fate(job: Job) -> Fate:
        """The first attempt has the seed's fate, the next one ends well."""
        return weather.fate if job.metadata["learnd_attempt"] == "1" else Fate.SUCCEED

    service = Service(fate=fate, stride=4)
    service.models.append(TINY)
    service.hidden = weather.hidden
    line.to = within_process(service, weather)
    run_id = await floor.sealed()
    floor.facts.clear()
    async with daemon(floor, client):
        over = asyncio.create_task(floor.until_true(lambda: is_over(floor, run_id)))
        killed = asyncio.create_task(weather.kill.wait())
        await asyncio.wait({over, killed}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        killed.cancel()
    async with daemon(floor, client):
        await floor.until_true(lambda: is_over(floor, run_id))

    attempts = await floor.drive.rows(run_attempts, run_attempts.c.run_id == run_id)
    adopted = {row.job_id: row.attempt for row in attempts if row.job_id is not None}
    assert len(adopted) == sum(row.job_id is not None for row in attempts), "one job, two attempts"
    for job in service.created:
        assert job.metadata["learnd_run"] == run_id
        if job.id in adopted:
            assert int(job.metadata["learnd_attempt"]) == adopted[job.id]
    assert adopted.keys() <= {job.id for job in service.created}
    assert service.living(run_id) == [], "a surplus job goes on"
    assert service.files == {}, "rows were left at the service"
    asked = Counter(service.requests)
    assert asked["POST", "/v1/fine_tuning/jobs"] <= HASTE.tries * len(attempts)
    assert len(service.requests) < MOST_REQUESTS
    return Toll(weather.kill.is_set(), len(service.created) - len(adopted), len(attempts) - 1)


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_openai_chaos(drive: Driver, tmp_path: Path) -> None:
    floor, line = Floor(drive, tmp_path), Line()
    tolls: list[Toll] = []
    async with OpenAIClient.open(ACCESS, HASTE, transport=line) as client:
        for seed in range(SEEDS):
            try:
                tolls.append(await play(floor, client, line, seed))
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
    # Otherwise nothing was put to the test.
    assert any(toll.was_killed for toll in tolls)
    assert any(toll.surplus_jobs for toll in tolls)
    assert any(toll.more_attempts for toll in tolls)
