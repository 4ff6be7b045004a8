"""The state of an unfinished training on the disk: complete, checked, and no pickle.

A checkpoint directory holds at most one checkpoint, ``step-00000040``:
``state.safetensors`` with weights and optimizer moments, and
``checkpoint.json`` with the rest and the other file's sha256. It decides
whether a checkpoint may be used, not how training goes on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.trainer.publication import published

_STATE = "state.safetensors"
_SCALARS = "checkpoint.json"


class Origin(BaseModel):
    """What a training starts from; one that differs in anything is another training."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    model: str
    data: str
    settings: str


class Counts(BaseModel):
    """What has been done up to and including ``step``."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    step: int
    trained_tokens: int
    rows_seen: int
    first_loss: float
    last_loss: float
    loss_scale: float | None = None
    """Of fp16 gradients, with the steps since it last grew."""
    loss_scale_age: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on as if it had not stopped."""

    counts: Counts
    tensors: dict[str, torch.Tensor]


class _Scalars(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1] = 1
    origin: Origin
    counts: Counts
    sha256: str


def save_checkpoint(
    directory: Path, origin: Origin, counts: Counts, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put this one in place of all others. A crash leaves the old one, or both."""
    name = f"step-{counts.step:08d}"
    # One of this step that was refused on loading.
    shutil.rmtree(directory / name, ignore_errors=True)
    with published(directory / name) as staged:
        save_file(dict(tensors), staged / _STATE)
        scalars = _Scalars(origin=origin, counts=counts, sha256=_sha256(staged / _STATE))
        (staged / _SCALARS).write_text(scalars.model_dump_json(indent=1), encoding="utf-8")
    for path in (*directory.glob("step-*"), *directory.glob(".step-*.partial")):
        if path.name != name:
            shutil.rmtree(path)


def load_checkpoint(
    directory: Path, origin: Origin, note: Callable[[str], None]
) -> Checkpoint | None:
    """The newest usable checkpoint. ``note`` hears why one is not used."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            return _read(path, origin)
        except _Unusable as error:
            note(f"checkpoint {path.name} is not used: {error}")
    return None


class _Unusable(Exception):
    """Another training's, or damaged."""


def _read(path: Path, origin: Origin) -> Checkpoint:
    try:
        scalars = _Scalars.model_validate_json((path / _SCALARS).read_bytes())
        if scalars.origin != origin:
            ours, theirs = origin.model_dump(), scalars.origin.model_dump()
            changed = [part for part in ours if ours[part] != theirs[part]]
            raise _Unusable(f"it was made from another {', '.join(changed)}")
        if _sha256(path / _STATE) != scalars.sha256:
            raise _Unusable("its state is damaged (sha256 differs)")
        return Checkpoint(scalars.counts, load_file(path / _STATE))
    except (OSError, ValidationError, SafetensorError) as error:
        raise _Unusable(f"it is damaged ({type(error).__name__})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
