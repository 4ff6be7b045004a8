"""`learnd chat`: let one version answer, in a trainer process of its own on this machine.

The daemon says where the version lies; its files are checked against their manifest
before they are loaded. Nothing that is said here is stored.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from daemon.printing import plain
from daemon.settings import Settings
from finetune.artifacts import ArtifactStore
from finetune.trainer_process import TrainerHost
from learning.ports import ModelReference

LOG_FILE = "chat-trainer.log"
PATIENCE = timedelta(hours=12)
"""How long the model stays loaded between two prompts."""

OnToken = Callable[[str], None]


@dataclass(frozen=True)
class Chat:
    """One version, loaded once, and how it answers."""

    runner: asyncio.Runner
    host: TrainerHost
    model: ModelReference
    max_new_tokens: int
    temperature: float

    def answer(self, messages: list[dict[str, str]], on_token: OnToken) -> str:
        """The answer to a conversation, told piece by piece too. Raises JobFailedError."""
        return self.runner.run(
            self.host.generate(
                self.model,
                messages,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                on_token=on_token,
            )
        )


@contextlib.contextmanager
def open_chat(
    loading: Mapping[str, Any],
    settings: Settings,
    *,
    max_new_tokens: int,
    temperature: float,
) -> Iterator[Chat]:
    """Make a version ready to answer; `loading` is what the API says of it.

    The event loop runs only while the model answers, so that Ctrl-C works at the prompt.
    """
    artifact, adapter = loading["artifact_dir"], loading["adapter"]
    root = Path(artifact).parent if artifact is not None else settings.artifacts_dir
    model = ModelReference(loading["base_model"], Path(adapter) if adapter is not None else None)
    host = TrainerHost(ArtifactStore(root), settings.data_dir / LOG_FILE, idle=PATIENCE)
    with asyncio.Runner() as runner:
        try:
            yield Chat(runner, host, model, max_new_tokens, temperature)
        finally:
            runner.run(host.aclose())


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
