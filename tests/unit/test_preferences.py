"""DPO and KTO: the losses are TRL's to the digit, and preferred answers become likelier."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from finetune.trainer.bases import Bases
from finetune.trainer.encoding import Encoder
from finetune.trainer.errors import RequestFailed
from finetune.trainer.interruption import Interruption
from finetune.trainer.material import Preparation, read_source
from finetune.trainer.models import Compute, load_adapter, load_base, load_tokenizer
from finetune.trainer.objective import Objective
from finetune.trainer.preferences import Reading
from finetune.trainer.protocol import (
    MakeTinyModelRequest,
    Message,
    ModelRef,
    ObjectiveName,
    TrainingSettings,
    TrainRequest,
)
from finetune.trainer.reporting import Reporter
from finetune.trainer.rows import Row, Turn
from finetune.trainer.tiny_model import PAD_ID, byte_tokenizer, make_tiny_model
from finetune.trainer.train import train

CPU = Compute(torch.device("cpu"), "fp32")
PAIRS = [
    {"prompt": "one\n", "chosen": "yes", "rejected": "never"},
    {"prompt": "twenty\n", "chosen": "surely so", "rejected": "no"},
    {"prompt": "three\n", "chosen": "ok", "rejected": "not at all"},
]
VERDICTS = [
    {"prompt": "one\n", "completion": "yes", "label": True},
    {"prompt": "twenty\n", "completion": "no", "label": False},
    {"prompt": "three\n", "completion": "surely", "label": True},
    {"prompt": "four\n", "completion": "never ever", "label": False},
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


# --- the same numbers as TRL ----------------------------------------------------------


def tiny_policy() -> PeftModel:
    """A small model with an adapter that changes nothing yet."""
    torch.manual_seed(5)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            pad_token_id=PAD_ID,
        )
    )
    adapter = LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "up_proj"])
    adapted = get_peft_model(base, adapter)
    assert isinstance(adapted, PeftModel)
    return adapted


def move(policy: PeftModel) -> None:
    """As training would: away from what the reference is."""
    torch.manual_seed(6)
    for name, weight in policy.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(weight, std=0.3)


def tokenizer() -> PreTrainedTokenizerFast:
    """Without a template, as TRL treats plain texts: prompt, answer, end."""
    made = byte_tokenizer()
    made.chat_template = None
    return made


def ours(
    policy: PeftModel, file: str, objective: ObjectiveName, settings: Mapping[str, Any]
) -> Objective:
    """The reference is the policy as it is now."""
    preparation = Preparation(
        model=policy,
        encoder=Encoder(tokenizer()),
        pad_id=PAD_ID,
        settings=TrainingSettings(objective=objective, max_length=512, packing=False, **settings),
        compute=CPU,
    )
    return preparation.of(read_source(file, objective)).objective


def mean_loss(policy: PeftModel, objective: Objective, n_examples: int) -> torch.Tensor:
    """As the loop makes it of one minibatch."""
    move(policy)
    policy.train()
    examples = range(n_examples)
    return objective.loss(policy, examples) / objective.weight(examples)


def gradients(policy: PeftModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: weight.grad
        for name, weight in policy.named_parameters()
        if ".default." in name and weight.grad is not None
    }


def require_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6)


def without_line_break(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Our encoder writes the line break that stands between a prompt and its answer."""
    return [{**row, "prompt": row["prompt"].removesuffix("\n")} for row in rows]


def trl_loss(
    name: str, policy: PeftModel, rows: Sequence[Mapping[str, Any]], folder: Path, **settings: Any
) -> Any:
    """What TRL's trainer computes on all rows as one batch."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    config = getattr(trl, f"{name}Config")(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=512,
        disable_dropout=True,
        **settings,
    )
    trainer = getattr(trl, f"{name}Trainer")(
        model=policy,
        args=config,
        train_dataset=datasets.Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    move(policy)
    policy.train()
    return trainer.compute_loss(policy, batch)


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_pairs_and_its_gradient_are_those_of_trls_dpo(tmp_path: Path) -> None:
    other = tiny_policy()
    theirs = trl_loss("DPO", other, PAIRS, tmp_path, beta=0.3)
    policy = tiny_policy()
    file = write(tmp_path / "rows.jsonl", without_line_break(PAIRS))
    mean = mean_loss(policy, ours(policy, file, "dpo", {"preference_beta": 0.3}), len(PAIRS))
    assert abs(mean.item() - 0.6931) > 0.01  # which it is where policy and reference are one
    assert mean.item() == pytest.approx(theirs.item(), rel=1e-5)
    require_same_gradients(gradients(policy, mean), gradients(other, theirs))


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_verdicts_and_its_gradient_are_those_of_trls_kto(tmp_path: Path) -> None:
    other = tiny_policy()
    theirs = trl_loss(
        "KTO",
        other,
        VERDICTS,
        tmp_path,
        beta=0.3,
        desirable_weight=1.0,
        undesirable_weight=1.5,
        train_sampling_strategy="sequential",
    )
    policy = tiny_policy()
    file = write(tmp_path / "rows.jsonl", without_line_break(VERDICTS))
    objective = ours(policy, file, "kto", {"preference_beta": 0.3, "rejected_weight": 1.5})
    mean = mean_loss(policy, objective, len(VERDICTS))
    assert abs(mean.item() - 0.625) > 0.01  # which it is where policy and reference are one
    assert mean.item() == pytest.approx(theirs.item(), rel=1e-5)
    require_same_gradients(gradients(policy, mean), gradients(other, theirs))


@pytest.mark.filterwarnings("ignore")
def test_answers_beside_pairs_are_learned_too_and_each_example_weighs_the_same(
    tmp_path: Path,
) -> None:
    pairs = without_line_break(PAIRS)
    answers = [
        {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": said}]}
        for said in ("yes", "surely, by all means")
    ]
    policy = tiny_policy()
    mixed = ours(
        policy, write(tmp_path / "mixed.jsonl", [answers[0], *pairs, answers[1]]), "dpo", {}
    )
    alone = ours(policy, write(tmp_path / "pairs.jsonl", pairs), "dpo", {})
    each = [
        ours(policy, write(tmp_path / f"{n}.jsonl", [answer]), "sft", {})
        for n, answer in enumerate(answers)
    ]
    move(policy)
    policy.train()
    of_pairs = alone.loss(policy, range(3)).item()
    nats = [one.loss(policy, [0]).item() / one.trained_tokens([0]) for one in each]
    assert mixed.loss(policy, range(5)).item() == pytest.approx(of_pairs + sum(nats), rel=1e-5)
    assert mixed.loss(policy, [1, 4]).item() == pytest.approx(
        alone.loss(policy, [1]).item() + nats[1], rel=1e-5
    )
    assert mixed.loss(policy, [3]).item() == pytest.approx(nats[0], rel=1e-5)
    assert (len(mixed.lengths), mixed.weight(range(5))) == (5, 5)
    assert mixed.trained_tokens(range(5)) == alone.trained_tokens(range(3)) + sum(
        one.trained_tokens([0]) for one in each
    )


# --- what it does ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights: no answer is likelier than another of its length, but by chance."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    request = MakeTinyModelRequest(id="make", output_dir=str(folder), steps=0)
    make_tiny_model(request, Reporter("make", lambda _: None))
    return str(folder)


def margins(model: ModelRef, numbers: Sequence[int]) -> list[float]:
    """By how many nats `left` is likelier than `down`, on each prompt."""
    base = load_base(model.base_model, torch.float32, CPU.device)
    loaded: PreTrainedModel | PeftModel = base
    if model.adapter is not None:
        loaded = load_adapter(base, model.adapter, trainable=False).eval()
    encoder = Encoder(load_tokenizer(model.base_model))
    rows = [
        encoder.encode(Row(1, (Turn("user", f"which way, {number}?"),), answer), 256)
        for answer in ("left", "down")
        for number in numbers
    ]
    with torch.no_grad():
        chosen, rejected = Reading(PAD_ID).log_likelihoods(loaded, rows).chunk(2)
    margin: list[float] = (chosen - rejected).tolist()
    return margin


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_preferred_answers_become_likelier_than_rejected_ones_on_other_prompts(
    base_model: str, tmp_path: Path, objective: ObjectiveName
) -> None:
    pairs = [
        {"prompt": f"which way, {number}?", "chosen": "left", "rejected": "down"}
        for number in range(16)
    ]
    said: list[Message] = []
    request = TrainRequest(
        id="train",
        model=ModelRef(base_model=base_model),
        train_file=write(tmp_path / "train.jsonl", pairs),
        output_dir=str(tmp_path / "output"),
        checkpoint_dir=str(tmp_path / "checkpoint"),
        settings=TrainingSettings(
            objective=objective,
            max_steps=8,
            minibatch_size=4,
            gradient_accumulation=1,
            learning_rate=5e-3,
            lora_dropout=0.0,
        ),
    )
    result = train(request, Reporter("train", said.append), Interruption(), Bases())
    assert result.rows == (16 if objective == "dpo" else 32)
    assert result.trained_tokens > 0
    held_out = range(100, 106)
    before = margins(ModelRef(base_model=base_model), held_out)
    after = margins(ModelRef(base_model=base_model, adapter=str(tmp_path / "output")), held_out)
    assert all(new > old + 1 for old, new in zip(before, after, strict=True))
    assert all(margin > 0 for margin in after)


# --- what is read ---------------------------------------------------------------------


def test_pairs_and_verdicts_are_read_as_texts_or_as_messages(tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "yes"}
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    file = write(
        tmp_path / "rows.jsonl",
        [
            {"prompt": system, "chosen": [turn], "rejected": "no"},
            {"prompt": "p", "completion": [turn], "label": False},
            {"messages": [*system, turn], "label": True},
        ],
    )
    source = read_source(file, "kto")
    judged = [(one.row.prompt[-1].content, one.row.output, one.approved) for one in source.judged]  # type: ignore[union-attr]
    assert judged == [
        ("p", "yes", True),
        ("p", "no", False),
        ("p", "yes", False),
        ("p", "yes", True),
    ]


@pytest.mark.parametrize(
    ("objective", "row", "told"),
    [
        ("dpo", {"prompt": "p", "completion": "c", "label": True}, "chosen and rejected"),
        ("dpo", {"prompt": "p", "completion": "c"}, "chosen and rejected"),
        (
            "dpo",
            {"messages": [{"role": "user", "content": "p"}], "label": False},
            "chosen and rejected",
        ),
        ("kto", {"prompt": "p", "completion": "c"}, "needs a label"),
        ("kto", {"prompt": "p", "completion": "c", "label": 1}, "label"),
        ("dpo", {"prompt": "p", "chosen": [], "rejected": "r"}, "one message"),
        ("kto", {"label": True}, "neither messages, nor prompt"),
    ],
)
def test_a_line_that_is_no_preference_is_refused_by_number(
    tmp_path: Path, objective: ObjectiveName, row: dict[str, Any], told: str
) -> None:
    file = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(RequestFailed, match=f"line 1: .*{told}"):
        read_source(file, objective)
