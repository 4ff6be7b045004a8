"""A run that trains in several processes is called off: all of them end, and its state is right.

Runner, store, torchrun and trainers are the real ones; the model is tiny and random.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from daemon.store import Store
from daemon.store.database import sqlite_url
from daemon.store.tables import runs
from finetune import local_provider
from finetune.artifacts import ArtifactStore
from finetune.local_provider import LocalProvider
from finetune.runner import Runner
from finetune.trainer.process_state import process_state_restored
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer.reporting import Reporter
from finetune.trainer.tiny_model import make_tiny_model
from finetune.trainer_process import TrainerHost, TrainerLimits, launched
from learning.facts import RunCancelled, RunFailed
from learning.ports import TrainerState
from tests.builders import JUDGE
from tests.contract.driver import Driver, StoppedClock
from tests.contract.floor import AT_ONCE, Floor
from tests.contract.promises import broken_promises
from tests.waiting import wait_until

TRAINING = {
    "max_steps": 100_000,
    "minibatch_size": 2,
    "gradient_accumulation": 2,
    "max_length": 64,
    "lora_rank": 4,
    "precision": "fp32",
    "checkpoint_every_steps": 1,
}
IN_TWO = TRAINING | {"distributed": {"world_size": 2, "backend": "gloo"}}
WITH_A_THIRD = TRAINING | {"distributed": {"world_size": 3, "backend": "gloo"}}
WAITS_FOR_A_THIRD = """
import os
from pathlib import Path

import torch.distributed as dist

os.environ["WORLD_SIZE"] = "3"  # of which torchrun has started two
meet = dist.init_process_group

def say_and_meet(*args):
    Path(__file__).with_name(f"waits-{os.environ['RANK']}").touch()
    meet(*args)

dist.init_process_group = say_and_meet
from finetune.trainer.__main__ import main
main()
"""
PATIENCE = TrainerLimits(checkpoint=timedelta(minutes=20))
"""Whoever is killed in the end is not taken for one that ended by itself."""
STARTING_SECONDS = 600.0
"""Three processes import the training libraries."""
MARK = "LEARND_TEST_MARK"


class Started:
    """All processes that are started from now on, wherever they hang in the tree of processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mark = uuid.uuid4().hex
        monkeypatch.setenv(MARK, mark)
        self._mark = f"{MARK}={mark}".encode()

    def left(self) -> list[Path]:
        """What of them runs now."""
        return [process for process in Path("/proc").glob("[0-9]*") if self._has_mark(process)]

    def _has_mark(self, process: Path) -> bool:
        try:
            return self._mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended just now, or is not ours
            return False

    async def all_end(self) -> None:
        """Return when none is left."""
        await asyncio.to_thread(wait_until, "their end", lambda: not self.left())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Started(monkeypatch)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[TrainerHost]:
    artifacts = ArtifactStore(tmp_path / "artifacts")
    async with TrainerHost(artifacts, tmp_path / "trainer.log", limits=PATIENCE) as host:
        yield host


@pytest.fixture
async def floor(tmp_path: Path, host: TrainerHost) -> AsyncIterator[Floor]:
    base = tmp_path / "base"
    request = MakeTinyModelRequest(id="base", output_dir=str(base), steps=0)
    with process_state_restored():
        torch.set_num_threads(1)  # more only wait for each other, on a full machine for long
        make_tiny_model(request, Reporter("base", lambda message: None))
    clock = StoppedClock()
    store = await Store.open(
        sqlite_url(tmp_path / "learnd.db"),
        artifacts_dir=tmp_path / "artifacts",
        judge=JUDGE,
        clock=clock,
    )
    floor = Floor(Driver(store, clock), tmp_path, provider=LocalProvider(host))
    floor.drive.configure(base_model=str(base))
    yield floor
    assert await store.database.read(broken_promises) == []
    await store.close()


async def files(floor: Floor, pattern: str, n: int) -> None:
    """Wait until there are so many."""
    await asyncio.to_thread(
        wait_until,
        pattern,
        lambda: len(list(floor.folder.glob(pattern))) >= n,
        seconds=STARTING_SECONDS,
    )


async def cancelled(floor: Floor, run_id: str, runner: Runner) -> None:
    """Cancel a run, and wait until that is done."""
    cancel = floor.drive.store.interventions.cancel
    assert await cancel(run_id, "wrong data", "ann", floor.drive.now)
    runner.wake()
    await floor.until(RunCancelled)
    (row,) = await floor.drive.rows(runs, runs.c.id == run_id)
    assert row.state == "cancelled"


@pytest.mark.timeout(1200)
async def test_cancelling_a_training_in_two_processes_ends_both_after_the_same_step(
    floor: Floor, host: TrainerHost, started: Started
) -> None:
    floor.drive.configure(training=IN_TWO)
    run_id = await floor.sealed()

    async with floor.at_work() as runner:
        await files(floor, "work/*/checkpoint/step-*", 1)
        assert len(started.left()) == 3  # the launcher too
        await cancelled(floor, run_id, runner)
        await started.all_end()

    assert host.condition().state is TrainerState.COLD
    folder = floor.folder / "work" / run_id / "checkpoint"
    assert not list(folder.glob(".step-*")), "a checkpoint that was not finished"
    *_, last = (folder / "steps.jsonl").read_text().splitlines()
    assert max(folder.glob("step-*")).name == f"step-{json.loads(last)['step']:08d}"


@pytest.mark.timeout(1200)
async def test_a_training_whose_processes_wait_for_another_one_can_be_cancelled(
    floor: Floor, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait in PyTorch's C++, where Python hears no signal; none of them has to be killed."""
    script = floor.folder / "trainer.py"
    script.write_text(WAITS_FOR_A_THIRD)
    *command, _, _ = launched(2)
    monkeypatch.setattr(local_provider, "launched", lambda processes: [*command, str(script)])
    floor.drive.configure(training=WITH_A_THIRD)
    run_id = await floor.sealed()

    async with floor.at_work() as runner:
        await files(floor, "waits-*", 2)
        await cancelled(floor, run_id, runner)
        await started.all_end()

    assert "forcefully" not in (floor.folder / "trainer.log").read_text()


@pytest.mark.timeout(1200)
async def test_a_training_in_two_processes_that_takes_too_long_to_begin_leaves_none_of_them(
    floor: Floor, started: Started
) -> None:
    floor.rules = replace(AT_ONCE, max_failures=1, timeout=timedelta(seconds=3))
    floor.drive.configure(training=IN_TWO)
    run_id = await floor.sealed()

    async with floor.at_work():
        failed = await floor.until(RunFailed)
        assert (failed.error, failed.retried) == ("timeout", False)
        await started.all_end()

    (row,) = await floor.drive.rows(runs, runs.c.id == run_id)
    assert row.state == "failed"
