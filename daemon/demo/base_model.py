"""The demo's base model: made on this machine once, and kept for the next demo."""

import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

from finetune.trainer.protocol import (
    MakeTinyModelProgress,
    MakeTinyModelRequest,
    MakeTinyModelResult,
    Message,
)
from finetune.trainer_process import TrainerHost

STEPS: Final = 500
SEED: Final = 0
CONFIG: Final = "config.json"

OnProgress = Callable[[MakeTinyModelProgress], None]


def base_model_dir(home: Path) -> Path:
    """Where the base model of this release lies, or will lie."""
    return home / "base-model" / f"learnd-{version('learnd')}-{STEPS}-steps-seed-{SEED}"


def is_made(folder: Path) -> bool:
    """Whether it is there. The trainer publishes a model complete, or not at all."""
    return (folder / CONFIG).is_file()


async def make(trainer: TrainerHost, folder: Path, on_progress: OnProgress) -> MakeTinyModelResult:
    """Make it. Raises JobFailedError."""

    def hear(message: Message) -> None:
        if isinstance(message, MakeTinyModelProgress):
            on_progress(message)

    request = MakeTinyModelRequest(
        id=f"base:{uuid.uuid4().hex[:12]}", output_dir=str(folder), steps=STEPS, seed=SEED
    )
    async with trainer.use() as process:
        return await process.request(request, hear)
