"""How much a model line that never stops learning knows at the end, and how much it forgot.

    python -m bench.continual [--quick] [--seeds 1,2,3] [--kept FOLDER]

Six task types have their time one after the other in one shared model line
(bench/continual_stream.py). Three contenders learn from the same stream, with the same base
model, training settings and number of optimizer steps:

- learnd: a whole daemon as shipped (policy, split, replay, gate, rollover of refused
  batches), with the real trainer, on SQLite;
- naive: each batch in turn trains the weights that the one before left; everything approved;
- offline: one training on all that is right and confident, when the stream is over. It sees
  everything at once, so it is the upper bound.

At the end each is asked about all task types at all ages. bench/continual_gate.py measures
the gate. Prints tables, and one JSON object as the last line.

What is chosen by looking at results, in the product or here, is chosen on other seeds than
those that are reported: seeds below TUNING_SEEDS are for reports alone. With --kept what
was measured in the folder before is not measured again, so a trial can be done in pieces;
a change of the code is a reason for another folder.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import structlog

from bench.continual_contenders import (
    LINE,
    Course,
    Outcome,
    cut,
    learn_naively,
    learn_offline,
    learn_with_learnd,
)
from bench.continual_gate import QUICK as QUICK_GATE
from bench.continual_gate import TRIALS, Gains, GateScale, measure_gate
from bench.continual_stream import TASKS, exam, stream
from bench.continual_trainer import Trainer
from daemon.printing import Column, number, show_table
from daemon.settings import Settings

TUNING_SEEDS: Final = 100
Trainers = tuple[Trainer, Trainer]
"""Beside the daemon's: so that no contender waits for another."""


@dataclass(frozen=True)
class Scale:
    """How large the trial is. Events as they arrive, questions a task type."""

    events: int = 2_400
    batch: int = 160
    steps: int = 120
    """Optimizer steps of one batch, whoever trains it."""
    base_steps: int = 500
    questions: int = 40
    seeds: Sequence[int] = (1, 2, 3)
    training: Mapping[str, Any] = field(
        default_factory=lambda: {
            "minibatch_size": 16,
            "gradient_accumulation": 1,
            "learning_rate": 0.003,
            "lora_dropout": 0.0,
        }
    )
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the daemon, where it is not to be as shipped."""
    gate: GateScale = field(default_factory=GateScale)


FULL: Final = Scale()
QUICK: Final = Scale(
    events=300, batch=100, steps=4, base_steps=10, questions=4, seeds=(1,), gate=QUICK_GATE
)
CONTENDERS: Final = ("learnd", "naive", "offline")


# --- one stream -----------------------------------------------------------------------


def product_settings(folder: Path, base: Path, scale: Scale) -> Settings:
    """The daemon as shipped, but for what the stream and the tiny model need."""
    return Settings(
        data_dir=folder,
        http={"port": 0},
        queue={
            "batch_size": scale.batch,
            "max_queue_size": scale.batch,
            "adaptive": False,
            "max_wait_seconds": 86_400.0,
        },
        finetune={
            "base_model": str(base),
            "training": {**scale.training, "max_steps": scale.steps},
            "trainer_idle_seconds": 600,
        },
        lines={LINE: {"task_types": tuple(TASKS)}},
        **scale.settings,
    )


def line_training(settings: Settings) -> Mapping[str, Any]:
    """Of the product's line, with every default."""
    line = settings.model_lines().get(LINE)
    assert line is not None
    return line.training


async def run_seed(
    trainers: Trainers, folder: Path, scale: Scale, seed: int
) -> Mapping[str, Outcome]:
    """One stream, all contenders at the same time, each with a trainer process of its own.

    All train with the settings of the product's line. The daemon's runs have seeds of their own.
    """
    events = stream(scale.events, seed)
    blocks = cut(events, scale.batch)
    questions = exam(scale.questions, events, seed)
    first, second = trainers
    settings = product_settings(folder, Path(first.base.base_model), scale)
    training = {**line_training(settings), "seed": seed}

    def course(trainer: Trainer) -> Course:
        return Course(trainer, questions, scale.events)

    product, naive, offline = await asyncio.gather(
        learn_with_learnd(settings, blocks, course(first)),
        learn_naively(first, training, blocks, course(first)),
        learn_offline(second, training, blocks, course(second)),
    )
    return {"learnd": product, "naive": naive, "offline": offline}


# --- the report -----------------------------------------------------------------------


class Kept:
    """What was measured at one scale: a JSON file for each seed, one for the gate, and the base."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        conditions = repr(replace(scale, seeds=()))
        self.folder = folder / hashlib.sha256(conditions.encode()).hexdigest()[:12]

    def read(self, name: str) -> Mapping[str, Any] | None:
        """What was kept under a name."""
        path = self._path(name)
        found: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found or None

    def keep(self, name: str, figures: Mapping[str, Outcome] | Mapping[str, Gains]) -> None:
        """Keep dataclasses by name."""
        told = {key: asdict(figure) for key, figure in figures.items()}
        self._path(name).write_text(json.dumps(told))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


async def measure(
    folder: Path, kept: Kept, scale: Scale
) -> tuple[list[Mapping[str, Outcome]], Mapping[str, Gains]]:
    """All seeds, then the gate; `folder` is for what nobody needs afterwards."""
    base = kept.folder / "base"
    async with (
        Trainer.open(folder / "first", base) as trainer,
        Trainer.open(folder / "second", base) as second,
    ):
        if not base.exists():
            await trainer.make_base(scale.base_steps)
        seeds = [await _seed((trainer, second), folder, kept, scale, seed) for seed in scale.seeds]
        if (told := kept.read("gate")) is not None:
            return seeds, {kind: Gains(**one) for kind, one in told.items()}
        gate = await measure_gate(trainer, scale.gate)
        kept.keep("gate", gate)
        return seeds, gate


async def _seed(
    trainers: Trainers, folder: Path, kept: Kept, scale: Scale, seed: int
) -> Mapping[str, Outcome]:
    name = f"seed-{seed}"
    if (told := kept.read(name)) is not None:
        return {contender: Outcome(**one) for contender, one in told.items()}
    started = time.monotonic()
    found = await run_seed(trainers, folder / name, scale, seed)
    kept.keep(name, found)
    print(
        f"seed {seed}: "
        + ", ".join(f"{contender} {found[contender].accuracy:.3f}" for contender in CONTENDERS)
        + f" ({found['learnd'].notes}; {time.monotonic() - started:.0f} s)",
        flush=True,
    )
    return found


def report(
    seeds: Sequence[Mapping[str, Outcome]], gate: Mapping[str, Gains], scale: Scale
) -> Mapping[str, Any]:
    """Tables for people; the figures."""
    accuracy = {
        name: statistics.mean(found[name].accuracy for found in seeds) for name in CONTENDERS
    }
    transfer = {
        name: statistics.mean(found[name].backward_transfer for found in seeds)
        for name in ("learnd", "naive")
    }
    show_table(
        [
            Column("contender"),
            number("accuracy"),
            number("of offline"),
            number("backward transfer"),
            *(number(task) for task in TASKS),
        ],
        [
            (
                name,
                f"{accuracy[name]:.3f}",
                f"{_over(accuracy[name], accuracy['offline']):.2f}",
                f"{transfer[name]:+.3f}" if name in transfer else "-",
                *(
                    f"{statistics.mean(found[name].final[task] for found in seeds):.2f}"
                    for task in TASKS
                ),
            )
            for name in CONTENDERS
        ],
        title=f"Exact answers after a stream of {scale.events} events, mean of {len(seeds)} seeds",
    )
    show_table(
        [
            Column("candidates"),
            number("pairs"),
            number("loss"),
            number("promoted"),
            number("rejected"),
            number("promoted on 32"),
        ],
        [
            (
                one.kind,
                one.n_pairs,
                f"x {one.ratio:.2f}",
                f"{one.promoted:.1%}",
                f"{one.rejected:.1%}",
                f"{one.promoted_small:.1%}",
            )
            for one in gate.values()
        ],
        title=f"What the gate does with {TRIALS} candidates of each kind",
    )
    return {
        "bench": "continual",
        "seeds": list(scale.seeds),
        "conditions": {
            "events": scale.events,
            "batch": scale.batch,
            "steps_of_a_batch": scale.steps,
            "base_steps": scale.base_steps,
            "training": _line_settings(scale),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        "accuracy": {name: round(accuracy[name], 4) for name in CONTENDERS},
        "accuracy_over_offline": round(_over(accuracy["learnd"], accuracy["offline"]), 4),
        "backward_transfer": round(transfer["learnd"], 4),
        "backward_transfer_naive": round(transfer["naive"], 4),
        "accuracy_over_naive": round(_over(accuracy["learnd"], accuracy["naive"]), 4),
        "false_promotion_rate": gate["no better"].promoted,
        "true_promotion_rate_large": gate["loss halved"].promoted,
        "true_promotion_rate_small": gate["a fifth less"].promoted,
        "false_rejection_rate": gate["no better"].rejected,
    }


def _line_settings(scale: Scale) -> Mapping[str, Any]:
    """What a reader wants to know of how the line trains, and repeats."""
    settings = product_settings(Path(), Path("base"), scale)
    names = (*scale.training, "schedule", "averaged_share")
    training = line_training(settings)
    return {name: training[name] for name in names} | {
        "replay_share": settings.split.replay_share,
        "replay_strategy": settings.split.replay_strategy,
    }


def _over(mine: float, theirs: float) -> float:
    """A ratio; who beats nothing at all has beaten it by far, but JSON has no infinity."""
    return mine / max(theirs, 1e-3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="Everything once and small: shows that it works."
    )
    parser.add_argument(
        "--seeds",
        help=f"With commas; those from {TUNING_SEEDS} on are for trying things out.",
    )
    parser.add_argument("--kept", type=Path, help="A folder for what is measured.")
    asked = parser.parse_args()
    scale = QUICK if asked.quick else FULL
    if asked.seeds is not None:
        scale = replace(scale, seeds=tuple(int(seed) for seed in asked.seeds.split(",")))
    # The tables are what this terminal is for.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    # Several trainers work at a time.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="learnd-bench-") as folder:
        kept = Kept(asked.kept or Path(folder, "kept"), scale)
        kept.folder.mkdir(parents=True, exist_ok=True)
        seeds, gate = asyncio.run(measure(Path(folder), kept, scale))
        found = report(seeds, gate, scale)
        print(json.dumps({**found, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
