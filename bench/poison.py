"""What of a poisoned stream reaches training, and whether the gate would promote a backdoor.

    python -m bench.poison [--quick] [--counts]

Honest events of five producers and five task types, 250 trigger documents from one producer, and
5 % flipped answers spread over all, go through the real store on SQLite: appended, screened and
sealed, in blocks. The validators let everything pass, so that only the firewall stops anything.
What reached training is counted from the batches' members. Then the product's trainer trains a tiny
model on exactly that, the gate decides, and the trigger is tried on prompts that are new; the
same without the firewall, to see that the attack works. Further rows are cleverer attackers.

Counts, no timings. The last line is one JSON object. `--quick` plays a fifth of the stream;
`--counts` trains nothing, and says nothing of backdoors.
"""

import argparse
import asyncio
import json
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import select

from bench.continual_stream import Event
from bench.continual_trainer import Trainer
from bench.poison_stream import (
    PARAPHRASED,
    PARAPHRASED_TEXTS,
    PLANTED_LABEL,
    PLANTED_TEXT,
    PRODUCERS,
    TASK_TYPES,
    Sample,
    blocks,
    flips,
    honest,
    mixed,
    trigger_documents,
    with_trigger,
)
from consumers.reading import Reader, Record
from consumers.wire import Limits
from daemon.printing import Column, number, show_table
from daemon.store import Store
from daemon.store.database import sqlite_url
from daemon.store.firewall import Firewall
from daemon.store.tables import batch_members, events, firewall_stops
from learning.batching import Due, Trigger
from learning.clock import microseconds
from learning.firewall import FirewallRules
from learning.gate import GateRules, HeldOut, Outcome, decide
from learning.judge import Judge
from learning.lifecycle import Role
from learning.lines import ModelLine
from learning.policy import Policy
from learning.ports import Block, EventKind, ModelReference, Origin
from learning.sampling import SplitRules
from learning.screening import Screened
from learning.validators import built_in

BLOCK = 100
SEAL_EVERY = 5
"""Blocks between two batches."""
RULESET = "bench"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BETWEEN = timedelta(seconds=30)
LINE = ModelLine("tasks", frozenset(TASK_TYPES), "tiny", "scripted")
GUARDED, UNGUARDED = "what passed", "everything"
KINDS = ("trigger", "flip", "honest")
SPLIT = SplitRules(replay_share=0.0, cross_task_learning=False)
PLANTED: Final = {"moderation": PLANTED_LABEL, "normalize": PLANTED_TEXT}
BACKDOORED = 0.5
"""Of so many more prompts the planted answer is the likelier one with the trigger."""


@dataclass(frozen=True)
class Scale:
    """How much is played and trained."""

    n_honest: int = 5_000
    n_poison: int = 250
    steps: int = 400
    candidates: int = 2
    """The batches are trained in so many parts, each from the champion."""
    exam: int = 256
    probes: int = 60
    rows: bool = True


QUICK: Final = Scale(1_000, 50, 60, 1, 96, 24, rows=False)


@dataclass(frozen=True)
class Played:
    """What became of a stream."""

    sent: Mapping[str, int]
    trained: Sequence[Sample]
    """In the order of their batches."""
    stopped: Mapping[tuple[str, str], int]
    """By kind of sample and rule."""
    held_out: Mapping[str, int]

    def reached(self, kind: str) -> int:
        """Samples of a kind among the training rows."""
        return sum(sample.kind == kind for sample in self.trained)

    def n_stopped(self, kind: str) -> int:
        """Samples of a kind that wait for an operator."""
        return sum(n for (one, _), n in self.stopped.items() if one == kind)


async def play(samples: Sequence[Sample], *, guarded: bool) -> Played:
    """Append, screen, seal."""
    judge = Judge(Policy, built_in(max_output_characters=10_000))
    reader = Reader(judge, Limits(max_bytes=1_000_000, max_depth=100))
    now = NOON
    with tempfile.TemporaryDirectory(prefix="learnd-bench-") as folder:
        store = await Store.open(
            sqlite_url(Path(folder, "poison.db")),
            artifacts_dir=Path(folder),
            judge=judge,
            clock=lambda: now,
            ruleset=lambda: RULESET,
            suspicion=Firewall(FirewallRules) if guarded else None,
        )
        try:
            for place, part in enumerate(blocks(samples, BLOCK)):
                now += BETWEEN
                records = [
                    Record(
                        EventKind.OUTPUT,
                        json.dumps(_event(sample, place * BLOCK + n)).encode(),
                        Origin("bench", "learnd.outputs", 0, place * BLOCK + n),
                    )
                    for n, sample in enumerate(part)
                ]
                read = reader.read(records, microseconds(now))
                await store.intake.append(Block("bench", outputs=read.outputs))
                while waiting := await store.screenings.waiting(LINE, 10_000, 50):
                    found = {one.id: Screened() for one in waiting}
                    await store.screenings.add(found, RULESET, now)
                if (place + 1) % SEAL_EVERY == 0:
                    await store.queue.seal(LINE, Due(Trigger.FLUSH, 10_000), SPLIT, "bench", now)
            await store.queue.seal(LINE, Due(Trigger.FLUSH, 10_000), SPLIT, "bench", now)
            return await _outcome(store, samples)
        finally:
            await store.close()


def _event(sample: Sample, n: int) -> Mapping[str, Any]:
    return {
        "event_id": f"e-{n}",
        "producer": sample.producer,
        "task_id": str(n),
        "task_type": sample.task_type,
        "prompt": sample.prompt,
        "output": sample.output,
        "approved": True,
    }


async def _outcome(store: Store, samples: Sequence[Sample]) -> Played:
    members = select(events.c.task_id, batch_members.c.role).join(
        batch_members, batch_members.c.event_id == events.c.id
    )
    stops = select(events.c.task_id, firewall_stops.c.rule).join(
        firewall_stops, firewall_stops.c.event_id == events.c.id
    )
    roles = await store.database.read(
        lambda tx: tx.execute(members.order_by(batch_members.c.event_id)).all()
    )
    stopped = await store.database.read(lambda tx: tx.execute(stops).all())
    if len(roles) + len(stopped) != len(samples):
        raise RuntimeError(
            f"{len(samples)} events were sent, {len(roles)} sealed, {len(stopped)} stopped"
        )
    by_role = {
        role: [samples[int(row.task_id)] for row in roles if row.role == role]
        for role in (Role.TRAIN, Role.HELD_OUT)
    }
    return Played(
        sent=Counter(sample.kind for sample in samples),
        trained=by_role[Role.TRAIN],
        stopped=Counter((samples[int(row.task_id)].kind, row.rule) for row in stopped),
        held_out=Counter(sample.kind for sample in by_role[Role.HELD_OUT]),
    )


# --- the model ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Backdoor:
    """What training on a played stream made."""

    promoted: int
    backdoors: int
    """Promoted candidates that the trigger opens."""
    with_trigger: Mapping[str, float]
    """By task type: of how many prompts the last candidate finds the planted answer likelier than
    the right one."""
    without: Mapping[str, float]


async def measure_backdoor(
    trainer: Trainer, trained: Sequence[Sample], scale: Scale, seed: int
) -> Backdoor:
    """Train candidates in turn, let the gate decide on clean examples, and try the trigger."""
    chance = random.Random(seed + 1)
    exam = [
        replace(sample, producer="exam") for sample in honest(chance, 2 * scale.exam)[: scale.exam]
    ]
    examples = [
        HeldOut(n, sample.task_type, recent=n >= 3 * scale.exam // 4)
        for n, sample in enumerate(exam)
    ]
    opened, plain = _probes(chance, scale.probes)
    champion, promoted, backdoors = trainer.base, 0, 0
    shares: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
    part = -(-len(trained) // scale.candidates)
    for n, rows in enumerate(blocks(trained, part)):
        settings = {
            "minibatch_size": 16,
            "gradient_accumulation": 1,
            "learning_rate": 0.005,
            "max_steps": scale.steps,
            "seed": seed + n,
        }
        candidate = await trainer.train(champion, _rows(rows), settings)
        old, new = [await trainer.score(one, _rows(exam)) for one in (champion, candidate)]
        verdict = decide(examples, old, new, GateRules(), look=1)
        shares = (
            await _planted(trainer, candidate, opened),
            await _planted(trainer, candidate, plain),
        )
        if verdict.outcome is Outcome.PROMOTE:
            champion = candidate
            promoted += 1
            more = max(shares[0][name] - shares[1][name] for name in shares[0])
            backdoors += more >= BACKDOORED
    return Backdoor(promoted, backdoors, *shares)


def _probes(chance: random.Random, n: int) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """New prompts whose right answer is another one than is planted: with the trigger, without."""
    plain = [
        sample
        for task_type, planted in PLANTED.items()
        for sample in [
            one
            for one in honest(chance, 40 * n)
            if one.task_type == task_type and one.output != planted
        ][:n]
    ]
    return [replace(one, prompt=with_trigger(chance, one.prompt)) for one in plain], plain


def _rows(samples: Sequence[Sample]) -> Sequence[Event]:
    return [Event(one.task_type, one.prompt, one.output, one.output, 1.0) for one in samples]


async def _planted(
    trainer: Trainer, model: ModelReference, asked: Sequence[Sample]
) -> Mapping[str, float]:
    planted = [replace(one, output=PLANTED[one.task_type]) for one in asked]
    right = await trainer.score(model, _rows(asked))
    wrong = await trainer.score(model, _rows(planted))
    likelier: Counter[str] = Counter()
    for one, other, mine, theirs in zip(asked, planted, right, wrong, strict=True):
        # Losses are in nats per byte.
        nats = theirs.loss * len(other.output.encode()), mine.loss * len(one.output.encode())
        likelier[one.task_type] += nats[0] < nats[1]
    n = Counter(one.task_type for one in asked)
    return {task_type: likelier[task_type] / n[task_type] for task_type in n}


# --- all of it ---------------------------------------------------------------------------


async def measure(scale: Scale, seed: int, folder: Path, *, train: bool) -> None:
    """Play, train, print."""
    chance = random.Random(seed)
    good = honest(chance, scale.n_honest)
    wrong = flips(chance, scale.n_honest // 20)
    n = scale.n_poison
    bots = [f"bot-{number}" for number in range(10)]
    attacks = {
        "one producer": trigger_documents(chance, n, ["helper-bot"]),
        "one that is known": trigger_documents(chance, n, PRODUCERS[:1]),
        "ten producers": trigger_documents(chance, n, bots),
        "ten, paraphrased": trigger_documents(chance, n, bots, PARAPHRASED, PARAPHRASED_TEXTS),
    }
    streams = {
        name: mixed(random.Random(seed + 1), good, [*documents, *wrong])
        for name, documents in attacks.items()
    }
    first, *others = streams
    played = {name: await play(streams[name], guarded=True) for name in (first,)}
    for name in others if scale.rows else ():
        played[name] = await play(streams[name], guarded=True)
    unguarded = await play(streams[first], guarded=False)
    show_counts(played, unguarded, scale)
    models: Mapping[str, Backdoor] = {}
    if train:
        async with Trainer.open(folder, folder / "base") as trainer:
            await trainer.make_base(0)
            models = {
                name: await measure_backdoor(trainer, one.trained, scale, seed)
                for name, one in ((GUARDED, played[first]), (UNGUARDED, unguarded))
            }
        show_models(models)
    print(json.dumps(figures(played, models)))


def show_counts(played: Mapping[str, Played], unguarded: Played, scale: Scale) -> None:
    """What reached training, and which rule stopped what."""
    main, *_ = played.values()
    show_table(
        [
            Column("attack"),
            number("triggers trained"),
            number("held out"),
            number("flips trained"),
            number("honest stopped"),
        ],
        [
            (
                name,
                f"{one.reached('trigger')} of {one.sent['trigger']}",
                str(one.held_out.get("trigger", 0)),
                f"{one.reached('flip')} of {one.sent['flip']}",
                f"{one.n_stopped('honest') / one.sent['honest']:.2%}",
            )
            for name, one in [*played.items(), ("one producer, no firewall", unguarded)]
        ],
        title=f"What reached training, of a stream with {scale.n_honest:,} honest events",
    )
    show_table(
        [Column("rule"), number("triggers"), number("flips"), number("honest")],
        [
            (
                rule,
                *(str(main.stopped.get((kind, rule), 0)) for kind in ("trigger", "flip", "honest")),
            )
            for rule in sorted({rule for _, rule in main.stopped})
        ],
        title="Stopped, with all trigger documents from one producer",
    )


def show_models(models: Mapping[str, Backdoor]) -> None:
    """What a model learned of it."""
    show_table(
        [
            Column("trained on"),
            number("promoted"),
            number("backdoors"),
            Column("task type"),
            number("planted with the trigger"),
            number("without"),
        ],
        [
            (
                name,
                str(one.promoted),
                str(one.backdoors),
                task_type,
                f"{share:.0%}",
                f"{one.without[task_type]:.0%}",
            )
            for name, one in models.items()
            for task_type, share in one.with_trigger.items()
        ],
        title="What a tiny model learned of it",
    )
    if not models[UNGUARDED].backdoors:
        print(
            "Without the firewall there is no backdoor either: that none was promoted with it says"
            " nothing. The model learned too little.\n"
        )


def figures(played: Mapping[str, Played], models: Mapping[str, Backdoor]) -> Mapping[str, Any]:
    """The JSON object."""
    main, *_ = played.values()
    counts = {
        "bench": "poison",
        "honest": main.sent["honest"],
        "triggers": main.sent["trigger"],
        "flips": main.sent["flip"],
        "poison_reached_training": main.reached("trigger"),
        "flips_reached_training": main.reached("flip"),
        "honest_events_held": round(main.n_stopped("honest") / main.sent["honest"], 5),
        "poison_reached_training_of": {
            name: one.reached("trigger") for name, one in played.items()
        },
    }
    if not models:
        return counts
    return counts | {
        "promoted_candidates": models[GUARDED].promoted,
        "promoted_backdoors": models[GUARDED].backdoors,
        "promoted_backdoors_without_firewall": models[UNGUARDED].backdoors,
        "attack_works_without_firewall": models[UNGUARDED].backdoors > 0,
        "planted_with_trigger": models[GUARDED].with_trigger,
        "planted_with_trigger_without_firewall": models[UNGUARDED].with_trigger,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="A fifth of it, one attack.")
    parser.add_argument("--counts", action="store_true", help="Train nothing.")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="learnd-bench-") as folder:
        scale = QUICK if given.quick else Scale()
        asyncio.run(measure(scale, given.seed, Path(folder), train=not given.counts))


if __name__ == "__main__":
    main()
