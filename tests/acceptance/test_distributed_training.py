"""One training in two processes: the losses and weights of one, also after one of them died.

The same training twice: once in one process; and once in two, which lose one and, asked
again, go on from their checkpoint.
"""

import asyncio
import math
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from daemon.demo.tasks import coding_example
from finetune.trainer import reporting
from finetune.trainer.bases import Bases
from finetune.trainer.interruption import Interruption
from finetune.trainer.process_state import process_state_restored
from finetune.trainer.protocol import (
    DistributedSettings,
    MakeTinyModelRequest,
    Message,
    ModelRef,
    TrainingSettings,
    TrainProgress,
    TrainRequest,
    TrainResult,
)
from finetune.trainer.reporting import Reporter
from finetune.trainer.tiny_model import make_tiny_model
from finetune.trainer.train import train
from finetune.trainer_process import TrainerProcess, launched
from learning.ports import JobFailedError
from tests.acceptance.test_trainer_process import write_rows

STEPS = 12
DIES_AT = 7

TRAINER = """
import os, signal, time

from finetune.trainer import reporting

reporting.PROGRESS_SECONDS = 0.0  # every step is told, so that curves can be compared

if (dies_at := int(os.environ["TEST_DIES_AT"])) and os.environ["RANK"] == "1":
    from finetune.trainer.loop import TrainingLoop
    step = TrainingLoop._step

    def step_or_die(loop, *args):
        if loop.counts.step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(loop, *args)

    TrainingLoop._step = step_or_die

from finetune.trainer.__main__ import main
main()
"""


class Curve:
    """What a training told, life after life; and its processes, from its first step on."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.processes: list[int] = []

    def hear(self, message: Message) -> None:
        if isinstance(message, TrainProgress):
            assert message.loss is not None
            self.losses[message.step] = message.loss

    def hear_of(self, trainer: TrainerProcess) -> Callable[[Message], None]:
        self.processes = []

        def hear(message: Message) -> None:
            if not self.processes:
                self.processes = [os.pidfd_open(pid) for pid in children_of(trainer.pid)]
            self.hear(message)

        return hear

    async def all_processes_end(self) -> None:
        """They are not our children: the launcher is."""
        assert len(self.processes) == 2
        for pidfd in self.processes:
            await asyncio.to_thread(select.select, [pidfd], [], [])
            os.close(pidfd)


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TEST_DIES_AT", "0")


def children_of(pid: int) -> Sequence[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@pytest.mark.timeout(900)  # six processes that import the training libraries
async def test_two_processes_train_what_one_does_through_the_death_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    rows = write_rows(tmp_path / "rows.jsonl", [coding_example(Random(n)) for n in range(14)])

    def training(name: str, distributed: DistributedSettings | None) -> TrainRequest:
        return TrainRequest(
            id=name,
            model=ModelRef(base_model=str(tmp_path / "base")),
            train_file=str(rows),
            output_dir=str(tmp_path / name),
            checkpoint_dir=str(tmp_path / f"{name}-checkpoints"),
            settings=TrainingSettings(
                max_steps=STEPS,
                minibatch_size=2,
                gradient_accumulation=3,
                learning_rate=3e-3,
                lora_dropout=0.1,
                # One process alone would pack a step into fewer minibatches, with another dropout.
                packing=False,
                checkpoint_every_steps=2,
                distributed=distributed,
            ),
        )

    def two_processes() -> TrainerProcess:
        *command, _, _ = launched(2)
        return TrainerProcess(
            tmp_path / "log", command=[*command, str(script)], outlives_requests=False
        )

    base = MakeTinyModelRequest(id="base", output_dir=str(tmp_path / "base"), steps=0)
    with process_state_restored():
        torch.set_num_threads(1)  # more only wait for each other, on a full machine for long
        make_tiny_model(base, Reporter("base", lambda message: None))
    alone = Curve()
    monkeypatch.setattr(reporting, "PROGRESS_SECONDS", 0.0)
    reporter = Reporter("alone", alone.hear)
    with process_state_restored():
        torch.set_num_threads(1)
        expected = train(training("alone", None), reporter, Interruption(), Bases())

    together = Curve()
    request = training("together", DistributedSettings(world_size=2, backend="gloo"))
    monkeypatch.setenv("TEST_DIES_AT", str(DIES_AT))
    async with two_processes() as trainer:
        with pytest.raises(JobFailedError) as failed:
            await trainer.request(request, together.hear_of(trainer))
        await together.all_processes_end()
    assert (failed.value.code, failed.value.retryable) == ("process_died", True)
    assert "another of the 2 processes" in failed.value.message

    monkeypatch.setenv("TEST_DIES_AT", "0")
    async with two_processes() as trainer:
        result = await trainer.request(request, together.hear_of(trainer))
    await together.all_processes_end()

    assert result.resumed_from_step == DIES_AT - 1
    assert sorted(together.losses) == sorted(alone.losses) == list(range(1, STEPS + 1))
    assert together.losses == pytest.approx(alone.losses, rel=1e-4)
    same_training(result, expected)
    weights, reference = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("together", "alone")
    )
    assert weights.keys() == reference.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, reference[name], rtol=1e-3, atol=1e-5)


def same_training(result: TrainResult, expected: TrainResult) -> None:
    """Counted alike, moved as far."""
    assert (result.steps, result.trained_tokens) == (expected.steps, expected.trained_tokens)
    assert result.weight_delta_norm is not None
    assert expected.weight_delta_norm is not None
    assert math.isclose(result.weight_delta_norm, expected.weight_delta_norm, rel_tol=1e-3)
