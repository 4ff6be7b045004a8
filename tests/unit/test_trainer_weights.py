"""How far trained weights moved: the effective ones, whatever way they are factored."""

import math

import pytest

pytest.importorskip("torch")

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune.trainer.models import new_adapter
from finetune.trainer.protocol import TrainingSettings
from finetune.trainer.weights import all_finite, change_norm, snapshot, trainable


def base() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )


def adapted() -> PeftModel:
    model = new_adapter(base(), TrainingSettings(lora_rank=3, lora_alpha=12))
    for name, weight in trainable(model).items():
        # A parent that was trained already: its B is not zero.
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    return model


def effective(model: PeftModel) -> dict[str, torch.Tensor]:
    """Scale times B times A of each layer, multiplied out."""
    weights = {name: weight.detach().double() for name, weight in trainable(model).items()}
    return {
        name: 4.0 * weights[name.replace("lora_A", "lora_B")] @ weight
        for name, weight in weights.items()
        if "lora_A" in name
    }


def test_it_is_the_norm_of_the_multiplied_out_difference() -> None:
    model = adapted()
    before, effective_before = snapshot(trainable(model)), effective(model)
    with torch.no_grad():
        for weight in trainable(model).values():
            weight.add_(torch.randn_like(weight), alpha=0.01)

    squares = [
        (after - effective_before[name]).square().sum().item()
        for name, after in effective(model).items()
    ]

    assert change_norm(model, before) == pytest.approx(math.sqrt(sum(squares)), rel=1e-9)


def test_no_change_is_exactly_zero() -> None:
    model = adapted()

    assert change_norm(model, snapshot(trainable(model))) == 0.0


def test_factors_that_changed_and_gave_the_same_product_did_not_move_the_model() -> None:
    model = adapted()
    before = snapshot(trainable(model))
    with torch.no_grad():
        for name, weight in trainable(model).items():
            weight.mul_(2.0 if "lora_A" in name else 0.5)

    assert change_norm(model, before) == pytest.approx(0.0, abs=1e-6)


def test_of_a_full_training_it_is_the_norm_of_the_difference() -> None:
    model = base()
    before = snapshot(trainable(model))
    with torch.no_grad():
        next(iter(trainable(model).values()))[0, 0] += 3.0
        model.lm_head.weight[1, 1] += 4.0

    assert change_norm(model, before) == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_change_that_is_not_finite_has_no_norm(value: float) -> None:
    model = adapted()
    before = snapshot(trainable(model))
    with torch.no_grad():
        next(iter(trainable(model).values()))[0, 0] = value

    assert change_norm(model, before) is None
    assert not all_finite(trainable(model).values())
    assert all_finite(before.values())
