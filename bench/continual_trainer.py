"""The product's own trainer, for what `bench.continual` trains and asks beside the daemon."""

import asyncio
import contextlib
import itertools
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

from bench.continual_stream import Event
from finetune.artifacts import ArtifactStore
from finetune.trainer.protocol import (
    EvaluateRequest,
    MakeTinyModelRequest,
    ModelRef,
    TrainingSettings,
    TrainRequest,
)
from finetune.trainer_process import TrainerHost
from learning.gate import Score
from learning.ports import ModelReference

WARM: Final = timedelta(minutes=30)
"""Each of its users comes back long before: to start it anew takes longer than a training."""


class Trainer:
    """One warm trainer process and a folder of its own."""

    def __init__(self, host: TrainerHost, folder: Path, base: ModelReference) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        self.folder = folder
        self.base = base

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path, base: Path) -> AsyncIterator[Self]:
        """Start it when it is needed; end it at the end."""
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        artifacts = ArtifactStore(folder / "artifacts")
        async with TrainerHost(artifacts, folder / "trainer.log", idle=WARM) as host:
            yield cls(host, folder, ModelReference(str(base)))

    async def make_base(self, steps: int) -> None:
        """Make and pre-train the tiny base model."""
        request = MakeTinyModelRequest(id="base", output_dir=self.base.base_model, steps=steps)
        async with self._host.use() as trainer:
            await trainer.request(request, lambda _: None)

    async def train(
        self, model: ModelReference, events: Sequence[Event], training: Mapping[str, Any]
    ) -> ModelReference:
        """Go on from a model."""
        output = self.folder / f"model-{next(self._numbers)}"
        request = TrainRequest(
            id=output.name,
            model=_reference(model),
            train_file=str(_write_rows(output.with_suffix(".jsonl"), events)),
            output_dir=str(output),
            checkpoint_dir=str(self.folder / f"{output.name}.checkpoint"),
            settings=TrainingSettings.model_validate(dict(training)),
        )
        async with self._host.use() as trainer:
            await trainer.request(request, lambda _: None)
        if request.settings.method == "full":
            return ModelReference(str(output))
        return ModelReference(model.base_model, output)

    async def score(self, model: ModelReference, questions: Sequence[Event]) -> Sequence[Score]:
        """The gate's own scores of a model on questions."""
        name = f"exam-{next(self._numbers)}"
        request = EvaluateRequest(
            id=name,
            models={"asked": _reference(model)},
            examples_file=str(_write_rows(self.folder / f"{name}.jsonl", questions)),
            minibatch_size=64,
        )
        async with self._host.use() as trainer:
            result = await trainer.request(request, lambda _: None)
        return [
            Score(math.nan if one.loss is None else one.loss, one.match)
            for one in result.models["asked"].examples
        ]


def _reference(model: ModelReference) -> ModelRef:
    return ModelRef(
        base_model=model.base_model, adapter=str(model.adapter) if model.adapter else None
    )


def _write_rows(path: Path, events: Sequence[Event]) -> Path:
    """The events as the trainer reads them. Several may be training or asking at a time."""
    path.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": event.prompt},
                        {"role": "assistant", "content": event.output},
                    ]
                }
            )
            + "\n"
            for event in events
        )
    )
    return path
