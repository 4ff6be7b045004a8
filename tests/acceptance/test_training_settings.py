"""Every training setting does something, and what a machine cannot do is said beforehand.

The true trainer, in this process: a few steps of a tiny model for each key.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file

from daemon.demo.tasks import coding_example
from finetune.trainer import models, preflight
from finetune.trainer.bases import Bases
from finetune.trainer.errors import RequestFailed
from finetune.trainer.interruption import Interruption
from finetune.trainer.likelihood import measure
from finetune.trainer.protocol import (
    MakeTinyModelRequest,
    Message,
    ModelRef,
    Note,
    TrainingSettings,
    TrainProgress,
    TrainRequest,
    TrainResult,
)
from finetune.trainer.reporting import Reporter
from finetune.trainer.tiny_model import make_tiny_model
from finetune.trainer.train import train

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "minibatch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate": 1e-3,
    "lora_rank": 64,
    "lora_dropout": 0.0,
    "checkpoint_every_steps": 4,
}
"""Twelve steps."""


@dataclass
class Observed:
    """What can be seen of one training from outside, and by looking over its shoulder."""

    weights: str = ""
    result: TrainResult | None = None
    notes: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    grad_norms: list[float | None] = field(default_factory=list)
    minibatches: list[tuple[int, ...]] = field(default_factory=list)
    """Lengths of the rows of each forward pass."""
    attention: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    kept_bytes: int = 0
    """Of activations that waited on their device for the backward pass."""
    checkpoints: list[str] = field(default_factory=list)
    moments: set[torch.dtype] = field(default_factory=set)
    output: set[str] = field(default_factory=set)


class Workplace:
    """A base, rows, and the trainings that were done with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = str(folder / "base")
        self._count = 0
        make_tiny_model(
            MakeTinyModelRequest(id="base", output_dir=self.base, steps=0),
            Reporter("base", lambda _: None),
        )
        random = Random(2)
        rows = [*(coding_example(random) for _ in range(22)), ("z" * 70, "y" * 30), ("a", "b" * 60)]
        lines = (json.dumps({"prompt": prompt, "completion": text}) for prompt, text in rows)
        self.rows = folder / "rows.jsonl"
        self.rows.write_text("\n".join(lines))

    def observe(self, checkpoints: Path | None = None, **changes: object) -> Observed:
        """Train with SETTINGS and these changes, and watch."""
        self._count += 1
        place = self.folder / str(self._count)
        checkpoints = checkpoints or place / "checkpoints"
        observed = Observed()

        def hear(message: Message) -> None:
            match message:
                case Note(text=text):
                    observed.notes.append(text)
                case TrainProgress():
                    observed.rates.append(message.learning_rate)
                    observed.grad_norms.append(message.grad_norm)

        reporter = Reporter("observed", hear)
        reporter.progress_is_due = lambda last: True  # type: ignore[method-assign]
        request = TrainRequest(
            id="observed",
            model=ModelRef(base_model=self.base),
            train_file=str(self.rows),
            output_dir=str(place / "output"),
            checkpoint_dir=str(checkpoints),
            settings=TrainingSettings.model_validate(SETTINGS | changes),
        )

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            observed.kept_bytes += tensor.nbytes
            return tensor

        def watched(model: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
            observed.minibatches.append(tuple(len(row.ids) for row in rows))
            observed.attention.add(model.config._attn_implementation)
            observed.modules |= {type(module).__name__ for module in model.modules()}
            return measure(model, rows, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("finetune.trainer.objective.measure", watched)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                observed.result = train(request, reporter, Interruption(), Bases())
        for path in sorted((place / "output").iterdir()):
            observed.output.add(path.name)
            if path.suffix == ".safetensors":
                observed.weights = hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(checkpoints.glob("step-*")):
            observed.checkpoints.append(path.name)
            state = load_file(path / "state.safetensors")
            observed.moments |= {
                value.dtype for name, value in state.items() if not name.startswith("weight/")
            }
        return observed


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def usual(workplace: Workplace) -> Observed:
    return workplace.observe()


Look = Callable[[Observed], object]


def result(name: str) -> Look:
    return lambda observed: getattr(observed.result, name)


def weights(observed: Observed) -> object:
    return observed.weights


SEEN: dict[str, tuple[dict[str, Any], Look]] = {
    "method": ({"method": "full"}, lambda o: o.output),
    "epochs": ({"epochs": 3}, result("steps")),
    "max_steps": ({"max_steps": 7}, result("steps")),
    "minibatch_size": ({"minibatch_size": 3}, result("steps")),
    "gradient_accumulation": ({"gradient_accumulation": 3}, result("steps")),
    "learning_rate": ({"learning_rate": 2e-3}, lambda o: max(o.rates)),
    "warmup_steps": ({"warmup_steps": 0}, lambda o: o.rates[0] == max(o.rates)),
    "schedule": ({"schedule": "linear"}, lambda o: o.rates),
    "polynomial_power": (
        {"schedule": "polynomial", "polynomial_power": 3.0},
        lambda o: o.rates[-1] < 1e-5,
    ),
    "averaged_share": ({"averaged_share": 0.5}, weights),
    "optimizer": ({"optimizer": "adamw_8bit"}, lambda o: torch.uint8 in o.moments),
    "max_length": ({"max_length": 40}, result("tokens_cut")),
    "lora_rank": ({"lora_rank": 8}, weights),
    "lora_alpha": ({"lora_alpha": 8}, result("weight_delta_norm")),
    "lora_dropout": ({"lora_dropout": 0.5}, weights),
    "target_modules": ({"target_modules": ("q_proj",)}, weights),
    "quantization": ({"quantization": "nf4"}, lambda o: "Linear4bit" in o.modules),
    "weight_decay": ({"weight_decay": 0.5}, weights),
    "max_grad_norm": ({"max_grad_norm": 1e-3, "weight_decay": 0.0}, weights),
    "precision": ({"precision": "bf16"}, result("precision")),
    "attention": ({"attention": "eager"}, lambda o: o.attention),
    "packing": ({"packing": False}, lambda o: len(o.minibatches)),
    "group_by_length": ({"group_by_length": True}, lambda o: o.minibatches),
    "gradient_checkpointing": ({"gradient_checkpointing": True}, lambda o: o.kept_bytes),
    "cpu_offload": ({"cpu_offload": True}, lambda o: o.kept_bytes),
    "checkpoint_every_steps": ({"checkpoint_every_steps": 5}, lambda o: o.checkpoints),
    "checkpoints_kept": ({"checkpoints_kept": 1}, lambda o: o.checkpoints),
    "seed": ({"seed": 1}, lambda o: o.minibatches),
}
"""By key: a change of it, and where that shows."""

SEEN_IN_OTHER_TESTS = {
    "resume": "test_without_resume_a_training_starts_afresh",
    "distributed": "test_distributed_training.py",
    "objective": "test_preferences.py",
    "preference_beta": "test_preferences.py",
    "approved_weight": "test_preferences.py",
    "rejected_weight": "test_preferences.py",
    "validate_every_steps": "test_finetune_command.py",
}


@pytest.mark.parametrize("key", TrainingSettings.model_fields)
def test_every_setting_has_an_effect(workplace: Workplace, usual: Observed, key: str) -> None:
    if key in SEEN_IN_OTHER_TESTS:
        return
    changes, look = SEEN[key]

    assert look(workplace.observe(**changes)) != look(usual)


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": False},
        {"gradient_checkpointing": True},
        {"cpu_offload": True},
        {"attention": "sdpa"},
        {"attention": "eager"},
        {"minibatch_size": 1, "gradient_accumulation": 4},
    ],
    ids=str,
)
def test_what_saves_time_or_memory_learns_the_same(
    workplace: Workplace, usual: Observed, changes: dict[str, Any]
) -> None:
    assert usual.result is not None
    other = workplace.observe(**changes).result

    assert other is not None
    assert other.trained_tokens == usual.result.trained_tokens
    assert other.first_loss == pytest.approx(usual.result.first_loss, rel=1e-5)
    assert other.final_loss == pytest.approx(usual.result.final_loss, rel=1e-3)


def test_packed_rows_pass_through_the_model_at_once_in_no_more_memory_than_the_longest_padded(
    workplace: Workplace, usual: Observed
) -> None:
    padded = workplace.observe(packing=False)

    most = max(len(rows) * max(rows) for rows in padded.minibatches)
    assert len(usual.minibatches) < len(padded.minibatches)
    assert max(map(sum, usual.minibatches)) <= most


@pytest.mark.parametrize(
    ("quantization", "optimizer"),
    [("nf4", "adamw_8bit"), ("fp4", "adamw"), ("int8", "adamw_8bit")],
)
def test_a_quantised_training_learns_and_resumes_in_the_same_bytes(
    workplace: Workplace, tmp_path: Path, quantization: str, optimizer: str
) -> None:
    chosen = {"quantization": quantization, "optimizer": optimizer}
    straight = workplace.observe(tmp_path, **chosen)
    assert straight.result is not None
    assert straight.result.final_loss is not None
    assert straight.result.first_loss is not None
    assert straight.result.final_loss < straight.result.first_loss
    (tmp_path / straight.checkpoints[-1]).rename(tmp_path / "elsewhere")

    resumed = workplace.observe(tmp_path, **chosen)

    assert resumed.result is not None
    assert resumed.result.resumed_from_step == 4
    assert resumed.weights == straight.weights


def test_an_averaged_training_resumes_in_the_same_bytes(
    workplace: Workplace, tmp_path: Path
) -> None:
    straight = workplace.observe(tmp_path, averaged_share=0.5)

    resumed = workplace.observe(tmp_path, averaged_share=0.5)

    assert resumed.result is not None
    assert resumed.result.resumed_from_step == 8  # in the midst of the steps that are averaged
    assert resumed.weights == straight.weights


def test_without_resume_a_training_starts_afresh(workplace: Workplace, tmp_path: Path) -> None:
    workplace.observe(tmp_path)

    again, afresh = workplace.observe(tmp_path), workplace.observe(tmp_path, resume=False)

    assert again.result is not None
    assert afresh.result is not None
    assert (again.result.resumed_from_step, afresh.result.resumed_from_step) == (8, None)
    assert again.weights == afresh.weights


def test_what_was_cut_is_counted_and_said(workplace: Workplace) -> None:
    cut = workplace.observe(max_length=40)

    assert cut.result is not None
    # The one with a long prompt has 70 + 30 bytes, the other 1 + 60; around them <|bos|>U:,
    # \nA: and <|eos|>.
    assert cut.result.longest_row == 3 + 70 + 3 + 30 + 1
    assert cut.result.rows_truncated == 1
    assert cut.result.tokens_cut >= (107 - 40) + (68 - 40)
    (note,) = [note for note in cut.notes if "max_length" in note]
    assert f"lost {cut.result.tokens_cut} tokens (1 of them the end of their output)" in note
    assert "the longest has 107" in note


def test_rows_that_fit_are_not_spoken_of(usual: Observed) -> None:
    assert usual.result is not None
    assert usual.result.tokens_cut == 0
    assert usual.notes == []


# --- what this machine cannot do --------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "lacking", "advice"),
    [
        ({"quantization": "nf4"}, "_has_bitsandbytes", "quantization: none"),
        ({"optimizer": "adamw_8bit"}, "_has_bitsandbytes", "optimizer: adamw"),
        ({"attention": "flash_attention_2"}, "is_flash_attn_2_available", "attention: auto"),
    ],
    ids=str,
)
def test_what_is_not_there_is_said_before_training_with_the_setting_to_change(
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    lacking: str,
    advice: str,
) -> None:
    monkeypatch.setattr(preflight, lacking, lambda: False)
    monkeypatch.setattr(models, "load_base", pytest.fail)

    with pytest.raises(RequestFailed, match=advice) as refused:
        workplace.observe(**changes)

    assert refused.value.code == "unsupported"


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"method": "full"}, "set method: lora"),
        ({}, "set quantization: nf4"),
        ({"quantization": "nf4"}, "a smaller base model"),
    ],
    ids=str,
)
def test_weights_that_memory_cannot_hold_are_refused_before_they_are_loaded(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], advice: str
) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(models, "load_base", pytest.fail)

    with pytest.raises(RequestFailed, match=advice) as refused:
        workplace.observe(**changes)

    assert refused.value.code == "unsupported"
    assert "GiB" in str(refused.value)


def test_a_setting_that_does_nothing_here_is_said(workplace: Workplace) -> None:
    assert "cpu_offload does nothing on a CPU" in workplace.observe(cpu_offload=True).notes[0]


def test_weights_that_are_trained_are_not_quantised() -> None:
    with pytest.raises(ValueError, match="quantised weights cannot be trained"):
        TrainingSettings(method="full", quantization="nf4")


def test_auto_is_bf16_on_a_cpu_with_instructions_for_it_when_the_model_is_large(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(models, "_has_bf16_instructions", lambda: True)
    assert models.choose_compute("auto", workplace.base).arithmetic == "fp32"
    monkeypatch.setattr(models, "_BF16_PARAMETERS", 100_000)
    assert models.choose_compute("auto", workplace.base).arithmetic == "bf16"
    assert models.choose_compute("fp32", workplace.base).arithmetic == "fp32"
    monkeypatch.setattr(models, "_has_bf16_instructions", lambda: False)
    assert models.choose_compute("auto", workplace.base).arithmetic == "fp32"


def test_the_loop_waits_for_the_device_once_a_step(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    real = torch.Tensor.tolist

    def waiting(tensor: torch.Tensor) -> Any:
        waits.append(tensor)
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", waiting)

    observed = workplace.observe()

    assert observed.result is not None
    assert len(waits) == observed.result.steps


def test_a_mean_of_all_weights_needs_room_too(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = 525_568
    monkeypatch.setattr(preflight, "free_bytes", lambda device: weights * (4 + 4 + 8 + 3))
    compute = models.choose_compute("fp32", workplace.base)

    def require(**changes: object) -> None:
        settings = TrainingSettings.model_validate({"method": "full"} | changes)
        preflight.require_possible(workplace.base, settings, compute, pytest.fail)

    require()
    with pytest.raises(RequestFailed, match="need at least"):
        require(averaged_share=0.5)
