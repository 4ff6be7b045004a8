"""`learnd chat`: let one version answer, in a trainer process of its own or at its service.

The daemon says where the version lies; its files are checked against their manifest before they
are loaded or believed. A remote version is asked at the chat endpoint of the settings here.
Nothing that is said is stored.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from daemon.printing import plain
from daemon.settings import Settings
from daemon.settings_sources import SettingsError
from finetune.artifacts import ArtifactStore, verify
from finetune.providers import LOCAL
from finetune.remote.chat_service import ChatService
from finetune.remote.model import name_of
from finetune.trainer_process import TrainerHost
from learning.errors import LearningError
from learning.ports import ModelReference

LOG_FILE = "chat-trainer.log"
PATIENCE = timedelta(hours=12)
"""How long the model stays loaded between two prompts."""

OnToken = Callable[[str], None]
Conversation = list[dict[str, str]]
Speak = Callable[[Conversation, OnToken], Awaitable[str]]


class TaintedModelError(LearningError):
    """Somebody wants to talk to a version that knows what was forgotten."""

    def __init__(self, line: str, version: str) -> None:
        super().__init__(
            f"{line}@{version} is tainted: it knows an event that was forgotten, and is not served;"
            f" `learnd versions {line}` shows the others"
        )


@dataclass(frozen=True)
class Chat:
    """One version that is ready to answer."""

    runner: asyncio.Runner
    speak: Speak

    def answer(self, messages: Conversation, on_token: OnToken) -> str:
        """The answer to a conversation, told piece by piece too. Raises JobFailedError."""

        async def spoken() -> str:
            return await self.speak(messages, on_token)

        return self.runner.run(spoken())


@contextlib.contextmanager
def open_chat(
    line: str,
    loading: Mapping[str, Any],
    settings: Settings,
    *,
    max_new_tokens: int,
    temperature: float,
) -> Iterator[Chat]:
    """Make a version ready to answer; `loading` is what the API says of it.

    The event loop runs only while the model answers, so that Ctrl-C works at the prompt.
    Raises SettingsError, ArtifactError and NotARemoteModelError.
    """
    adapter = loading["adapter"]
    model = ModelReference(loading["base_model"], Path(adapter) if adapter is not None else None)
    here: AbstractAsyncContextManager[Speak]
    if _is_remote(line, loading, settings):
        here = _at_its_service(model, settings, max_new_tokens, temperature)
    else:
        artifact = loading["artifact_dir"]
        root = Path(artifact).parent if artifact is not None else settings.artifacts_dir
        here = _in_a_trainer(model, root, settings, max_new_tokens, temperature)
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            yield Chat(runner, runner.run(stack.enter_async_context(here)))
        finally:
            runner.run(stack.aclose())


def _is_remote(line: str, loading: Mapping[str, Any], settings: Settings) -> bool:
    """A version is as it was made; a declared base is where its line's provider trains."""
    if loading["method"] != "base" or Path(loading["base_model"]).is_dir():
        return bool(loading["method"] == "remote")
    configured = settings.model_lines().get(line)
    return configured is not None and configured.provider not in LOCAL


@contextlib.asynccontextmanager
async def _in_a_trainer(
    model: ModelReference, root: Path, settings: Settings, max_new_tokens: int, temperature: float
) -> AsyncIterator[Speak]:
    host = TrainerHost(ArtifactStore(root), settings.data_dir / LOG_FILE, idle=PATIENCE)
    try:

        async def speak(messages: Conversation, on_token: OnToken) -> str:
            answer = await host.generate(
                model,
                messages,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                on_token=on_token,
            )
            return answer.text

        yield speak
    finally:
        await host.aclose()


@contextlib.asynccontextmanager
async def _at_its_service(
    model: ModelReference, settings: Settings, max_new_tokens: int, temperature: float
) -> AsyncIterator[Speak]:
    if (access := settings.remote.chat_service()) is None:
        raise SettingsError(["this version answers at a service: set remote.llm_endpoint"])
    if model.adapter is not None:
        await asyncio.to_thread(verify, model.adapter)
    name = await asyncio.to_thread(name_of, model)

    async with ChatService.connect(access, settings.remote.chat_rules().limits) as service:

        async def speak(messages: Conversation, on_token: OnToken) -> str:
            answer = await service.answer(
                name, messages, max_tokens=max_new_tokens, temperature=temperature
            )
            on_token(answer)
            return answer

        yield speak


def opening(system: str | None) -> list[dict[str, str]]:
    """How a conversation begins."""
    return [{"role": "system", "content": system}] if system is not None else []


def converse(chat: Chat, system: str | None) -> None:
    """Answer what is typed until the end of input."""
    messages = opening(system)
    for prompt in _prompts():
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": chat.answer(messages, show_token)})
        print()


def show_token(text: str) -> None:
    """Print a piece of an answer at once."""
    print(plain(text), end="", flush=True)


def _prompts() -> Iterator[str]:
    mark = "> " if sys.stdin.isatty() else ""
    with contextlib.suppress(EOFError):
        while True:
            if prompt := input(mark).strip():
                yield prompt
