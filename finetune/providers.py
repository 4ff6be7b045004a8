"""Fine-tune providers by name.

To add one: write a module here with a factory, list it in `_BUILT_IN`, and let the suite
in tests/contract/test_fine_tune_provider.py run on it. A package outside registers its
factory under the entry point group `learnd.providers`.
"""

import contextlib
import difflib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from finetune.artifacts import ArtifactStore
from finetune.local_provider import LocalEvaluator, LocalProvider
from finetune.remote.access import ServiceAccess
from finetune.remote.chat_evaluator import ChatRules
from finetune.scripted_provider import ScriptedEvaluator, ScriptedProvider
from finetune.trainer.protocol import TrainingSettings
from finetune.trainer_process import TrainerHost
from learning.errors import LearningError
from learning.lines import ModelLine
from learning.ports import Evaluator, FineTuneProvider

GROUP: Final = "learnd.providers"


@dataclass(frozen=True)
class Workshop:
    """What a factory may use. None of it is the factory's to close."""

    folder: Path
    """A provider keeps files of its own in a folder of its name in here."""
    artifacts: ArtifactStore
    trainer: TrainerHost
    """Shared by all providers, and started only when one of them uses it."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """The training settings that hold unless a model line says otherwise."""
    tensorboard_dir: Path | None = None
    """Where a local training writes TensorBoard's event files; None is nowhere."""
    training_service: ServiceAccess | None = None
    """Where the provider `openai` trains."""
    chat_service: ServiceAccess | None = None
    """Where remote versions answer."""
    chat_rules: ChatRules = field(default_factory=ChatRules)
    """How remote versions are measured there."""


def _nothing(line: ModelLine) -> None:
    """A provider that has nothing to get ready."""


def _nobody(job_id: str) -> None:
    """A provider that knows by itself when its jobs change."""


@dataclass(frozen=True)
class Workbench:
    """A provider, and the evaluator that can load what it makes."""

    provider: FineTuneProvider
    evaluator: Evaluator
    needs_node: bool = False
    """Whether its jobs live in this daemon and on this node's files, as local ones do."""
    expect: Callable[[ModelLine], None] = _nothing
    """A batch of the line is about to fill: what takes time may begin now. Must not block."""
    nudge: Callable[[str], None] = _nobody
    """A job of that id may have changed: ask its service now, not at the next poll. Only a
    hint, maybe a wrong one. Must not block."""


ProviderFactory = Callable[[Workshop], AbstractAsyncContextManager[Workbench]]
"""Opens a workbench; leaving the context closes what it opened itself."""


class UnknownProviderError(LearningError):
    """No provider goes by that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        super().__init__(f"no provider {name!r}{hint} (known: {', '.join(known)})")
        self.name, self.known = name, known


class ProviderNotHereError(LearningError):
    """A provider that is planned, and that no installed package brings."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"provider {name!r} is not available in this version: use `local`, or install a package"
            f" that registers it under the entry point group {GROUP}"
        )
        self.name = name


class BrokenProviderError(LearningError):
    """A provider from another package is registered, but cannot be imported."""

    def __init__(self, name: str, place: str, cause: Exception) -> None:
        super().__init__(f"provider {name!r} cannot be loaded from {place}: {cause!r}")
        self.name, self.place = name, place


def provider_names() -> Sequence[str]:
    """Every name that `factory_of` knows, sorted."""
    return sorted({*_BUILT_IN, *entry_points(group=GROUP).names})


def factory_of(name: str) -> ProviderFactory:
    """The factory of that name; a built-in one cannot be replaced from outside.

    Raises UnknownProviderError, ProviderNotHereError and BrokenProviderError.
    """
    if (built_in := _BUILT_IN.get(name)) is not None:
        return built_in
    for entry in entry_points(group=GROUP, name=name):
        try:
            factory: ProviderFactory = entry.load()
        except Exception as error:
            raise BrokenProviderError(name, entry.value, error) from error
        return factory
    if name in _PLANNED:
        raise ProviderNotHereError(name)
    raise UnknownProviderError(name, provider_names())


@contextlib.asynccontextmanager
async def _local(workshop: Workshop) -> AsyncIterator[Workbench]:
    known = {name: workshop.training[name] for name in _SHARED if name in workshop.training}
    settings = TrainingSettings.model_validate(known)
    provider = LocalProvider(workshop.trainer, tensorboard_dir=workshop.tensorboard_dir)
    yield Workbench(
        provider,
        LocalEvaluator(
            workshop.trainer,
            max_length=settings.max_length,
            precision=settings.precision,
            quantization=settings.quantization,
        ),
        needs_node=True,
        expect=provider.expect,
    )


@contextlib.asynccontextmanager
async def _scripted(workshop: Workshop) -> AsyncIterator[Workbench]:
    provider = ScriptedProvider(workshop.folder / "scripted", workshop.artifacts)
    yield Workbench(provider, ScriptedEvaluator(workshop.artifacts), nudge=provider.nudge)


LOCAL: Final = frozenset({"local", "huggingface", "scripted"})
"""Providers whose base models are loaded here; those of others answer at a service."""

_SHARED: Final = ("max_length", "precision", "quantization")
"""Training settings that an evaluation follows too."""

_PLANNED: Final = frozenset({"openai", "http"})

_BUILT_IN: Final[Mapping[str, ProviderFactory]] = {
    "local": _local,
    "huggingface": _local,
    "scripted": _scripted,
}
