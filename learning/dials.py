"""Numbers that feedback moves: within bounds, so far a day, and back to rest by themselves.

Pure. A dial's value is the distance from where it rests. It halves in each half-life, so that
what nobody confirms wears off; docs/feedback.md says what each one does.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

NOTICEABLE = 0.001
"""A dial that is nearer to its rest is at rest, and a smaller step is not made."""


class Dial(StrEnum):
    """What feedback moves in a task type."""

    BAR = "bar"
    """Added to both confidence bars."""
    TRUST = "trust"
    """Added to a trust of 0.5: of a producer of outputs, or of the task type as a whole."""
    STYLE = "style"
    """How much a mood is wanted, in [0, 1]."""
    WEIGHT = "weight"
    """Doublings of the task type's weight where a batch repeats or mixes in examples."""


HALF_LIVES = {
    Dial.BAR: timedelta(days=7),
    Dial.TRUST: timedelta(days=30),
    Dial.STYLE: timedelta(days=7),
    Dial.WEIGHT: timedelta(days=7),
}
TRUST_AT_REST = 0.5


class DialKey(NamedTuple):
    """Which dial of which task type, and whose: a producer's or a mood's; "" the type's own."""

    task_type: str
    dial: Dial
    subject: str


@dataclass(frozen=True)
class Bounds:
    """How far a dial may be from its rest, and how far it may move."""

    least: float
    most: float
    a_day: float
    """The sum of its steps in one day (UTC), up and down alike."""


def faded(value: float, dial: Dial, since: datetime, now: datetime) -> float:
    """What is left of a dial's value by now; 0 when that is not noticeable."""
    left = value * 0.5 ** (max(timedelta(0), now - since) / HALF_LIVES[dial])
    return left if abs(left) >= NOTICEABLE else 0.0


def rests_at(value: float, dial: Dial, since: datetime) -> datetime:
    """When a dial is at rest again if nothing moves it."""
    if abs(value) < NOTICEABLE:
        return since
    return since + HALF_LIVES[dial] * math.log2(abs(value) / NOTICEABLE)


def turned(value: float, step: float, room: float, bounds: Bounds) -> float:
    """A dial's value after a step, cut to the bounds and to the room that the day leaves.

    The same value when so little is left of the step that nobody would notice. A value beyond
    bounds that were narrowed since stays where it is, or comes closer.
    """
    step = max(-room, min(room, step))
    lowest, highest = min(bounds.least, value), max(bounds.most, value)
    after = max(lowest, min(highest, value + step))
    return after if abs(after - value) >= NOTICEABLE else value


def natural(dial: Dial, value: float) -> float:
    """A dial's value as people read it: an offset, a trust in [0, 1], a weight."""
    match dial:
        case Dial.TRUST:
            return TRUST_AT_REST + value
        case Dial.WEIGHT:
            return float(2.0**value)
        case Dial.BAR | Dial.STYLE:
            return value
