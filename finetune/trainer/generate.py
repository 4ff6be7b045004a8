"""Answer one conversation, token by token.

Its own loop, because the pieces are streamed as they come. Greedy, or drawn
at a temperature from a seed; nothing else that could be tuned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.trainer.bases import Bases
from finetune.trainer.encoding import Encoder
from finetune.trainer.errors import RequestFailed
from finetune.trainer.interruption import Interruption
from finetune.trainer.models import choose_compute, load_adapter, max_positions
from finetune.trainer.protocol import GenerateRequest, GenerateResult, Token
from finetune.trainer.reporting import Reporter
from finetune.trainer.rows import Turn

_INCOMPLETE = "\ufffd"
"""What a tokenizer makes of the first bytes of a character."""


def generate(
    request: GenerateRequest, reporter: Reporter, interruption: Interruption, bases: Bases
) -> GenerateResult:
    """Stream an answer, then give it whole.

    Raises RequestFailed, and Interrupted between tokens when it should stop.
    """
    started = time.monotonic()
    ref = request.model
    compute = choose_compute(request.precision, ref.base_model)
    tokenizer = bases.tokenizer(ref.base_model)
    base = bases.lend(ref.base_model, compute.dtype, compute.device, reporter.note)
    model = base if ref.adapter is None else load_adapter(base, ref.adapter, trainable=False).eval()
    prompt = Encoder(tokenizer).encode_prompt(
        tuple(Turn(said.role, said.content) for said in request.messages)
    )
    room = _room(model, prompt, request.max_new_tokens)
    stops = _stop_ids(model, tokenizer)
    text = _Text(tokenizer)
    count = 0
    logprobs: list[float] = []
    stopped = False
    with interruption.deferred():
        for token, logprob in _next_tokens(model, prompt, request):
            interruption.raise_if_requested()
            logprobs.append(logprob)
            stopped = token in stops
            if stopped:
                break
            count += 1
            if piece := text.add(token):
                reporter.say(Token(id=request.id, text=piece))
            if count == room:
                break
    if piece := text.finish():
        reporter.say(Token(id=request.id, text=piece))
    return GenerateResult(
        text=text.said,
        tokens=count,
        finish="stop" if stopped else "length",
        seconds=time.monotonic() - started,
        mean_logprob=min(0.0, math.fsum(logprobs) / len(logprobs)),  # rounding may leave it above
    )


def _room(model: PreTrainedModel | PeftModel, prompt: list[int], wanted: int) -> int:
    """Tokens that may be generated, at least 1."""
    if not prompt:
        raise RequestFailed("bad_request", "the messages are empty")
    limit = max_positions(model)
    if limit is None:
        return wanted
    if len(prompt) >= limit:
        raise RequestFailed(
            "bad_request",
            f"the messages are {len(prompt)} tokens, and the model takes {limit} with its answer",
        )
    return min(wanted, limit - len(prompt))


def _stop_ids(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """The tokenizer's end of turn, and those of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if isinstance(i, int))


def _next_tokens(
    model: PreTrainedModel | PeftModel, prompt: list[int], request: GenerateRequest
) -> Iterator[tuple[int, float]]:
    """Each token, and the log-probability that the model gives it at temperature 1."""
    device = next(model.parameters()).device
    dice = torch.Generator(device).manual_seed(request.seed)
    fed = torch.tensor([prompt], device=device)
    past: Any = None
    while True:
        # Not around the yield: the mode would leak into the caller.
        with torch.inference_mode():
            output = model(input_ids=fed, past_key_values=past, use_cache=True)
            logits, past = output.logits[0, -1].float(), output.past_key_values
            if not bool(torch.isfinite(logits).any()):
                raise RequestFailed("bad_model", "the model's output is not finite")
            if request.temperature == 0:
                fed = logits.argmax().view(1, 1)
            else:
                weights = (logits / request.temperature).softmax(dim=-1)
                fed = torch.multinomial(weights, 1, generator=dice).view(1, 1)
            logprob = logits.log_softmax(dim=-1)[fed.item()].item()
        yield int(fed.item()), logprob


class _Text:
    """Tokens to text as they come: only whole characters, and each only once.

    A token's text depends on the one before it, so each new one is decoded
    together with those of the last piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._piece_start = self._said_until = 0
        self.said = ""

    def add(self, token: int) -> str:
        """The text that is complete now; often empty in the midst of a character."""
        self._ids.append(token)
        new = self._unsaid()
        return "" if new.endswith(_INCOMPLETE) else self._say(new)

    def finish(self) -> str:
        """What was still held back."""
        return self._say(self._unsaid())

    def _unsaid(self) -> str:
        known = self._decode(self._ids[self._piece_start : self._said_until])
        return self._decode(self._ids[self._piece_start :])[len(known) :]

    def _say(self, new: str) -> str:
        if new:
            self._piece_start, self._said_until = self._said_until, len(self._ids)
            self.said += new
        return new

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
