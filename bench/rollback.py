"""How often the live verdict is wrong, how often it finds a worse champion, and how soon.

    python -m bench.rollback [--quick]

Simulated streams of people's verdicts through learning/live_verdict.py as the daemon calls it,
looked at after every single verdict. The champion's stream goes on beside its predecessor's, at
the canary share that learnd publishes; both come from several producers. Beside the e-process
stand two others, without producers: two time-uniform confidence sequences, each at half the
level (Howard et al. 2021), and a likelihood ratio of a Beta mixture against the best null
(universal inference, Wasserman et al. 2020). Prints a table, and one JSON object as the last line.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from daemon.printing import Column, number, show_table
from learning.live_verdict import Approvals, ByProducer, VerdictRules, is_worse, total

RULES: Final = VerdictRules()
STREAMS: Final = 1_000
QUICK_STREAMS: Final = 40
DROP_WITHIN: Final = 2_000
EQUAL_WITHIN: Final = 3_000


@dataclass(frozen=True)
class Kind:
    """One kind of stream. `histories` is the range of the predecessor's verdicts, log-uniform."""

    name: str
    before: float
    after: float
    histories: tuple[int, int]
    n_producers: int = 8
    liar_share: float = 0.0
    """Of the champion's verdicts, from one more producer who always says no."""

    @property
    def is_equal(self) -> bool:
        """Whether the champion is no worse."""
        return self.after >= self.before


KINDS: Final[Sequence[Kind]] = (
    Kind("equal", 0.8, 0.8, (500, 2_000)),
    Kind("equal, short history", 0.8, 0.8, (30, 60)),
    Kind("equal, coin", 0.5, 0.5, (30, 500)),
    Kind("equal, near 1", 0.98, 0.98, (100, 1_000)),
    Kind("equal, near 0", 0.03, 0.03, (100, 1_000)),
    Kind("better", 0.8, 0.85, (500, 2_000)),
    Kind("equal, a liar with a third", 0.8, 0.8, (500, 2_000), liar_share=0.33),
    Kind("drop 0.8 to 0.7", 0.8, 0.7, (500, 2_000)),
    Kind("drop 0.9 to 0.8", 0.9, 0.8, (500, 2_000)),
    Kind("drop 0.95 to 0.85", 0.95, 0.85, (500, 2_000)),
    Kind("drop 0.6 to 0.5", 0.6, 0.5, (500, 2_000)),
    Kind("drop 0.8 to 0.7, 3 producers", 0.8, 0.7, (500, 2_000), n_producers=3),
)
HEADLINE_FALSE: Final = tuple(one.name for one in KINDS if one.is_equal and not one.liar_share)
"""Where all are honest; a liar has a level of his own."""
HEADLINE_DROP: Final = ("drop 0.8 to 0.7", "drop 0.9 to 0.8", "drop 0.95 to 0.85")

IsWorse = Callable[[ByProducer, ByProducer], bool]


def by_e_process(champion: ByProducer, before: ByProducer) -> bool:
    """As the daemon asks."""
    return is_worse(champion, before, RULES)


def by_confidence_sequences(champion: ByProducer, before: ByProducer) -> bool:
    """Two intervals that hold at all times, each at half the level, lie apart."""
    all_of, of_before = total(champion), total(before)
    if min(all_of.n, of_before.n) < RULES.min_evidence:
        return False
    radius = _radius(all_of.n) + _radius(of_before.n)
    return all_of.yes / all_of.n + radius < of_before.yes / of_before.n


def _radius(n: int) -> float:
    """Of a normal mixture's one-sided boundary for 1/4-sub-Gaussian data, best near n = 1,000."""
    rho, variance = 250.0, n / 4
    level = RULES.level / 2
    return math.sqrt((variance + rho) * math.log((variance + rho) / (4 * level**2 * rho) + 1)) / n


def by_universal_inference(champion: ByProducer, before: ByProducer) -> bool:
    """A Beta(1/2, 1/2) mixture for each version against the best common rate."""
    all_of, of_before = total(champion), total(before)
    n, yes = all_of.n + of_before.n, all_of.yes + of_before.yes
    if min(all_of.n, of_before.n) < RULES.min_evidence or yes in (0, n):
        return False
    if all_of.yes * of_before.n >= of_before.yes * all_of.n:
        return False
    null = yes * math.log(yes / n) + (n - yes) * math.log(1 - yes / n)
    return _mixture(all_of) + _mixture(of_before) - null >= -math.log(RULES.level)


def _mixture(one: Approvals) -> float:
    gamma = math.lgamma
    return (
        gamma(one.yes + 0.5) + gamma(one.n - one.yes + 0.5) - gamma(one.n + 1) - math.log(math.pi)
    )


@dataclass(frozen=True)
class Outcome:
    """Of some streams of one kind."""

    kind: Kind
    n: int
    delays: Sequence[int]
    """The champion's verdicts until it was called worse, where it was."""

    @property
    def share(self) -> float:
        """Streams in which it was."""
        return len(self.delays) / self.n

    @property
    def median_delay(self) -> float | None:
        """Of those."""
        return statistics.median(self.delays) if self.delays else None


def play(kind: Kind, rng: random.Random, is_worse: IsWorse) -> int | None:
    """One stream: how many verdicts on the champion it took, or None."""
    names = [f"p{n}" for n in range(kind.n_producers)]
    low, high = (math.log(end) for end in kind.histories)
    history = round(math.exp(rng.uniform(low, high)))
    before, champion = dict.fromkeys(names, Approvals()), dict.fromkeys(names, Approvals())
    for _ in range(history):
        _say(before, rng.choice(names), rng.random() < kind.before)
    within = EQUAL_WITHIN if kind.is_equal else DROP_WITHIN
    n = 0
    while n < within:
        if rng.random() < RULES.canary_share:
            _say(before, rng.choice(names), rng.random() < kind.before)
        else:
            n += 1
            if kind.liar_share and rng.random() < kind.liar_share:
                _say(champion, "liar", yes=False)
            else:
                _say(champion, rng.choice(names), rng.random() < kind.after)
        if is_worse(champion, before):
            return n
    return None


def _say(counts: dict[str, Approvals], producer: str, yes: bool) -> None:
    one = counts.get(producer, Approvals())
    counts[producer] = Approvals(one.n + 1, one.yes + yes)


def measure(kind: Kind, n: int, is_worse: IsWorse) -> Outcome:
    """Streams of one kind, the same ones for each test."""
    delays = (play(kind, random.Random(f"{kind.name} {seed}"), is_worse) for seed in range(n))
    return Outcome(kind, n, sorted(delay for delay in delays if delay is not None))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer streams, under a minute")
    n = QUICK_STREAMS if parser.parse_args().quick else STREAMS
    began = time.monotonic()
    outcomes = [measure(kind, n, by_e_process) for kind in KINDS]
    rivals = {
        name: [measure(kind, max(20, n // 10), test) for kind in KINDS if not kind.liar_share]
        for name, test in (
            ("confidence_sequences", by_confidence_sequences),
            ("universal_inference", by_universal_inference),
        )
    }
    show_table(
        [
            Column("test"),
            Column("stream"),
            Column("producers"),
            number("streams"),
            number("called worse"),
            number("median delay"),
        ],
        [
            (
                test,
                one.kind.name,
                str(one.kind.n_producers),
                f"{one.n:,}",
                f"{one.share:.3f}",
                f"{one.median_delay:,.0f}" if one.median_delay is not None else "-",
            )
            for test, measured in {"e-process": outcomes, **rivals}.items()
            for one in measured
        ],
    )
    print(json.dumps(_figures(outcomes, rivals) | {"seconds": round(time.monotonic() - began)}))


def _figures(
    outcomes: Sequence[Outcome], rivals: dict[str, list[Outcome]]
) -> dict[str, float | int | None]:
    delays = [delay for one in outcomes if one.kind.name in HEADLINE_DROP for delay in one.delays]
    figures: dict[str, float | int | None] = {
        "streams_of_each_kind": outcomes[0].n,
        "false_alarm_rate": max(one.share for one in outcomes if one.kind.name in HEADLINE_FALSE),
        "false_alarm_rate_with_a_liar": max(one.share for one in outcomes if one.kind.liar_share),
        "detected_rate": statistics.mean(
            one.share for one in outcomes if one.kind.name in HEADLINE_DROP
        ),
        "detected_rate_worst_kind": min(one.share for one in outcomes if not one.kind.is_equal),
        "median_delay_feedbacks": statistics.median(delays) if delays else None,
    }
    for name, measured in rivals.items():
        drops = [one for one in measured if one.kind.name in HEADLINE_DROP]
        figures[f"detected_rate_{name}"] = statistics.mean(one.share for one in drops)
    return figures


if __name__ == "__main__":
    main()
