"""`learnd chat` with a version that answers at a service, and not on this machine."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from daemon.exit_status import ExitStatus
from finetune.artifacts import ArtifactStore
from finetune.remote.model import FILE, RemoteModel, write
from tests.acceptance.test_cli import Terminal, clean_environment, serve_past
from tests.rows import Past
from tests.services.fake_chat import FakeChat, last_words
from tests.services.loopback import on_loopback

NAME = "ft:small:audio:1"


def shouted(messages: Sequence[Mapping[str, str]]) -> str:
    return last_words(messages).upper()


@pytest.fixture
def chat() -> FakeChat:
    return FakeChat({"small": 0.0, NAME: 1.0}, shouted, key="sk-chat")


@pytest.fixture
async def terminal(tmp_path: Path, chat: FakeChat) -> AsyncIterator[Terminal]:
    """A line whose base is `small`, and whose champion was trained from it, both elsewhere."""
    data_dir = tmp_path / "learnd-data"

    def fill(past: Past) -> None:
        write(RemoteModel("openai", "http://trainer.test/v1", NAME), tmp_path / "output")
        artifacts = ArtifactStore(data_dir / "artifacts")
        published = artifacts.publish("r-1", tmp_path / "output")
        base = past.line(base_model="small")
        past.version(
            release="1.0.1",
            state="released",
            run_id="r-1",
            parent=base,
            base_model="small",
            method="remote",
            artifact=published.name,
            manifest_sha256=published.manifest_sha256,
        )

    terminal = Terminal(tmp_path, clean_environment())
    with on_loopback(chat.app()) as service:
        terminal.env |= {
            "LLM_ENDPOINT": service,
            "LLM_API_KEY": "sk-chat",
            "LEARND_FINETUNE__PROVIDER": "openai",
        }
        async with serve_past(data_dir, fill) as (url, _):
            terminal.env["LEARND_URL"] = url
            yield terminal


async def test_a_remote_version_and_its_base_answer_at_their_service(
    terminal: Terminal, chat: FakeChat
) -> None:
    words = ("-p", "hello", "--max-new-tokens", "9", "--json")
    version, base = await asyncio.gather(
        terminal.type("chat", "audio@1.0.1", *words), terminal.type("chat", "audio@1.0.0", *words)
    )
    assert (version.status, base.status) == (ExitStatus.DONE, ExitStatus.DONE), base.err
    assert (version.json["answer"], base.json["answer"]) == ("HELLO", chat.wrong)
    assert chat.asked() == {NAME: 1, "small": 1}
    assert [body["max_tokens"] for body in chat.requests] == [9, 9]


async def test_a_conversation_is_sent_as_a_whole_and_no_control_character_comes_back(
    terminal: Terminal, chat: FakeChat
) -> None:
    chat.right = lambda messages: f"\x1b[31m{shouted(messages)}"
    talk = await terminal.type(
        "chat", "audio@1.0.1", "--system", "Be brief.", stdin=b"one\n\ntwo\n"
    )
    assert talk.status == ExitStatus.DONE, talk.err
    assert "ONE" in talk.out
    assert "TWO" in talk.out
    assert "\x1b" not in talk.out
    said = [(turn["role"], turn["content"]) for turn in chat.requests[-1]["messages"]]
    assert said[:2] == [("system", "Be brief."), ("user", "one")]
    assert [role for role, _ in said] == ["system", "user", "assistant", "user"]


async def test_without_its_service_or_the_key_a_remote_version_says_what_is_missing(
    terminal: Terminal, chat: FakeChat
) -> None:
    words = ("chat", "audio@1.0.1", "-p", "hello")
    ran, refused = await asyncio.gather(
        terminal.type(*words, LLM_ENDPOINT=""), terminal.type(*words, LLM_API_KEY="sk-wrong")
    )
    assert ran.status == ExitStatus.USAGE
    assert "set remote.llm_endpoint" in ran.err
    assert refused.status == ExitStatus.REFUSED
    assert "answered 401" in refused.err
    assert "sk-wrong" not in refused.err + refused.out


async def test_a_remote_version_whose_artifact_was_changed_is_not_asked(
    terminal: Terminal, chat: FakeChat
) -> None:
    (file,) = terminal.folder.glob(f"learnd-data/artifacts/*/{FILE}")
    file.write_text(file.read_text().replace("audio", "other"))
    ran = await terminal.type("chat", "audio@1.0.1", "-p", "hello")
    assert ran.status == ExitStatus.REFUSED
    assert FILE in ran.err
    assert chat.requests == []
