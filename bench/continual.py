"""How much a model line that never stops learning knows at the end, and how much it forgot.

    python -m bench.continual [--quick]

Six task types have their time one after the other in one shared model line
(bench/continual_stream.py). Three contenders learn from the same stream, with the same base
model, training settings and number of optimizer steps:

- learnd: a whole daemon as shipped (policy, split, replay, gate, rollover of refused
  batches), with the real trainer, on SQLite;
- naive: each batch in turn trains the weights that the one before left; everything approved;
- offline: one training on all that is right and confident, when the stream is over. It sees
  everything at once, so it is the upper bound.

At the end each is asked about all task types at all ages. bench/continual_gate.py measures
the gate. Prints a table, and one JSON object as the last line.
"""

import argparse
import asyncio
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from bench.continual_gate import QUICK as QUICK_GATE
from bench.continual_gate import TRIALS, Gains, GateScale, measure_gate
from bench.continual_stream import TASKS, Event, end_of, exam, stream
from bench.continual_trainer import Trainer
from consumers.reading import Reader, Record
from consumers.wire import Limits
from daemon.app import Daemon, build_daemon, utc_now
from daemon.printing import Column, number, show_table
from daemon.settings import Settings
from learning.clock import microseconds
from learning.events import OutputEvent
from learning.facts import CandidateDecided, Fact, RunFailed
from learning.judge import Judge
from learning.lifecycle import EventState
from learning.ports import Block, EventKind, ModelReference, Origin
from learning.validators import built_in

LINE: Final = "shared"
PATIENCE_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Scale:
    """How large the trial is. Events as they arrive, questions a task type."""

    events: int = 2_400
    batch: int = 160
    steps: int = 80
    """Optimizer steps of one batch, whoever trains it."""
    base_steps: int = 500
    questions: int = 40
    seeds: int = 3
    training: Mapping[str, Any] = field(
        default_factory=lambda: {
            "minibatch_size": 16,
            "gradient_accumulation": 1,
            "learning_rate": 0.005,
            "lora_dropout": 0.0,
        }
    )
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the daemon, where it is not to be as shipped."""
    gate: GateScale = field(default_factory=GateScale)


FULL: Final = Scale()
QUICK: Final = Scale(
    events=300, batch=100, steps=4, base_steps=10, questions=4, seeds=1, gate=QUICK_GATE
)
CONTENDERS: Final = ("learnd", "naive", "offline")


@dataclass(frozen=True)
class Outcome:
    """What one contender could do: exact matches by task type, as shares in [0, 1]."""

    final: Mapping[str, float]
    learned: Mapping[str, float]
    """When the task type's own time was over."""
    notes: str = ""

    @property
    def accuracy(self) -> float:
        """After the stream, on average over the task types."""
        return statistics.mean(self.final.values())

    @property
    def backward_transfer(self) -> float:
        """What became of a task type after its time, on average; the last one has no after."""
        return statistics.mean(self.final[task] - self.learned[task] for task in self.learned)


class Course:
    """Asks a contender along the stream: each task type when its time is over, and all at last."""

    def __init__(self, trainer: Trainer, questions: Sequence[Event], n_events: int) -> None:
        self._trainer = trainer
        self._questions = questions
        self._n_events = n_events
        self._learned: dict[str, float] = {}

    async def after(self, n_seen: int, model: ModelReference) -> None:
        """So much of the stream was learned from."""
        over = [
            task
            for task in list(TASKS)[:-1]
            if task not in self._learned and n_seen >= end_of(task) * self._n_events
        ]
        if over:
            accuracy = await self._ask(model, over)
            self._learned |= accuracy

    async def end(self, model: ModelReference, notes: str = "") -> Outcome:
        """The stream is over."""
        final = await self._ask(model, list(TASKS))
        return Outcome(final, self._learned, notes)

    async def _ask(self, model: ModelReference, tasks: Sequence[str]) -> dict[str, float]:
        asked = [one for one in self._questions if one.task_type in tasks]
        scores = await self._trainer.score(model, asked)
        return {
            task: statistics.mean(
                score.match
                for one, score in zip(asked, scores, strict=True)
                if one.task_type == task
            )
            for task in tasks
        }


# --- the contenders -------------------------------------------------------------------


class Verdicts:
    """Hears how each batch of the daemon ended."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.failure: str | None = None
        self.decided = asyncio.Event()

    def hear(self, fact: Fact) -> None:
        """The daemon tells what has happened."""
        match fact:
            case CandidateDecided(outcome=outcome):
                self.outcomes.append(outcome)
                self.decided.set()
            case RunFailed(message=message):
                self.failure = message
                self.decided.set()


async def learn_with_learnd(
    folder: Path, base: Path, scale: Scale, events: Sequence[Event], course: Course
) -> tuple[Outcome, list[int]]:
    """The product itself; also where in the stream each of its batches ended."""
    settings = Settings(
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
    verdicts = Verdicts()
    ends: list[int] = []
    async with build_daemon(settings) as daemon:
        daemon.announcer.listen(verdicts.hear)
        stopping = asyncio.Event()
        running = asyncio.create_task(daemon.run(stopping))
        try:
            for block in _batches(events, scale.batch):
                verdicts.decided.clear()
                await _send(daemon, settings, block, first=ends[-1] if ends else 0)
                ends.append((ends[-1] if ends else 0) + len(block))
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await verdicts.decided.wait()
                if verdicts.failure is not None:
                    raise RuntimeError(f"a run of the daemon failed: {verdicts.failure}")
                champion = await daemon.store.registry.loadable(LINE, "champion")
                await course.after(ends[-1], champion)
            promoted = verdicts.outcomes.count("promote")
            notes = f"{promoted} of {len(verdicts.outcomes)} promoted"
            return await course.end(champion, notes), ends
        finally:
            stopping.set()
            await running


def _batches(events: Sequence[Event], size: int) -> list[Sequence[Event]]:
    """The stream, cut where `size` events are fit to train; a rest that fills none is left."""
    blocks, start, fit = [], 0, 0
    for n, event in enumerate(events, start=1):
        fit += event.confidence >= 0.7
        if fit == size:
            blocks.append(events[start:n])
            start, fit = n, 0
    return blocks


async def _send(daemon: Daemon, settings: Settings, events: Sequence[Event], first: int) -> None:
    judge = Judge(settings.policy_rules, built_in(settings.policy.max_output_characters))
    records = []
    for n, event in enumerate(events, start=first):
        sent = OutputEvent(
            event_id=f"e-{n}",
            producer="bench",
            task_id=f"t-{n}",
            task_type=event.task_type,
            prompt=event.prompt,
            output=event.output,
            approved=True,
            confidence=event.confidence,
        )
        origin = Origin("bench", "stream", 0, n)
        records.append(Record(EventKind.OUTPUT, sent.model_dump_json().encode(), origin))
    limits = Limits(max_bytes=settings.kafka.max_message_bytes)
    reading = Reader(judge, limits).read(records, microseconds(utc_now()))
    queued = [output.state == EventState.QUEUED for output in reading.outputs]
    assert queued == [event.confidence >= 0.7 for event in events]
    await daemon.store.intake.append(Block("bench", reading.outputs))
    daemon.sealer.wake()


async def learn_naively(
    trainer: Trainer,
    training: Mapping[str, Any],
    events: Sequence[Event],
    ends: Sequence[int],
    course: Course,
) -> Outcome:
    """Each batch in turn, as it came, on top of the one before."""
    model, start = trainer.base, 0
    for end in ends:
        model = await trainer.train(model, events[start:end], training)
        await course.after(end, model)
        start = end
    return await course.end(model)


async def learn_offline(
    trainer: Trainer,
    training: Mapping[str, Any],
    events: Sequence[Event],
    ends: Sequence[int],
    course: Course,
) -> Outcome:
    """Everything that is right and confident, at once, in as many steps."""
    clean = [event for event in events[: ends[-1]] if event.clean]
    settings = {**training, "max_steps": training["max_steps"] * len(ends)}
    return await course.end(await trainer.train(trainer.base, clean, settings))


async def run_seed(
    trainer: Trainer, folder: Path, scale: Scale, seed: int
) -> Mapping[str, Outcome]:
    """One stream, all contenders. The daemon's runs have seeds of their own."""
    events = stream(scale.events, seed)
    questions = exam(scale.questions, events, seed)
    training = {**scale.training, "max_steps": scale.steps, "seed": seed}

    def course() -> Course:
        return Course(trainer, questions, scale.events)

    base = Path(trainer.base.base_model)
    product, ends = await learn_with_learnd(folder, base, scale, events, course())
    return {
        "learnd": product,
        "naive": await learn_naively(trainer, training, events, ends, course()),
        "offline": await learn_offline(trainer, training, events, ends, course()),
    }


# --- the report -----------------------------------------------------------------------


async def measure(
    folder: Path, scale: Scale
) -> tuple[list[Mapping[str, Outcome]], Mapping[str, Gains]]:
    """All seeds, then the gate."""
    async with Trainer.open(folder / "trainer", folder / "base") as trainer:
        await trainer.make_base(scale.base_steps)
        seeds = []
        for seed in range(1, scale.seeds + 1):
            started = time.monotonic()
            found = await run_seed(trainer, folder / f"seed-{seed}", scale, seed)
            seeds.append(found)
            print(
                f"seed {seed}: "
                + ", ".join(f"{name} {found[name].accuracy:.3f}" for name in CONTENDERS)
                + f" ({found['learnd'].notes}; {time.monotonic() - started:.0f} s)",
                flush=True,
            )
        return seeds, await measure_gate(trainer, scale.gate, scale.training)


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
        "seeds": len(seeds),
        "events": scale.events,
        "steps_of_a_batch": scale.steps,
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


def _over(mine: float, theirs: float) -> float:
    """A ratio; who beats nothing at all has beaten it by far, but JSON has no infinity."""
    return mine / max(theirs, 1e-3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="Everything once and small: shows that it works."
    )
    scale = QUICK if parser.parse_args().quick else FULL
    # The tables are what this terminal is for.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="learnd-bench-") as folder:
        seeds, gate = asyncio.run(measure(Path(folder), scale))
        print(json.dumps(report(seeds, gate, scale)))


if __name__ == "__main__":
    main()
