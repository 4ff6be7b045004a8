"""`learnd chat` with the true trainer: a model of random weights still answers something."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.exit_status import ExitStatus
from finetune.artifacts import ArtifactStore
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer_process import TrainerHost
from tests.acceptance.test_cli import Terminal, clean_environment, serve_past
from tests.rows import Past
from tests.services import require


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    """A line whose base is a tiny model, and whose 1.0.1 lost its files."""
    missing = None if importlib.util.find_spec("torch") else "it is not installed"
    require("PyTorch", missing)
    model = tmp_path / "tiny"
    async with (
        TrainerHost(ArtifactStore(tmp_path / "artifacts"), tmp_path / "log") as host,
        host.use() as trainer,
    ):
        request = MakeTinyModelRequest(id="make", output_dir=str(model), steps=0)
        await trainer.request(request, lambda _: None)

    def fill(past: Past) -> None:
        base = past.line(base_model=str(model))
        past.version(
            release="1.0.1", state="released", run_id="r-1", parent=base, base_model=str(model)
        )

    terminal = Terminal(tmp_path, clean_environment())
    async with serve_past(tmp_path / "learnd-data", fill) as (url, _):
        terminal.env["LEARND_URL"] = url
        yield terminal


async def test_one_prompt_and_a_conversation_are_answered(terminal: Terminal) -> None:
    words = ("chat", "audio", "--max-new-tokens", "4")
    once, talk = await asyncio.gather(
        terminal.type(*words, "-p", "hello", "--json"),
        terminal.type(*words, "--system", "Be brief.", stdin=b"one\n\ntwo\n"),
    )
    assert once.status == ExitStatus.DONE, once.err
    assert once.json["version"] == "1.0.0"
    assert isinstance(once.json["answer"], str)
    assert talk.status == ExitStatus.DONE, talk.err
    assert talk.out.count("\n") >= 2


async def test_a_version_whose_files_are_gone_is_refused_by_name(terminal: Terminal) -> None:
    ran = await terminal.type("chat", "audio@1.0.1", "-p", "hello")
    assert ran.status == ExitStatus.REFUSED
    assert "manifest.json" in ran.err
