"""A small base model, made on the spot for tests and the demo.

Half a million parameters over bytes: a Llama that is as real to every
library as a large one. Pre-trained for about a minute on generic string
exercises, it learns a new string rule from a hundred examples; with no step
at all its weights are random, which is enough to test machinery. It knows no
language and none of the demo's rules.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.trainer.errors import RequestFailed
from finetune.trainer.protocol import (
    MakeTinyModelProgress,
    MakeTinyModelRequest,
    MakeTinyModelResult,
    finite_or_none,
)
from finetune.trainer.publication import published, require_vacant
from finetune.trainer.reporting import Reporter
from finetune.trainer.string_tasks import make_exercise

PAD_ID: Final = 256
BOS_ID: Final = 257
EOS_ID: Final = 258
_SPECIAL_TOKENS: Final = ("<|pad|>", "<|bos|>", "<|eos|>")
_MAX_POSITIONS: Final = 1024

CHAT_TEMPLATE: Final = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- message['role'][:1] | upper + ':' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'A:' -}}{%- endif -%}"
)

# Muon for the matrices, AdamW at a high rate for the bytes' embeddings: after
# 500 steps the loss is a twentieth of what AdamW alone reaches.
_MATRIX_RATE: Final = 0.02
_EMBEDDING_RATE: Final = 0.015
_WARMUP_SHARE: Final = 0.05
_DECAY_SHARE: Final = 0.6
_ROWS: Final = 32
_LENGTH: Final = 128
_PROMPT_WEIGHT: Final = 0.1
"""A little loss on prompts, whose words repeat, teaches copying sooner."""


def make_tiny_model(request: MakeTinyModelRequest, reporter: Reporter) -> MakeTinyModelResult:
    """Make, pre-train and publish it. Raises RequestFailed."""
    started = time.monotonic()
    output_dir = Path(request.output_dir)
    require_vacant(output_dir)
    torch.manual_seed(request.seed)
    model = LlamaForCausalLM(_config())
    loss = _pretrain(model, request, reporter)
    with published(output_dir) as staged:
        model.save_pretrained(str(staged))
        byte_tokenizer().save_pretrained(str(staged))
    return MakeTinyModelResult(
        parameters=sum(weight.numel() for weight in model.parameters()),
        steps=request.steps,
        final_loss=loss,
        seconds=time.monotonic() - started,
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, its id the byte's value, and three special ones.

    Decoding what was encoded gives any text back, spaces and all.
    """
    names = _byte_names()
    tokenizer = Tokenizer(
        models.BPE(vocab={name: byte for byte, name in enumerate(names)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in _SPECIAL_TOKENS]
    )
    pad, bos, eos = _SPECIAL_TOKENS
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template=CHAT_TEMPLATE,
        model_max_length=_MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _byte_names() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (from GPT-2).

    Printable bytes stand for themselves, the others for characters from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    names = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [names.get(byte, chr(byte)) for byte in range(256)]


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=259,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )


# --- pre-training -----------------------------------------------------------------------------


def _pretrain(
    model: LlamaForCausalLM, request: MakeTinyModelRequest, reporter: Reporter
) -> float | None:
    """Nats per output byte in the last step; None without one."""
    optimizers = _optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    packed = _packed_exercises(Random(request.seed))  # noqa: S311  not a secret
    started = time.monotonic()
    loss = None
    for step in range(request.steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * _rate_share(step, request.steps)
        rows = [next(packed) for _ in range(_ROWS)]
        weighted, outputs = _losses(model, rows)
        weighted.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if reporter.progress_is_due(last=done == request.steps):
            loss = finite_or_none(outputs.item())
            left = (time.monotonic() - started) / done * (request.steps - done)
            reporter.say(
                MakeTinyModelProgress(
                    id=request.id,
                    step=done,
                    total_steps=request.steps,
                    loss=loss,
                    seconds_left=left,
                )
            )
    return loss


def _optimizers(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, ...]:
    weights = dict(model.named_parameters())
    matrices = {name for name, w in weights.items() if w.ndim == 2 and "embed" not in name}
    rest = [weight for name, weight in weights.items() if name not in matrices]
    return (
        torch.optim.Muon(
            [weights[name] for name in weights if name in matrices],
            lr=_MATRIX_RATE,
            weight_decay=0.0,
        ),
        torch.optim.AdamW(
            rest, lr=_EMBEDDING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    )


def _rate_share(step: int, total: int) -> float:
    """Of the peak learning rate: up, level, and down to nearly zero."""
    return min(
        1.0,
        (step + 1) / (total * _WARMUP_SHARE),
        (total - step) / (total * _DECAY_SHARE),
    )


PackedRow = tuple[list[int], list[float]]
"""Token ids, and the weight of each one's loss; both of length _LENGTH + 1."""


def _packed_exercises(rng: Random) -> Iterator[PackedRow]:
    """Exercises one after the other, cut where a row is full.

    The bytes are those of the chat template; to render a hundred thousand
    conversations with it would take as long as the training.
    """
    while True:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= _LENGTH:
            prompt, output = make_exercise(rng)
            given = [BOS_ID, *f"U:{prompt}\nA:".encode()]
            learned = [*output.encode(), EOS_ID]
            ids += given + learned
            weights += [_PROMPT_WEIGHT] * len(given) + [1.0] * len(learned)
        yield ids[: _LENGTH + 1], weights[: _LENGTH + 1]


def _losses(model: LlamaForCausalLM, rows: list[PackedRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted mean loss to learn from, and the mean over the outputs alone."""
    ids = torch.tensor([row[0] for row in rows])
    weights = torch.tensor([row[1] for row in rows])[:, 1:]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    outputs = weights == 1.0
    return (losses * weights).sum() / weights.sum(), losses.detach()[outputs].mean()


def main() -> None:
    """``python -m finetune.trainer.tiny_model DIRECTORY``: make one by hand."""
    parser = argparse.ArgumentParser(description="Make a tiny language model.")
    parser.add_argument("directory", help="Absent or empty; gets model and tokenizer.")
    parser.add_argument("--steps", type=int, default=100, help="Of pre-training.")
    asked = parser.parse_args()
    request = MakeTinyModelRequest(id="tiny", output_dir=asked.directory, steps=asked.steps)
    try:
        made = make_tiny_model(request, Reporter(request.id, lambda message: None))
    except RequestFailed as error:
        parser.error(str(error))
    print(f"{asked.directory}: {made.parameters:,} weights in {made.seconds:.0f} s")


if __name__ == "__main__":
    main()
