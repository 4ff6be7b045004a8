"""A warm trainer answers as a cold one: after whatever was asked of it before.

Two processes. One is asked for a LoRA training first, the other for a full one, so that each
was cold for one of the two; then much is asked of both, and what each of them makes of the
other's training must be the same in every byte.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("torch")

import torch

from daemon.demo.tasks import coding_example
from finetune.trainer.process_state import process_state_restored
from finetune.trainer.protocol import (
    ChatMessage,
    Done,
    EvaluateRequest,
    Failed,
    GenerateRequest,
    MakeTinyModelRequest,
    ModelRef,
    PingRequest,
    PrepareRequest,
    TrainProgress,
    TrainRequest,
    TrainResult,
)
from finetune.trainer.reporting import Reporter
from finetune.trainer.tiny_model import make_tiny_model
from tests.acceptance.test_trainer_process import (
    Trainer,
    files,
    hears_of_step,
    training,
    write_rows,
)

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def lora_first() -> Iterator[Trainer]:
    with Trainer() as trainer:
        yield trainer


@pytest.fixture(scope="module")
def full_first() -> Iterator[Trainer]:
    with Trainer() as trainer:
        yield trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def bases(place: Path) -> tuple[str, str]:
    """Two tiny models with random weights, made here: the processes must not have begun."""
    for seed in (1, 2):
        directory = str(place / f"base-{seed}")
        request = MakeTinyModelRequest(id="base", output_dir=directory, steps=0, seed=seed)
        with process_state_restored():
            torch.set_num_threads(1)  # more only wait for each other, on a full machine for long
            make_tiny_model(request, Reporter("base", lambda message: None))
    return str(place / "base-1"), str(place / "base-2")


@pytest.fixture(scope="module")
def rows(place: Path) -> Path:
    rng = Random(1)
    return write_rows(place / "rows.jsonl", [coding_example(rng) for _ in range(12)])


def wanted(base: str, rows: Path, place: Path, method: str) -> TrainRequest:
    place.mkdir(parents=True)
    return training(ModelRef(base_model=base), rows, place, method=method, max_steps=STEPS)


@pytest.fixture(scope="module")
def cold_lora(
    lora_first: Trainer, bases: tuple[str, str], rows: Path, place: Path
) -> tuple[Path, TrainResult]:
    request = wanted(bases[0], rows, place / "cold-lora", "lora")
    return Path(request.output_dir), lora_first.train(request)


@pytest.fixture(scope="module")
def cold_full(
    full_first: Trainer, bases: tuple[str, str], rows: Path, place: Path
) -> tuple[Path, TrainResult]:
    request = wanted(bases[0], rows, place / "cold-full", "full")
    return Path(request.output_dir), full_first.train(request)


def ask_for_much(trainer: Trainer, bases: tuple[str, str], rows: Path, place: Path) -> None:
    """Other seeds, ranks, methods, bases, adapters on and off, failures, and one called off."""
    place.mkdir()
    base, other = bases
    trainer.ask(PrepareRequest(id="prepare", base_model=base))
    own = wanted(base, rows, place / "own", "lora")
    settings = own.settings.model_copy(
        update={
            "seed": 99,
            "lora_rank": 4,
            "lora_dropout": 0.5,
            "target_modules": ("q_proj",),
            "gradient_checkpointing": True,
        }
    )
    trainer.train(own.model_copy(update={"settings": settings}))
    adapter = own.output_dir
    merged = wanted(base, rows, place / "merged", "full")
    ref = ModelRef(base_model=base, adapter=adapter)
    trainer.train(merged.model_copy(update={"model": ref}))
    trainer.train(wanted(other, rows, place / "other", "lora"))
    models = {
        "adapted": ref,
        "bare": ModelRef(base_model=base),
        "other": ModelRef(base_model=other),
        "full": ModelRef(base_model=merged.output_dir),
    }
    trainer.evaluate(EvaluateRequest(id="evaluate", models=models, examples_file=str(rows)))
    trainer.generate(
        GenerateRequest(
            id="generate",
            model=ref,
            messages=(ChatMessage(role="user", content="Hello"),),
            max_new_tokens=4,
            temperature=1.0,
            seed=7,
        )
    )
    broken = wanted(base, rows, place / "broken", "lora")
    trainer.fail(broken.model_copy(update={"train_file": str(place / "absent.jsonl")}))
    long = training(ModelRef(base_model=base), rows, place / "long", max_steps=100_000)
    trainer.say(long)
    trainer.hear_until(hears_of_step(2))
    os.kill(trainer.process.pid, signal.SIGUSR1)
    last = trainer.hear_all()[-1]
    assert isinstance(last, Failed)
    assert last.error == "interrupted"
    assert list(Path(long.checkpoint_dir).glob("step-*"))


@pytest.fixture(scope="module")
def warm(
    lora_first: Trainer,
    full_first: Trainer,
    cold_lora: tuple[Path, TrainResult],
    cold_full: tuple[Path, TrainResult],
    bases: tuple[str, str],
    rows: Path,
    place: Path,
) -> None:
    """Both processes were asked for much since they were cold."""
    for name, trainer in (("lora-first", lora_first), ("full-first", full_first)):
        ask_for_much(trainer, bases, rows, place / name)


def without_times(result: TrainResult) -> TrainResult:
    curve = result.curve.model_copy(update={"seconds": ()})
    return result.model_copy(update={"seconds": 0.0, "curve": curve})


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("process", ["lora_first", "full_first"])
def test_a_training_in_a_warm_process_ends_in_the_bytes_of_a_cold_one(
    process: str,
    method: str,
    request: pytest.FixtureRequest,
    bases: tuple[str, str],
    rows: Path,
    place: Path,
) -> None:
    trainer: Trainer = request.getfixturevalue(process)
    cold_output, cold_result = request.getfixturevalue(f"cold_{method}")
    asked = wanted(bases[0], rows, place / f"{process}-{method}", method)

    result = trainer.train(asked)

    assert files(Path(asked.output_dir)) == files(cold_output)
    assert without_times(result) == without_times(cold_result)


@pytest.mark.usefixtures("warm")
def test_a_warm_process_scores_and_answers_as_another_one(
    lora_first: Trainer,
    full_first: Trainer,
    cold_lora: tuple[Path, TrainResult],
    bases: tuple[str, str],
    rows: Path,
) -> None:
    adapted = ModelRef(base_model=bases[0], adapter=str(cold_lora[0]))
    models = {"adapted": adapted, "bare": ModelRef(base_model=bases[0])}
    evaluation = EvaluateRequest(id="evaluate", models=models, examples_file=str(rows))
    chat = GenerateRequest(
        id="generate",
        model=adapted,
        messages=(ChatMessage(role="user", content="Hello"),),
        max_new_tokens=8,
        temperature=1.0,
    )
    # The one has just been asked for the bare base, the other for something else.
    lora_first.evaluate(evaluation)
    assert lora_first.evaluate(evaluation).models == full_first.evaluate(evaluation).models
    assert lora_first.generate(chat).text == full_first.generate(chat).text


@pytest.mark.usefixtures("warm")
def test_a_training_that_was_called_off_goes_on_where_it_stopped(
    lora_first: Trainer, bases: tuple[str, str], rows: Path, place: Path
) -> None:
    again = training(
        ModelRef(base_model=bases[0]), rows, place / "lora-first" / "long", max_steps=100_000
    )
    [*_, newest] = sorted(Path(again.checkpoint_dir).glob("step-*"))
    lora_first.say(again)
    *_, first = lora_first.hear_until(lambda message: isinstance(message, TrainProgress))
    assert isinstance(first, TrainProgress)
    assert first.step == int(newest.name.removeprefix("step-")) + 1
    os.kill(lora_first.process.pid, signal.SIGUSR1)
    assert isinstance(lora_first.hear_all()[-1], Failed)


@pytest.mark.usefixtures("warm")
def test_a_warm_process_says_that_it_is_well(lora_first: Trainer) -> None:
    answer = lora_first.ask(PingRequest(id="ping"))[-1]
    assert isinstance(answer, Done)
