"""Packed rows: each has the likelihoods that it has alone, and the gradients too."""

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from finetune.trainer.encoding import EncodedRow
from finetune.trainer.likelihood import Likelihood, measure
from finetune.trainer.packing import ATTENTION, PackedRows, attend_by_rows, packs

VOCABULARY = 64
LENGTHS = (3, 9, 4, 31, 8, 30, 9, 2)
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, embd_pdrop=0.0
    )
    return GPT2LMHeadModel(config)


def mistral_with_a_window() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6))


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4)
    )


def made(make: Any) -> PreTrainedModel:
    torch.manual_seed(7)
    model: PreTrainedModel = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Larger than at initialisation, so that every look at another token shows.
            weight.normal_(0.0, 0.3)
    return model


def rows(lengths: Sequence[int] = LENGTHS) -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(1)
    return [
        EncodedRow(
            line=line,
            ids=tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist()),
            first_label=max(1, n // 3),
            output_bytes=n,
            prompt_truncated=False,
            output_truncated=False,
            tokens_cut=0,
        )
        for line, n in enumerate(lengths, start=1)
    ]


def alone(model: PreTrainedModel) -> Likelihood:
    parts = [measure(model, [row], 0) for row in rows()]
    return Likelihood(
        losses=torch.cat([part.losses for part in parts]),
        rows=torch.cat([part.rows + index for index, part in enumerate(parts)]),
        logits=torch.cat([part.logits for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
    )


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("attention", ["ours", "sdpa", "eager"])
def test_each_token_of_packed_rows_is_as_probable_as_in_its_row_alone(
    make: Any, attention: str
) -> None:
    model = made(make)
    expected = alone(model)
    if attention == "ours":
        assert attend_by_rows(model)
    else:
        model.set_attn_implementation(attention)

    packed = measure(model, rows(), 0, packed=True)

    assert torch.equal(packed.targets, expected.targets)
    assert torch.equal(packed.rows, expected.rows)
    torch.testing.assert_close(packed.losses, expected.losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed.logits, expected.logits, rtol=1e-3, atol=1e-3)
    assert packs(model)


def test_padded_rows_are_measured_the_same_by_our_attention() -> None:
    model = made(llama)
    expected = alone(model)
    attend_by_rows(model)

    padded = measure(model, rows(), 0)

    torch.testing.assert_close(padded.losses, expected.losses, rtol=1e-4, atol=1e-4)


def test_packed_rows_give_the_gradients_of_padded_ones() -> None:
    gradients = []
    for packed in (False, True):
        model = made(llama)
        if packed:
            attend_by_rows(model)
        loss = measure(model, rows(), 0, packed=packed).losses.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad for weight in model.parameters()])

    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_change_in_one_row_changes_no_other() -> None:
    model = made(llama)
    attend_by_rows(model)
    before = measure(model, rows(), 0, packed=True)
    changed = rows()
    first = changed[3]
    changed[3] = EncodedRow(**{**vars(first), "ids": tuple(reversed(first.ids))})

    after = measure(model, changed, 0, packed=True)

    others = before.rows != 3
    assert torch.equal(before.losses[others], after.losses[others])
    assert not torch.equal(before.losses[~others], after.losses[~others])


def test_a_window_is_left_to_transformers_which_packs_it_right() -> None:
    model = made(mistral_with_a_window)
    expected = alone(model)

    assert not attend_by_rows(model)
    assert model.config._attn_implementation != ATTENTION
    packed = measure(model, rows(), 0, packed=True)
    torch.testing.assert_close(packed.losses, expected.losses, rtol=1e-4, atol=1e-4)


def test_a_model_that_would_see_from_one_row_into_another_does_not_pack() -> None:
    assert not packs(made(mamba))


def test_rows_of_nearly_one_length_are_attended_to_together() -> None:
    assert PackedRows.of((30, 31, 33, 90, 92, 300)).groups() == [
        [0, 30, 61, 94],
        [94, 184, 276],
        [276, 576],
    ]
    assert PackedRows.of((2, 1)).positions().tolist() == [0, 1, 0]
