"""Rows one after the other in one sequence, where none sees another.

Without padding, the layers of a model work on nothing but real tokens. Only
attention looks beyond a token, and it is done row by row here; positions count
from 0 in each row. So each row gets the same likelihoods as alone, which
`packs` tries on the model itself before anything relies on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from finetune.trainer.errors import ran_out_of_memory

ATTENTION: Final = "learnd_rows"
"""Name of our attention among those of transformers."""

_SLACK: Final = 1.25
_SLACK_TOKENS: Final = 8
"""Rows of nearly one length are attended to together, padded to the longest of them."""
_TRIED: Final = ((1, 2, 3, 4, 5), (5, 3, 1), (2, 2, 4, 1))
"""Ids that every vocabulary has."""
_TOLERANCE: Final = {torch.float32: 1e-4}
_TOLERANCE_16_BITS: Final = 0.03
"""Of the largest logit: several times what rounding makes."""


@dataclass(frozen=True)
class PackedRows:
    """Where the rows lie in a sequence: row i is at ``starts[i]`` to ``starts[i + 1]``."""

    starts: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> PackedRows:
        """Rows of these lengths, each at least 1, without a gap."""
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        return cls(tuple(starts))

    def positions(self) -> torch.Tensor:
        """Of each token in its row, shape (n_tokens,)."""
        return torch.cat([torch.arange(end - start) for start, end in pairwise(self.starts)])

    def groups(self) -> list[list[int]]:
        """The starts of neighbours of nearly one length, and the end of the last one."""
        groups: list[list[int]] = []
        shortest = longest = 0
        for start, end in pairwise(self.starts):
            length = end - start
            low, high = min(shortest, length), max(longest, length)
            if groups and high <= low * _SLACK + _SLACK_TOKENS:
                groups[-1].append(end)
                shortest, longest = low, high
            else:
                groups.append([start, end])
                shortest = longest = length
        return groups


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_rows: PackedRows | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, as transformers calls it.

    query: (1, heads, n_tokens, size); key and value may have fewer heads.
    Returns (1, n_tokens, heads, size). Without ``packed_rows`` the minibatch is
    padded on the right, which no token of a row looks at.
    """
    if packed_rows is None:
        return _attend_causally(query, key, value, dropout, scaling).transpose(1, 2), None
    parts = [
        _attend_group(query, key, value, group, dropout, scaling) for group in packed_rows.groups()
    ]
    return torch.cat(parts).unsqueeze(0), None


def _attend_group(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: Sequence[int],
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    lengths = [end - start for start, end in pairwise(starts)]
    width = max(lengths)
    even = min(lengths) == width

    def rows(whole: torch.Tensor) -> torch.Tensor:
        own = whole[0, :, starts[0] : starts[-1]]  # (heads, tokens, size)
        if even:
            return own.unflatten(1, (len(lengths), width)).transpose(0, 1)
        padded = own.new_zeros(own.shape[0], len(lengths) * width, own.shape[2])
        return padded.index_copy(1, places, own).unflatten(1, (len(lengths), width)).transpose(0, 1)

    places = torch.cat(
        [torch.arange(index * width, index * width + n) for index, n in enumerate(lengths)]
    ).to(query.device)
    out = _attend_causally(rows(query), rows(key), rows(value), dropout, scaling)
    flat = out.transpose(1, 2).flatten(0, 1)
    return flat if even else flat[places]


def _attend_causally(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """All three, and what comes back: (rows, heads, width, size)."""
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


AttentionInterface.register(ATTENTION, attend)


def attention_arguments(
    model: PreTrainedModel | PeftModel, rows: PackedRows
) -> dict[str, PackedRows]:
    """What our attention wants to be told; transformers' own derive it from the positions."""
    return {"packed_rows": rows} if model.config._attn_implementation == ATTENTION else {}


def attend_by_rows(model: PreTrainedModel) -> bool:
    """Give the model our attention, if it is of a kind that takes another one.

    Not where a layer looks at a window only, or has something else than attention.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    plain = kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
    if not plain or not model._supports_attention_backend:
        return False
    model.set_attn_implementation(ATTENTION)
    return True


@torch.no_grad()
def packs(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model finds the tokens of two packed rows as probable as each row alone.

    Tried with a few tokens. Not for a model whose layers pass something on from
    token to token by another way than attention, or which ignores positions.
    """
    if "logits_to_keep" not in inspect.signature(_base(model).forward).parameters:
        return False
    device = next(model.parameters()).device
    rows = [torch.tensor(ids, device=device) for ids in _TRIED]
    packed = PackedRows.of([len(row) for row in rows])
    was_training = model.training
    model.eval()
    try:
        together = model(
            input_ids=torch.cat(rows)[None],
            position_ids=packed.positions()[None].to(device),
            use_cache=False,
            **attention_arguments(model, packed),
        ).logits[0]
        alone = [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]
    except (TypeError, ValueError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise
        return False
    finally:
        model.train(was_training)
    tolerance = _TOLERANCE.get(together.dtype, _TOLERANCE_16_BITS)
    difference = (together.float() - torch.cat(alone).float()).abs().max()
    scale = together.float().abs().max()
    # A model that is not finite is the gate's business; it packs as badly as it pads.
    return not bool(difference > scale * tolerance)


def _base(model: PreTrainedModel | PeftModel) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
