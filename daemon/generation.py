"""Have a model answer a task: a line's champion, or the model of a chat service.

A local champion answers in the daemon's trainer process, in its turn behind a training under
way. Stores nothing; what becomes of the answer is for whoever asked.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.store.registry import Registry
from finetune.artifacts import ArtifactError, verify
from finetune.providers import LOCAL
from finetune.remote.access import ServiceAccess
from finetune.remote.chat_service import ChatLimits, ChatService
from finetune.remote.model import name_of
from finetune.trainer_process import TrainerHost
from learning.errors import ConflictError
from learning.lines import ModelLine
from learning.ports import Answer, JobFailedError, ModelReference

Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class ChatModel:
    """The service that answers for remote versions; with a `model`, for every task."""

    access: ServiceAccess
    limits: ChatLimits
    model: str | None


@dataclass(frozen=True)
class Generated:
    """An answer, and who gave it: `line@version`, or the service's name of a model."""

    answer: Answer
    model_version: str


class NobodyAnswersError(ConflictError):
    """There is no model that could answer for a line."""

    def __init__(self, line: str) -> None:
        super().__init__(
            f"no model answers for {line}: set finetune.base_model, or remote.llm_endpoint with"
            " remote.llm_model"
        )
        self.line = line


class Generation:
    """Asks whoever answers for a line now."""

    def __init__(self, registry: Registry, host: TrainerHost, service: ChatModel | None) -> None:
        self._registry = registry
        self._host = host
        self._service = service

    async def answer(
        self, line: ModelLine, messages: Conversation, *, max_new_tokens: int
    ) -> Generated:
        """The most likely answer to a conversation that ends with the user.

        Raises NobodyAnswersError, and JobFailedError when the model or its service fails.
        """
        service = self._service
        if service is not None and service.model is not None:
            answer = await _asked(service, service.model, messages, max_new_tokens)
            return Generated(answer, service.model)
        if line.base_model is None:
            raise NobodyAnswersError(line.name)
        number, model = await self._registry.champion(line.name, line.base_model)
        by = f"{line.name}@{number}"
        if line.provider in LOCAL:
            said = await self._host.generate(model, messages, max_new_tokens=max_new_tokens)
            return Generated(said, by)
        if service is None:
            raise NobodyAnswersError(line.name)
        name = await asyncio.to_thread(_verified_name, model)
        return Generated(await _asked(service, name, messages, max_new_tokens), by)


async def _asked(service: ChatModel, model: str, messages: Conversation, max_tokens: int) -> Answer:
    async with ChatService.connect(service.access, service.limits) as chat:
        return await chat.answer_with_confidence(model, messages, max_tokens=max_tokens)


def _verified_name(model: ModelReference) -> str:
    """What its service calls a remote version, after its files were held against the manifest."""
    try:
        if model.adapter is not None:
            verify(model.adapter)
        return name_of(model)
    except ArtifactError as error:
        raise JobFailedError("bad_model", str(error), retryable=False) from error
