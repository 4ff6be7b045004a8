"""What the artifact of a remote version holds: where its model is served, and its name there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from learning.errors import LearningError
from learning.ports import ModelReference

FILE: Final = "remote_model.json"


@dataclass(frozen=True)
class RemoteModel:
    """One model of one service. Holds no key: whoever asks brings it from the settings."""

    provider: str
    """The provider that made it, by the name it is recorded by."""
    endpoint: str
    """The base address of the service that serves it."""
    name: str
    """What the service calls it, as in the `model` field of a request."""


class NotARemoteModelError(LearningError):
    """A folder does not say which remote model it stands for."""

    def __init__(self, folder: Path, fault: str) -> None:
        super().__init__(f"{folder.name}/{FILE}: {fault}")
        self.folder = folder


def write(model: RemoteModel, folder: Path) -> None:
    """Write the file that makes a folder stand for a model, as a provider's output."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(asdict(model), indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> RemoteModel:
    """The model that a folder stands for. Raises NotARemoteModelError."""
    try:
        return _model.validate_json((folder / FILE).read_bytes(), strict=True)
    except OSError as error:
        raise NotARemoteModelError(folder, error.strerror or "cannot be read") from error
    except ValidationError as error:
        raise NotARemoteModelError(folder, error.errors()[0]["msg"]) from error


def name_of(reference: ModelReference) -> str:
    """What the service calls a model: that of its artifact, or the base's own name.

    Raises NotARemoteModelError when the artifact is not a remote version's.
    """
    return reference.base_model if reference.adapter is None else read(reference.adapter).name


_model: Final = TypeAdapter(RemoteModel)
