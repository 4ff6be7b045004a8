"""What one request leaves for the next: the base as it was loaded, and nothing of the request."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune.trainer import bases as bases_module
from finetune.trainer.bases import Bases
from finetune.trainer.models import load_base, new_adapter
from finetune.trainer.process_state import process_state_restored
from finetune.trainer.protocol import Quantization, TrainingSettings

CPU = torch.device("cpu")
Loading = Callable[[str], PreTrainedModel]


def write_model(directory: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(str(directory))
    return str(directory)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write_model(tmp_path / "base", seed=1)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that were read from the disk, in their order."""
    done: list[str] = []

    def load(
        base_model: str,
        dtype: torch.dtype,
        device: torch.device,
        *,
        quantization: Quantization = "none",
    ) -> PreTrainedModel:
        done.append(base_model)
        return load_base(base_model, dtype, device, quantization=quantization)

    monkeypatch.setattr(bases_module, "load_base", load)
    return done


class Notes(list[str]):
    """What a person was told."""


@pytest.fixture
def notes() -> Notes:
    return Notes()


def lend(bases: Bases, base_model: str, notes: Notes) -> PreTrainedModel:
    return bases.lend(base_model, torch.float32, CPU, notes.append)


def take(bases: Bases, base_model: str, notes: Notes) -> PreTrainedModel:
    return bases.take(base_model, torch.float32, CPU, notes.append)


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether two models have the same modules and the same bits in them."""
    ours, theirs = one.state_dict(), other.state_dict()
    return (
        [(name, type(part)) for name, part in one.named_modules()]
        == [(name, type(part)) for name, part in other.named_modules()]
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def test_a_base_is_loaded_once_and_lent_with_the_same_memory(
    base: str, loads: list[str], notes: Notes
) -> None:
    bases = Bases()
    first, second = lend(bases, base, notes), lend(bases, base, notes)
    assert loads == [base]
    assert first is not second
    assert [weight.data_ptr() for weight in first.parameters()] == [
        weight.data_ptr() for weight in second.parameters()
    ]
    tied = dict(second.named_parameters(remove_duplicate=False))
    assert tied["lm_head.weight"] is tied["model.embed_tokens.weight"]


def test_nothing_that_a_request_hung_onto_it_reaches_the_next_one(
    base: str, loads: list[str], notes: Notes
) -> None:
    bases = Bases()
    first = lend(bases, base, notes)
    first.requires_grad_(False)
    first.activation_checkpointing_enable({"use_reentrant": False})
    first.config.use_cache = False
    new_adapter(first, TrainingSettings(lora_rank=2)).train()

    second = lend(bases, base, notes)

    assert loads == [base]
    assert same(second, load_base(base, torch.float32, CPU))
    assert all(weight.requires_grad for weight in second.parameters())
    assert not second.training
    assert not second.is_activation_checkpointing
    assert second.config.use_cache
    assert notes == []


def test_a_base_whose_weights_were_changed_is_loaded_anew_and_it_says_so(
    base: str, loads: list[str], notes: Notes
) -> None:
    bases = Bases()
    adapted = new_adapter(lend(bases, base, notes), TrainingSettings(lora_rank=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    adapted.merge_and_unload()

    again = lend(bases, base, notes)

    assert loads == [base, base]
    assert same(again, load_base(base, torch.float32, CPU))
    assert "changed" in notes[0]


def test_a_single_changed_bit_is_noticed(base: str, loads: list[str], notes: Notes) -> None:
    bases = Bases()
    weight = list(lend(bases, base, notes).parameters())[-1]
    bits = weight.detach().view(torch.int32)
    bits[-1] ^= 1
    lend(bases, base, notes)
    assert loads == [base, base]


def test_who_trains_every_weight_takes_the_base_away(
    base: str, loads: list[str], notes: Notes
) -> None:
    bases = Bases()
    lend(bases, base, notes)
    taken = take(bases, base, notes)
    assert loads == [base]
    for weight in taken.parameters():
        torch.nn.init.zeros_(weight)
    assert same(lend(bases, base, notes), load_base(base, torch.float32, CPU))
    assert loads == [base, base]
    assert notes == []


def test_a_base_whose_files_were_replaced_is_loaded_anew(
    base: str, loads: list[str], notes: Notes, tmp_path: Path
) -> None:
    bases = Bases()
    lend(bases, base, notes)
    other = write_model(tmp_path / "other", seed=2)
    os.replace(Path(other, "model.safetensors"), Path(base, "model.safetensors"))
    assert same(lend(bases, base, notes), load_base(base, torch.float32, CPU))
    assert loads == [base, base]


def test_only_the_last_base_is_kept(
    base: str, loads: list[str], notes: Notes, tmp_path: Path
) -> None:
    bases = Bases()
    other = write_model(tmp_path / "other", seed=2)
    for name in (base, other, base):
        assert same(lend(bases, name, notes), load_base(name, torch.float32, CPU))
    assert loads == [base, other, base]


def test_another_arithmetic_is_another_base(base: str, loads: list[str], notes: Notes) -> None:
    bases = Bases()
    lend(bases, base, notes)
    lent = bases.lend(base, torch.bfloat16, CPU, notes.append)
    assert lent.dtype == torch.bfloat16
    assert loads == [base, base]


def test_whether_a_base_packs_is_tried_once_for_each_attention_and_anew_when_it_was_loaded_anew(
    base: str, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def packs(model: PreTrainedModel) -> bool:
        tried.append(model.config._attn_implementation)
        return tried[-1] != "eager"

    monkeypatch.setattr(bases_module, "packs", packs)
    bases = Bases()

    def ask(attention: str) -> bool:
        lent = lend(bases, base, notes)
        lent.set_attn_implementation(attention)
        return bases.packs(lent)

    assert [ask("sdpa"), ask("sdpa"), ask("eager"), ask("eager"), ask("sdpa")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert tried == ["sdpa", "eager"]

    torch.nn.init.zeros_(next(lend(bases, base, notes).parameters()))
    assert ask("sdpa")
    assert tried == ["sdpa", "eager", "sdpa"]

    bases.packs(take(bases, base, notes))  # which is not kept, nor is what is found out of it
    assert ask("sdpa")
    assert len(tried) == 5


def test_what_a_request_sets_for_the_process_is_put_back() -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = (torch.rand(1), random.random())
    torch.manual_seed(5)
    random.seed(5)

    with process_state_restored():
        torch.manual_seed(6)
        random.seed(6)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(mode=True)
        torch.set_grad_enabled(mode=False)

    assert (torch.rand(1), random.random()) == expected
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()
