"""Choose a model line's batch size from what its stream and its runs have shown.

Pure: experience and bounds in, a size with its reason out. No clock, no I/O.

A line that works on a run seals nothing. So with `rate` events arriving a second, runs
that keep the line busy for `seconds`, and batches of `size` events, the share of its time
that a line needs for its stream is

    load = rate * seconds / size        (utilisation of a batch server; Little's law)

Above 1 the queue grows without bound, near 1 it swings widely, and a larger batch helps
as far as a run's cost is in its start and its evaluation and not in its rows. On the
other side a batch that is too small wastes runs: the gate cannot tell such candidates
from the champion, and abstains. Hence, in this order:

1. Nothing changes before ENOUGH_RUNS ended at the present size: the first say nothing.
2. While half of the runs fail their times and verdicts mean nothing: it stays.
3. A line that cannot keep up grows at once to the size at which it is half busy.
4. Candidates that prove nothing: collect more, unless the age limit seals first anyhow.
5. Large gains on a line that was idle for a day: smaller batches learn sooner.
6. A line that was idle for a day, larger than configured: the rush is over, back again.

It does not flap: growing begins at a load of 0.85 and shrinking below 0.25, both end at
0.5, so an estimate has to be wrong by 1.7 times before one undoes the other; a stream with
a rhythm of a day or less is never idle for a day; no shrinking goes below a size that
candidates once needed to prove something; and a day has a limit of changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from statistics import median

from learning.batching import Trigger
from learning.gate import Outcome

ENOUGH_RUNS = 3
RUNS_LOOKED_AT = 8
"""The newest so many runs at the present size count."""
BUSY = 0.85
HALF_BUSY = 0.5
IDLE = 0.25
IDLE_SECONDS = 86_400.0
"""So long a line has to be idle before its batches shrink: nights and lulls do not count."""
STEP = 1.5
"""Growing for proof and shrinking for speed go one such step at a time."""
WORTHWHILE = 1.25
"""A smaller step down is not taken."""
LARGE_GAIN = 0.15
"""Relative fall of the held-out loss: three times the margin that the gate ships with."""


class SizeCause(StrEnum):
    """Why a batch size is what it is; a metric label."""

    CONFIGURED = "configured"
    """As the settings say: nothing was learned yet, or the settings have changed."""
    BY_HAND = "by_hand"
    """An operator set or released it."""
    TOO_FEW_RUNS = "too_few_runs"
    FAILING_RUNS = "failing_runs"
    KEEP_UP = "keep_up"
    OVERLOADED = "overloaded"
    """At its maximum, and the line still cannot keep up."""
    UNPROVEN = "unproven"
    SEALED_BY_AGE = "sealed_by_age"
    """More events are wanted, but the age limit seals before they have come."""
    LEARN_SOONER = "learn_sooner"
    CALM = "calm"
    STEADY = "steady"
    IDLE = "idle"
    """Steady, and with time to spare."""
    DAILY_LIMIT = "daily_limit"


@dataclass(frozen=True)
class SizeRules:
    """The bounds. Sizes in events; 1 <= least <= start <= most."""

    adaptive: bool = True
    start: int = 20
    least: int = 20
    most: int = 100
    max_changes_a_day: int = 4

    def bounded(self, size: int) -> int:
        """The nearest size within the bounds."""
        return max(self.least, min(size, self.most))


@dataclass(frozen=True)
class EndedRun:
    """One run that was decided or failed."""

    seconds: float
    """From its first launch to its end: so long the line was busy with it."""
    trigger: Trigger
    """What sealed its batch."""
    outcome: Outcome | None
    """What the gate said; None when the run failed."""
    gain: float | None = None
    """Relative fall of the held-out loss, positive when the candidate is better."""


@dataclass(frozen=True)
class Experience:
    """What a line has shown at its present size."""

    size: int
    needed: int
    """Shrinking ends here: smaller batches proved nothing. 0 when that never happened."""
    waiting: int
    rate: float | None
    """Events queued a second since the first of the runs; None when unknown."""
    runs: Sequence[EndedRun]
    """Those of batches that were sealed at this size, newest first."""
    changes_today: int
    """Automatic ones in the last 24 hours."""
    idle_seconds: float = 0.0
    """Since when the choice is SizeCause.IDLE without a break."""


@dataclass(frozen=True)
class Sizing:
    """A size and why. `needed` as in Experience."""

    size: int
    needed: int
    cause: SizeCause
    reason: str


def choose_size(seen: Experience, rules: SizeRules) -> Sizing:
    """The batch size from now on; mostly the present one."""
    wanted = _wanted(seen, rules)
    if wanted.size != seen.size and seen.changes_today >= rules.max_changes_a_day:
        return Sizing(
            seen.size,
            seen.needed,
            SizeCause.DAILY_LIMIT,
            f"{wanted.size} is wanted ({wanted.reason}), but it changed"
            f" {seen.changes_today} times in 24 hours, which is the limit",
        )
    return wanted


def _wanted(seen: Experience, rules: SizeRules) -> Sizing:
    def stay(cause: SizeCause, reason: str) -> Sizing:
        return Sizing(seen.size, seen.needed, cause, reason)

    runs = list(islice(seen.runs, RUNS_LOOKED_AT))
    if len(runs) < ENOUGH_RUNS:
        return stay(SizeCause.TOO_FEW_RUNS, f"{len(runs)} of {ENOUGH_RUNS} runs ended at this size")
    failed = sum(run.outcome is None for run in runs)
    if 2 * failed >= len(runs):
        return stay(SizeCause.FAILING_RUNS, f"{failed} of {len(runs)} runs failed")

    seconds = median(run.seconds for run in runs)
    half_busy = math.ceil(seen.rate * seconds / HALF_BUSY) if seen.rate is not None else None
    load = seen.rate * seconds / seen.size if seen.rate is not None else None
    if load is not None and half_busy is not None and load > BUSY:
        told = f"{load * seen.size:.0f} events arrive during a run of {seconds:.0f} s"
        if seen.size >= rules.most:
            return stay(SizeCause.OVERLOADED, f"{told}, and {seen.size} is the maximum")
        return Sizing(rules.bounded(half_busy), seen.needed, SizeCause.KEEP_UP, told)

    decided = [run for run in runs if run.outcome is not None][:ENOUGH_RUNS]
    if len(decided) == ENOUGH_RUNS and all(run.outcome is Outcome.ABSTAIN for run in decided):
        told = f"the last {ENOUGH_RUNS} candidates proved nothing"
        if 2 * sum(run.trigger is Trigger.AGE for run in runs) >= len(runs):
            return stay(
                SizeCause.SEALED_BY_AGE, f"{told}, but batches are sealed by age before they fill"
            )
        if seen.size >= rules.most:
            return stay(SizeCause.UNPROVEN, f"{told}, and {seen.size} is the maximum")
        larger = rules.bounded(math.ceil(seen.size * STEP))
        return Sizing(larger, larger, SizeCause.UNPROVEN, f"{told}: collect more for each")

    if load is None or half_busy is None or load >= IDLE or seen.waiting >= 2 * seen.size:
        busy = f", the line is {load:.0%} busy" if load is not None else ""
        return stay(SizeCause.STEADY, f"it fits{busy}")
    told = f"the line is {load:.0%} busy"
    if seen.idle_seconds >= IDLE_SECONDS:
        floor = max(half_busy, seen.needed, rules.least)
        for wanted, cause, applies in (
            (math.floor(seen.size / STEP), SizeCause.LEARN_SOONER, _gain_much(decided)),
            (rules.start, SizeCause.CALM, True),
        ):
            smaller = max(floor, wanted)
            if applies and smaller * WORTHWHILE <= seen.size:
                return Sizing(smaller, seen.needed, cause, f"{told}, and was for a day")
    return stay(SizeCause.IDLE, told)


def _gain_much(decided: Sequence[EndedRun]) -> bool:
    return len(decided) == ENOUGH_RUNS and all(
        run.outcome is Outcome.PROMOTE and run.gain is not None and run.gain >= LARGE_GAIN
        for run in decided
    )
