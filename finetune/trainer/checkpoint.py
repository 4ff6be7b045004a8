"""The state of an unfinished training on the disk: complete, checked, and no pickle.

A checkpoint directory holds the newest checkpoints, ``step-00000040`` and so
on. In each are ``state.safetensors`` with weights and optimizer moments, and
``checkpoint.json`` with the rest, the other file's sha256 and its own. It
decides whether a checkpoint may be used, not how training goes on.
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
from learning.failpoints import reached

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

    format: Literal[2] = 2
    origin: Origin
    counts: Counts
    state_sha256: str
    sha256: str = ""
    """Of this file's own text without this line."""

    def sealed(self) -> _Scalars:
        """With its own digest."""
        unsealed = self.model_copy(update={"sha256": ""})
        digest = hashlib.sha256(unsealed.text()).hexdigest()
        return unsealed.model_copy(update={"sha256": digest})

    def text(self) -> bytes:
        """The only text that stands for it, to the byte."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def save_checkpoint(
    directory: Path,
    origin: Origin,
    counts: Counts,
    tensors: Mapping[str, torch.Tensor],
    keep: int = 2,
) -> None:
    """Add this one, and keep so many with it, for when it is damaged. A crash leaves one more."""
    name = f"step-{counts.step:08d}"
    # One of this step that was refused on loading.
    shutil.rmtree(directory / name, ignore_errors=True)
    with published(directory / name) as staged:
        save_file(dict(tensors), staged / _STATE)
        scalars = _Scalars(origin=origin, counts=counts, state_sha256=_sha256(staged / _STATE))
        reached("checkpoint state written")
        (staged / _SCALARS).write_bytes(scalars.sealed().text())
        reached("checkpoint written")
    reached("checkpoint named")
    # Those of later steps belong to another training: nothing went on from them.
    earlier = sorted(path for path in directory.glob("step-*") if path.name < name)
    kept = {name, *(path.name for path in earlier[max(0, len(earlier) - keep + 1) :])}
    for path in (*directory.glob("step-*"), *directory.glob(".step-*.partial")):
        if path.name not in kept:
            shutil.rmtree(path)


def load_checkpoint(
    directory: Path, origin: Origin, note: Callable[[str], None]
) -> Checkpoint | None:
    """The newest usable checkpoint. ``note`` hears why one is not used.

    A damaged one is set aside under another name, for a person to look at.
    """
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            return _read(path, origin)
        except _Damaged as error:
            aside = directory / f"damaged-{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            note(f"checkpoint {path.name} is not used and set aside as {aside.name}: {error}")
        except _Foreign as error:
            note(f"checkpoint {path.name} is not used: {error}")
    return None


class _Foreign(Exception):
    """Another training's."""


class _Damaged(Exception):
    """Not as it was written."""


def _read(path: Path, origin: Origin) -> Checkpoint:
    try:
        scalars = _read_scalars(path)
        if scalars.origin != origin:
            ours, theirs = origin.model_dump(), scalars.origin.model_dump()
            changed = [part for part in ours if ours[part] != theirs[part]]
            raise _Foreign(f"it was made from another {', '.join(changed)}")
        if _sha256(path / _STATE) != scalars.state_sha256:
            raise _Damaged(f"{_STATE} is damaged (its sha256 differs)")
        return Checkpoint(scalars.counts, load_file(path / _STATE))
    except (OSError, ValidationError, SafetensorError) as error:
        raise _Damaged(f"it is damaged ({type(error).__name__})") from error


def _read_scalars(path: Path) -> _Scalars:
    """Nothing is opened before the folder holds the two plain files, and no third."""
    files = {file.name: file for file in path.iterdir()}
    for name in sorted({_STATE, _SCALARS} ^ files.keys()):
        raise _Damaged(f"{name} {'is not part of it' if name in files else 'is missing'}")
    for name, file in files.items():
        if file.is_symlink() or not file.is_file():
            raise _Damaged(f"{name} is not a plain file")
    text = files[_SCALARS].read_bytes()
    scalars = _Scalars.model_validate_json(text)
    if text != scalars.sealed().text():
        raise _Damaged(f"{_SCALARS} is damaged (its sha256 differs)")
    return scalars


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
