"""How often the gate promotes a candidate that is no better, and one that is.

What is real: the models are trained by the product's trainer on the task types of
bench/continual_stream.py, and each is scored once on a large pool of questions. What is
drawn: each of the trials takes two of the models and a held-out set of the gate's usual size
from the pool at random, and asks `learning.gate.decide`, as the runner would. So trials share
models and questions, and a rate is known a little worse than its number of trials says.

- no better: two trainings from the same parent, on the same data, that differ in their seed;
- loss halved, a fifth less: the champion trained on, on data that it had not seen, for as many
  steps as take its mean loss on the pool nearest to 0.5 and 0.8 times what it was.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from bench.continual_stream import Event, exam, stream
from bench.continual_trainer import Trainer
from learning.gate import GateRules, HeldOut, Outcome, Score, decide
from learning.ports import ModelReference

TRIALS: Final = 200
SMALL_EVIDENCE: Final = 32
"""What `gate.wanted_evidence` asks for, and a line has early."""


@dataclass(frozen=True)
class GateScale:
    """`twins` equal trainings; `gains` champions that are trained on; steps of a champion."""

    twins: int = 8
    gains: int = 3
    steps: int = 80
    more_steps: Sequence[int] = (24, 28, 32, 60)
    """The first of them warm the optimizer up again, and make a model worse than it was."""
    minibatch_size: int = 32
    learning_rate: float = 0.005
    pool: int = 90
    """Questions a task type."""


QUICK: Final = GateScale(twins=2, gains=1, steps=6, more_steps=(2, 6), pool=12)


@dataclass(frozen=True)
class Gains:
    """Pairs of (champion, candidate) by what became of the loss, and the share promoted."""

    kind: str
    n_pairs: int
    ratio: float
    """Median of candidate loss over champion loss, on the whole pool."""
    promoted: float
    rejected: float
    promoted_small: float
    """With SMALL_EVIDENCE recent examples and no older ones."""


Scores = Sequence[Score]
Pair = tuple[Scores, Scores]


async def measure_gate(trainer: Trainer, scale: GateScale, seed: int = 0) -> Mapping[str, Gains]:
    """Train the models, and put pairs of them before the gate."""
    # Shuffled: a champion that is competent at everything, as the whole stream makes one.
    events = [event for event in stream(2_400, seed + 1_000) if event.clean]
    Random(seed).shuffle(events)
    pool = exam(scale.pool, events, seed + 1_000)
    half = len(events) // 2
    first, rest = events[:half], events[half:]

    async def trained(
        parent: ModelReference, rows: Sequence[Event], steps: int, number: int
    ) -> ModelReference:
        settings = {
            "minibatch_size": scale.minibatch_size,
            "gradient_accumulation": 1,
            "learning_rate": scale.learning_rate,
            "lora_dropout": 0.0,
            "max_steps": steps,
            "seed": number,
        }
        return await trainer.train(parent, rows, settings)

    models = [await trained(trainer.base, first, scale.steps, n) for n in range(scale.twins)]
    twins = [await trainer.score(model, pool) for model in models]
    pairs: dict[str, list[Pair]] = {
        "no better": [(a, b) for a in twins for b in twins if a is not b],
        "loss halved": [],
        "a fifth less": [],
    }
    for number, (model, scores) in enumerate(list(zip(models, twins, strict=True))[: scale.gains]):
        further = [
            await trainer.score(await trained(model, rest, steps, 100 + number), pool)
            for steps in scale.more_steps
        ]
        for kind, wanted in (("loss halved", 0.5), ("a fifth less", 0.8)):
            nearest = min(further, key=lambda found: abs(_ratio(scores, found) - wanted))
            pairs[kind].append((scores, nearest))
    rng = Random(seed)
    return {kind: _judge(kind, found, pool, rng) for kind, found in pairs.items()}


def _judge(kind: str, pairs: Sequence[Pair], pool: Sequence[Event], rng: Random) -> Gains:
    full, small = GateRules(), GateRules()
    outcomes = [
        _trial(rng.choice(pairs), pool, full, full.recent_evidence, full.older_evidence, rng)
        for _ in range(TRIALS)
    ]
    early = [_trial(rng.choice(pairs), pool, small, SMALL_EVIDENCE, 0, rng) for _ in range(TRIALS)]
    return Gains(
        kind=kind,
        n_pairs=len(pairs),
        ratio=statistics.median(_ratio(*pair) for pair in pairs),
        promoted=outcomes.count(Outcome.PROMOTE) / TRIALS,
        rejected=outcomes.count(Outcome.REJECT) / TRIALS,
        promoted_small=early.count(Outcome.PROMOTE) / TRIALS,
    )


def _trial(
    pair: Pair, pool: Sequence[Event], rules: GateRules, n_recent: int, n_older: int, rng: Random
) -> Outcome:
    """One candidate before the gate, on a held-out set of its own: the first of a champion."""
    chosen = rng.sample(range(len(pool)), min(n_recent + n_older, len(pool)))
    examples = [
        HeldOut(index, pool[index].task_type, place >= len(chosen) - n_recent)
        for place, index in enumerate(chosen)
    ]
    champion, candidate = ([scores[index] for index in chosen] for scores in pair)
    return decide(examples, champion, candidate, rules, look=1).outcome


def _ratio(champion: Scores, candidate: Scores) -> float:
    return sum(score.loss for score in candidate) / sum(score.loss for score in champion)
