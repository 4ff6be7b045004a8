"""A model line under a synthetic stream: the real rules of batching, in simulated time.

Arrivals, runs and verdicts are made up; when a batch is due and how large it is are
learning's own decisions. `python -m tests.streams` prints the table of docs/batches.md.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from random import Random

from learning.batch_sizing import (
    RUNS_LOOKED_AT,
    EndedRun,
    Experience,
    SizeCause,
    SizeRules,
    Sizing,
    choose_size,
)
from learning.batching import BatchRules, LineQueue, due
from learning.gate import Outcome
from tests.builders import NOON

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
TICK = 30.0
"""Simulated seconds between two looks; the daemon thinks a size over as often."""

Verdict = tuple[Outcome | None, float | None]
"""What came of a run, None for a failure; and the gain."""


@dataclass(frozen=True)
class World:
    """A stream and what its runs come to."""

    rate: Callable[[float], float]
    """Events a second at a time, in seconds since the start."""
    seconds: Callable[[int], float] = lambda size: 60.0 + size
    """How long a run over so many events takes."""
    verdict: Callable[[int], Verdict] = lambda size: (Outcome.PROMOTE, 0.08)
    """What comes of a run over so many events."""
    noise: float = 0.0
    """Arrivals are Poisson, and runs take longer or shorter by this share, when not 0."""


@dataclass
class Story:
    """What happened."""

    sizes: list[tuple[float, Sizing]] = field(default_factory=list)
    """The changes, with their times."""
    causes: set[SizeCause] = field(default_factory=set)
    longest_queue: int = 0
    runs: int = 0
    waiting: int = 0
    cause: SizeCause = SizeCause.CONFIGURED
    """The last word on the size."""

    def reversals(self) -> int:
        """How often the size turned from growing to shrinking or back."""
        sizes = [sizing.size for _, sizing in self.sizes]
        grew = [after > before for before, after in pairwise(sizes)]
        return sum(one != other for one, other in pairwise(grew))


def live(
    world: World,
    *,
    days: float = 3.0,
    rules: SizeRules | None = None,
    batching: BatchRules | None = None,
    seed: int = 0,
) -> Story:
    """Play a world for some days."""
    rules, batching, rng = rules or SizeRules(), batching or BatchRules(), Random(seed)
    story = Story(sizes=[(0.0, Sizing(rules.start, 0, SizeCause.CONFIGURED, "the start"))])
    present, arrived, queue = story.sizes[0][1], 0, deque[float]()
    runs: deque[tuple[float, int, EndedRun]] = deque(maxlen=RUNS_LOOKED_AT)
    under_way: tuple[float, float, int, EndedRun] | None = None
    owed, idle_since = 0.0, 0.0
    for tick in range(int(days * DAY / TICK)):
        now = tick * TICK
        owed += world.rate(now) * TICK
        n = _poisson(world.rate(now) * TICK, rng) if world.noise else int(owed)
        owed -= int(owed)
        arrived += n
        queue.extend([now] * n)
        if under_way is not None and now >= under_way[0]:
            _, begun, arrived_then, run = under_way
            runs.append((begun, arrived_then, run))
            under_way = None
            story.runs += 1
        since = runs[0] if runs else None
        rate = (arrived - since[1]) / (now - since[0]) if since and now > since[0] else None
        today = sum(at > now - DAY for at, _ in story.sizes[1:])
        chosen = choose_size(
            Experience(
                present.size,
                present.needed,
                len(queue),
                rate,
                [run for *_, run in reversed(runs)],
                today,
                now - idle_since,
            ),
            rules,
        )
        if chosen.cause is not SizeCause.IDLE:
            idle_since = now
        story.causes.add(chosen.cause)
        if chosen.size != present.size:
            story.sizes.append((now, chosen))
            runs.clear()
        present = chosen
        clock = NOON + timedelta(seconds=now)
        oldest = NOON + timedelta(seconds=queue[0]) if queue else None
        batch = due(
            LineQueue("line", len(queue), oldest, busy=under_way is not None),
            replace(batching, batch_size=present.size),
            clock,
        )
        if batch is not None:
            size = min(batch.size, len(queue))
            for _ in range(size):
                queue.popleft()
            seconds = world.seconds(size) * (1 + world.noise * rng.uniform(-1, 1))
            run = EndedRun(seconds, batch.trigger, *world.verdict(size))
            under_way = (now + seconds, now, arrived, run)
        story.longest_queue = max(story.longest_queue, len(queue))
    story.waiting, story.cause = len(queue), present.cause
    return story


def _poisson(mean: float, rng: Random) -> int:
    """A Poisson number; by its normal limit where it is large."""
    if mean > 50:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    n, product, limit = 0, rng.random(), math.exp(-mean)
    while product > limit:
        n += 1
        product *= rng.random()
    return n


def needs(size: int, *, gain: float = 0.3) -> Callable[[int], Verdict]:
    """Candidates of smaller batches prove nothing; those of others gain."""
    return lambda n: (Outcome.PROMOTE, gain) if n >= size else (Outcome.ABSTAIN, 0.0)


def always(outcome: Outcome | None, gain: float | None = None) -> Callable[[int], Verdict]:
    """Every run ends so."""
    return lambda n: (outcome, gain)


WIDE = SizeRules(start=20, least=10, most=200)
ROOMY = BatchRules(batch_size=20, max_queue_size=200)

WORLDS: Mapping[str, World] = {
    "constant, easy": World(lambda now: 20 / HOUR * 4, noise=0.2),
    "constant, fast": World(lambda now: 0.5, lambda n: 90 + 0.2 * n, noise=0.2),
    "bursts": World(lambda now: 3.0 if now % HOUR < 5 * MINUTE else 0.02, noise=0.2),
    "day and night": World(
        lambda now: 0.25 * (1.02 + math.sin(2 * math.pi * now / DAY)), noise=0.2
    ),
    "suddenly tenfold": World(lambda now: 0.04 if now < DAY else 0.4, noise=0.2),
    "the rush ends": World(lambda now: 0.6 if now < DAY else 0.04, noise=0.2),
    "dying": World(lambda now: 0.1 * 0.5 ** (now / (6 * HOUR)), noise=0.2),
    "slow runs": World(lambda now: 0.02, lambda n: HOUR + n, noise=0.2),
    "too fast for any size": World(lambda now: 2.0, lambda n: 60 + n, noise=0.2),
    "failing runs": World(lambda now: 0.5, verdict=always(None), noise=0.2),
    "nothing is gained": World(lambda now: 0.05, verdict=always(Outcome.ABSTAIN, 0.0), noise=0.2),
    "proof needs 50": World(lambda now: 0.1, verdict=needs(50), noise=0.2),
    "slow stream, no proof": World(lambda now: 0.005, verdict=needs(50), noise=0.2),
    "large gains, idle": World(lambda now: 0.03, verdict=always(Outcome.PROMOTE, 0.3), noise=0.2),
}


def table() -> Iterator[str]:
    """How each world went in six days, as rows of a table in Markdown."""
    yield "| stream | sizes | cause at the end | runs | longest queue |"
    yield "|---|---|---|--:|--:|"
    for name, world in WORLDS.items():
        story = live(world, days=6, rules=WIDE, batching=ROOMY, seed=1)
        sizes = " → ".join(str(sizing.size) for _, sizing in story.sizes)
        yield f"| {name} | {sizes} | {story.cause} | {story.runs} | {story.longest_queue} |"


if __name__ == "__main__":
    print("\n".join(table()))
