"""The loaded base model that one request leaves for the next.

A base is lent as a model of its own whose weights are the kept ones: whatever a request
hangs onto it (adapters, hooks, modes, flags) goes with it. Who changes weights takes the base
instead, and nothing stays behind. Before each loan the kept weights are proven to be those
that were loaded, and the files to be those that they were loaded from. At most one base is
kept; who asks for another one gets that one kept instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.trainer.models import load_base, load_tokenizer
from finetune.trainer.packing import packs
from finetune.trainer.protocol import Quantization

_WORD_BYTES = 8

Note = Callable[[str], None]
FileStamp = tuple[str, int, int, int]
"""Name, size, and when it was last written or moved here, in nanoseconds."""


@dataclass(frozen=True)
class _Identity:
    """What must be the same for a loaded base to stand for a load from the disk."""

    base_model: str
    dtype: torch.dtype
    device: torch.device
    quantization: Quantization
    files: tuple[FileStamp, ...]


@dataclass(frozen=True)
class _Kept:
    identity: _Identity
    model: PreTrainedModel
    checksum: tuple[int, ...]
    packs: dict[str, bool] = field(default_factory=dict)
    """What was found out, by the name of the attention."""


class Bases:
    """Loads bases and keeps the last one. For one thread, one request after the other."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None
        self._tokenizer: tuple[tuple[str, tuple[FileStamp, ...]], PreTrainedTokenizerBase] | None
        self._tokenizer = None

    def lend(
        self,
        base_model: str,
        dtype: torch.dtype,
        device: torch.device,
        note: Note,
        *,
        quantization: Quantization = "none",
    ) -> PreTrainedModel:
        """A base in evaluation mode, whose weights are not to be changed.

        Raises RequestFailed (bad_model). ``note`` hears when a kept base had to be loaded anew.
        """
        identity = _Identity(base_model, dtype, device, quantization, _stamps(base_model))
        if not self._has(identity, note):
            self._kept = None  # before the next one is loaded: never two
            loaded = load_base(base_model, dtype, device, quantization=quantization)
            if not _shareable(loaded):
                return loaded
            self._kept = _Kept(identity, loaded, _checksum(loaded))
        assert self._kept is not None
        return _sharing_weights(self._kept.model)

    def take(
        self, base_model: str, dtype: torch.dtype, device: torch.device, note: Note
    ) -> PreTrainedModel:
        """A base in evaluation mode, whose weights are the caller's to change. Nothing is kept.

        Raises RequestFailed (bad_model).
        """
        identity = _Identity(base_model, dtype, device, "none", _stamps(base_model))
        taken = self._kept.model if self._kept and self._has(identity, note) else None
        self._kept = None
        return taken if taken is not None else load_base(base_model, dtype, device)

    def packs(self, base: PreTrainedModel) -> bool:
        """Whether the base that was lent or taken last packs, with the attention that it has.

        Tried once for as long as it is kept: the trial goes through all of its weights.
        """
        if self._kept is None:
            return packs(base)
        found, attention = self._kept.packs, base.config._attn_implementation
        if attention not in found:
            found[attention] = packs(base)
        return found[attention]

    def tokenizer(self, base_model: str) -> PreTrainedTokenizerBase:
        """A base's tokenizer, to read and not to change. Raises RequestFailed (bad_model)."""
        identity = (base_model, _stamps(base_model))
        if self._tokenizer is None or self._tokenizer[0] != identity:
            self._tokenizer = (identity, load_tokenizer(base_model))
        return self._tokenizer[1]

    def _has(self, identity: _Identity, note: Note) -> bool:
        if self._kept is None or self._kept.identity != identity:
            return False
        if _checksum(self._kept.model) == self._kept.checksum:
            return True
        note(f"the kept weights of {identity.base_model} were changed; they are loaded anew")
        return False


def _stamps(base_model: str) -> tuple[FileStamp, ...]:
    """Of a directory's files; a name on the hub has none, and stays at the revision it had."""
    directory = Path(base_model)
    if not directory.is_dir():
        return ()
    found = ((path.name, path.stat()) for path in sorted(directory.iterdir()) if path.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def _shareable(model: PreTrainedModel) -> bool:
    """Whether a weight is nothing but its tensor; a quantised one carries more."""
    return all(type(weight) is nn.Parameter for weight in model.parameters())


def _sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of everything but the weights' memory."""
    shared: dict[int, object] = {}
    for weight in model.parameters():
        twin = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        twin.__dict__.update(weight.__dict__)
        shared[id(weight)] = twin
    return copy.deepcopy(model, shared)


def _checksum(model: PreTrainedModel) -> tuple[int, ...]:
    """The sum of each weight's 8-byte words, modulo 2**64.

    Finds any change of one word for sure, and the changes of a training but for one chance in
    2**64; it is no defence against somebody who wants the sum to stay. Cheap: it runs at the
    speed of memory, where a cryptographic hash would take longer than loading anew.
    """
    return tuple(_sum_of_words(weight.detach()) for weight in model.parameters())


def _sum_of_words(tensor: torch.Tensor) -> int:
    octets = tensor.contiguous().view(-1).view(torch.uint8)
    if octets.data_ptr() % _WORD_BYTES or octets.storage_offset() % _WORD_BYTES:
        octets = octets.clone()
    whole = octets.numel() // _WORD_BYTES * _WORD_BYTES
    words = octets[:whole].view(torch.int64).sum()
    return int(words.item()) ^ int(octets[whole:].sum().item())
