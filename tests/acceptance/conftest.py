"""What several acceptance tests train on."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

from finetune.artifacts import ArtifactStore
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer_process import TrainerHost
from tests.services import require


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of half a million random weights."""
    require("PyTorch", None if importlib.util.find_spec("torch") else "it is not installed")
    folder = tmp_path_factory.mktemp("base")

    async def make() -> None:
        request = MakeTinyModelRequest(id="make", output_dir=str(folder / "tiny"), steps=0)
        async with (
            TrainerHost(ArtifactStore(folder), folder / "trainer.log") as host,
            host.use() as trainer,
        ):
            await trainer.request(request, lambda _: None)

    asyncio.run(make())
    return folder / "tiny"
