"""When the trainer is asked what this machine can train; what it says is in acceptance."""

import asyncio
from types import SimpleNamespace
from typing import Any

from daemon.preflight import Preflight
from finetune.trainer.protocol import TrainingSettings
from learning.lines import ModelLine, ModelLines
from learning.ports import JobFailedError


class Host:
    """A trainer that cannot train one base model."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heard = asyncio.Event()

    async def preflight(self, base_model: str, _settings: TrainingSettings) -> Any:
        self.asked.append(base_model)
        self.heard.set()
        if base_model == "large":
            raise JobFailedError("no_room", "it needs more memory", retryable=False)
        return SimpleNamespace(device="cpu", precision="fp32", notes=[])


def lines(base_model: str) -> ModelLines:
    return ModelLines([ModelLine("coding", frozenset({"coding"}), base_model, "local")])


async def test_it_is_asked_again_when_lines_are_trained_otherwise_and_only_then() -> None:
    host: Any = Host()
    live = lines("large")
    preflight = Preflight(host, lambda: live)
    work = asyncio.create_task(preflight.run())
    await host.heard.wait()
    await asyncio.sleep(0)
    assert preflight.warning == "training of coding: it needs more memory"

    preflight.wake()  # another setting was changed
    await asyncio.sleep(0)
    host.heard.clear()
    live.become(lines("small"))
    preflight.wake()
    await host.heard.wait()
    await asyncio.sleep(0)

    assert preflight.warning == ""
    assert host.asked == ["large", "small"]
    work.cancel()
    await asyncio.wait([work])
