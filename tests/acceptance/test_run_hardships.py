"""A run and the real trainer process: cancelled, stopped, and out of memory.

Runner, store and trainer are the real ones; the model is tiny and random.
"""

import asyncio
import importlib.util
import os
import resource
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.store import Store
from daemon.store.database import sqlite_url
from daemon.store.tables import run_attempts, runs, transitions
from finetune.artifacts import ArtifactStore
from finetune.local_provider import LocalProvider
from finetune.trainer.protocol import MEMORY_ADVICE, MakeTinyModelRequest
from finetune.trainer_process import TrainerHost, TrainerLimits
from learning.facts import RunCancelAsked, RunCancelled, RunFailed, RunTrained
from tests.builders import JUDGE, output
from tests.contract.driver import Driver, StoppedClock
from tests.contract.floor import AT_ONCE, Floor
from tests.contract.promises import broken_promises
from tests.services import require
from tests.waiting import wait_until

TRAINING = {
    "minibatch_size": 2,
    "gradient_accumulation": 1,
    "max_length": 64,
    "lora_rank": 4,
    "precision": "fp32",
    "checkpoint_every_steps": 1,
}
LONG = TRAINING | {"max_steps": 100_000}
SHORT = TRAINING | {"max_steps": 40}
IMPATIENT = TrainerLimits(heartbeat=timedelta(seconds=4), silent_heartbeats=2)
"""Longer than between two heartbeats of the real trainer, on a machine with much to do."""
TRAINING_SECONDS = 120.0
SPARE_BYTES = 256 << 20


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
async def floor(tmp_path: Path) -> AsyncIterator[Floor]:
    require("PyTorch", None if importlib.util.find_spec("torch") else "it is not installed")
    clock = StoppedClock()
    store = await Store.open(
        sqlite_url(tmp_path / "learnd.db"),
        artifacts_dir=tmp_path / "artifacts",
        judge=JUDGE,
        clock=clock,
    )
    floor = Floor(Driver(store, clock), tmp_path, rules=AT_ONCE)
    yield floor
    assert await store.database.read(broken_promises) == []
    await store.close()


@pytest.fixture
async def host(floor: Floor) -> AsyncIterator[TrainerHost]:
    """A warm trainer, and the line's base model made by it."""
    base = floor.folder / "base"
    async with TrainerHost(
        ArtifactStore(floor.folder / "artifacts"), floor.folder / "trainer.log", limits=IMPATIENT
    ) as host:
        async with host.use() as trainer:
            tiny = MakeTinyModelRequest(id="tiny", output_dir=str(base), steps=0)
            await trainer.request(tiny, lambda _: None)
        floor.drive.configure(base_model=str(base))
        floor.provider = LocalProvider(host)
        yield host


async def a_checkpoint(floor: Floor) -> None:
    """Wait until the training has one to go on from."""
    await asyncio.to_thread(
        wait_until,
        "a checkpoint",
        lambda: list((floor.folder / "work").glob("*/checkpoint/step-*")),
        seconds=TRAINING_SECONDS,
    )


async def trainer_of(host: TrainerHost) -> int:
    """The process that the next request is sent to."""
    async with host.use() as trainer:
        return trainer.pid


def is_gone(pid: int) -> bool:
    """Whether a process has ended and was reaped, and its group with it."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_cancelling_a_training_ends_no_more_than_it_and_returns_the_rows(
    floor: Floor, host: TrainerHost
) -> None:
    floor.drive.configure(training=LONG)
    run_id = await floor.sealed()
    pid = await trainer_of(host)

    async with floor.at_work() as runner:
        await a_checkpoint(floor)
        asked = await floor.drive.store.interventions.cancel(
            run_id, "wrong data", "ann", floor.drive.now
        )
        assert isinstance(asked, RunCancelAsked)
        runner.wake()
        await floor.until(RunCancelled)
    assert await trainer_of(host) == pid

    last = (await floor.drive.rows(transitions, transitions.c.ref == run_id))[-1]
    assert (last.to_state, last.actor, last.reason) == ("cancelled", "ann", "wrong data")


async def test_a_stopped_trainer_is_killed_and_the_training_goes_on_from_its_checkpoint(
    floor: Floor, host: TrainerHost
) -> None:
    """SIGSTOP: it neither dies nor beats, and would not hear SIGTERM."""
    floor.drive.configure(training=SHORT)
    run_id = await floor.sealed()
    pid = await trainer_of(host)

    async with floor.at_work():
        await a_checkpoint(floor)
        os.killpg(pid, signal.SIGSTOP)
        failed = await floor.until(RunFailed)
        assert (failed.error, failed.retried) == ("trainer_silent", True)
        assert is_gone(pid)
        async with asyncio.timeout(TRAINING_SECONDS):
            await floor.until(RunTrained)

    record = await floor.drive.store.runs.get(run_id)
    assert record.measurements is not None
    assert record.measurements["steps"] == SHORT["max_steps"]
    assert record.measurements["resumed_from_step"] >= 1
    attempts = await floor.drive.rows(run_attempts, run_attempts.c.run_id == run_id)
    assert [one.result for one in attempts] == ["failed", "succeeded"]


async def test_a_training_that_runs_out_of_memory_says_so_and_is_not_tried_for_ever(
    floor: Floor, host: TrainerHost
) -> None:
    """The limit is the process's own, so the allocation that fails is a real one."""
    floor.rules = replace(AT_ONCE, max_failures=1)
    hungry = LONG | {"minibatch_size": 400, "max_length": 1024}
    floor.drive.configure(training=hungry)
    long = (output(f"long-{n}", output="word " * 200) for n in range(400))
    run_id = await floor.drive.run_of(*long, size=400)
    pid = await trainer_of(host)
    limit = size_of(pid) + SPARE_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))

    async with floor.at_work():
        failed = await floor.until(RunFailed)

    assert failed.error == "out_of_memory", failed.message
    assert MEMORY_ADVICE in failed.message
    (row,) = await floor.drive.rows(runs, runs.c.id == run_id)
    assert row.state == "failed"


def size_of(pid: int) -> int:
    """The address space of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()
