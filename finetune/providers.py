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
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Self

from finetune.artifacts import ArtifactStore
from finetune.local_provider import LocalEvaluator, LocalProvider
from finetune.remote.access import ServiceAccess
from finetune.remote.chat_evaluator import ChatEvaluator, ChatRules
from finetune.remote.http_mapping import FineTuneEndpoint
from finetune.remote.openai_settings import NAME as OPENAI
from finetune.remote.openai_settings import OpenAIRules
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
    training: Callable[[], Mapping[str, Any]] = dict
    """The training settings that hold now, unless a model line says otherwise."""
    tensorboard_dir: Path | None = None
    """Where a local training writes TensorBoard's event files; None is nowhere."""
    training_service: ServiceAccess | None = None
    """Where the provider `openai` trains."""
    chat_service: ServiceAccess | None = None
    """Where remote versions answer."""
    chat_rules: ChatRules = field(default_factory=ChatRules)
    """How remote versions are measured there."""
    openai_rules: OpenAIRules = field(default_factory=OpenAIRules)
    """How the provider `openai` asks its service."""
    fine_tune_endpoint: FineTuneEndpoint | None = None
    """Where and how the provider `http` trains."""


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


class ServiceNotNamedError(LearningError):
    """A provider needs a service that no setting names."""

    def __init__(self, provider: str, setting: str, purpose: str) -> None:
        super().__init__(f"provider {provider!r} needs {setting}: {purpose}")
        self.provider, self.setting = provider, setting

    @classmethod
    def of_openai(cls) -> Self:
        """Of the provider `openai`."""
        return cls(OPENAI, "remote.openai_endpoint (OPENAI_BASE_URL)", "where it trains")


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

    Raises UnknownProviderError and BrokenProviderError.
    """
    if (built_in := _BUILT_IN.get(name)) is not None:
        return built_in
    for entry in entry_points(group=GROUP, name=name):
        try:
            factory: ProviderFactory = entry.load()
        except Exception as error:
            raise BrokenProviderError(name, entry.value, error) from error
        return factory
    raise UnknownProviderError(name, provider_names())


@contextlib.asynccontextmanager
async def _local(workshop: Workshop) -> AsyncIterator[Workbench]:
    def shared() -> TrainingSettings:
        training = workshop.training()
        return TrainingSettings.model_validate(
            {name: training[name] for name in _SHARED if name in training}
        )

    provider = LocalProvider(workshop.trainer, tensorboard_dir=workshop.tensorboard_dir)
    yield Workbench(
        provider,
        LocalEvaluator(workshop.trainer, shared),
        needs_node=True,
        expect=provider.expect,
    )


@contextlib.asynccontextmanager
async def _scripted(workshop: Workshop) -> AsyncIterator[Workbench]:
    provider = ScriptedProvider(workshop.folder / "scripted", workshop.artifacts)
    yield Workbench(provider, ScriptedEvaluator(workshop.artifacts), nudge=provider.nudge)


@contextlib.asynccontextmanager
async def _openai(workshop: Workshop) -> AsyncIterator[Workbench]:
    # Imported here: most daemons train themselves, and need no client.
    from finetune.remote.openai_client import OpenAIClient
    from finetune.remote.openai_provider import OpenAIProvider

    access, serving = workshop.training_service, workshop.chat_service
    if access is None or serving is None:
        raise ServiceNotNamedError.of_openai()
    async with OpenAIClient.open(access, workshop.openai_rules) as client:
        provider = OpenAIProvider(
            client,
            access,
            workshop.folder / OPENAI,
            workshop.artifacts,
            serving=serving.base_url,
            rules=workshop.openai_rules,
        )
        yield Workbench(provider, ChatEvaluator(serving, workshop.chat_rules), nudge=provider.nudge)


@contextlib.asynccontextmanager
async def _http(workshop: Workshop) -> AsyncIterator[Workbench]:
    # Imported here: most daemons train themselves, and need no client.
    from finetune.remote.http_endpoint import HttpEndpoint
    from finetune.remote.http_provider import HttpProvider

    configured, serving = workshop.fine_tune_endpoint, workshop.chat_service
    if configured is None:
        raise ServiceNotNamedError(
            "http", "remote.finetune_endpoint (FINETUNE_ENDPOINT)", "where it trains"
        )
    if serving is None:
        raise ServiceNotNamedError(
            "http", "remote.llm_endpoint (LLM_ENDPOINT)", "where what it trains answers"
        )
    async with HttpEndpoint.connect(configured) as endpoint:
        yield Workbench(
            HttpProvider(
                configured,
                endpoint,
                serving=serving.base_url,
                folder=workshop.folder / "http",
                artifacts=workshop.artifacts,
                clock=lambda: datetime.now(UTC),
            ),
            ChatEvaluator(serving, workshop.chat_rules),
        )


LOCAL: Final = frozenset({"local", "huggingface", "scripted"})
"""Providers whose base models are loaded here; those of others answer at a service."""

_SHARED: Final = ("max_length", "precision", "quantization")
"""Training settings that an evaluation follows too."""

_BUILT_IN: Final[Mapping[str, ProviderFactory]] = {
    "local": _local,
    "huggingface": _local,
    "http": _http,
    "scripted": _scripted,
    OPENAI: _openai,
}
