"""What the feedback on a task type says by now: scores, voices, and what they say together.

Pure. A producer's voice is what it said, fading with time and with what it said since. Each
counts for a part of what is needed at most, so that one cannot shout the others down.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class Signal(StrEnum):
    """What a feedback says something by."""

    APPROVAL = "approval"
    RATING = "rating"
    QUALITY = "quality"
    ENGAGEMENT = "engagement"


WEIGHTS: Mapping[Signal, float] = {
    Signal.APPROVAL: 0.4,
    Signal.RATING: 0.2,
    Signal.QUALITY: 0.25,
    Signal.ENGAGEMENT: 0.15,
}
FULL_WEIGHT = 0.5
"""Signals that weigh less together do not make a full score: a rating alone is 0.4 at most."""

SCORE = "score"
VOICE_MEMORY = 50
"""Feedback of one producer after which an old one weighs less."""
VOICE_HALF_LIFE = timedelta(days=7)
MOST_VOICES = 100
"""Producers of feedback that are remembered of one task type: those who said most."""

_HEARD = (SCORE, *Signal)


def score(signals: Mapping[Signal, float]) -> float:
    """What a feedback comes to, in [-1, 1]: the weighted mean of its signals.

    Where they weigh less than FULL_WEIGHT together, the rest counts as indifferent.
    """
    weight = sum(WEIGHTS[signal] for signal in signals)
    total = sum(WEIGHTS[signal] * value for signal, value in signals.items())
    return total / max(weight, FULL_WEIGHT)


@dataclass
class Voice:
    """What one producer said of a task type."""

    at: datetime
    n: float = 0.0
    heard: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By signal, and by SCORE: how often, and the sum."""

    def fade(self, now: datetime) -> None:
        """Let time pass."""
        if now > self.at:
            self._shrink(0.5 ** ((now - self.at) / VOICE_HALF_LIFE))
            self.at = now

    def hear(self, signals: Mapping[Signal, float]) -> None:
        """One more feedback with these signals, at least one."""
        self.n += 1.0
        for name, value in (*signals.items(), (SCORE, score(signals))):
            n, total = self.heard.get(name, (0.0, 0.0))
            self.heard[str(name)] = (n + 1.0, total + value)
        if self.n > VOICE_MEMORY:
            self._shrink(VOICE_MEMORY / self.n)

    def part(self, most: float) -> list[float]:
        """How often it counts and what it then says in sum, for the score and each signal."""
        part: list[float] = []
        for name in _HEARD:
            n, said = self.heard.get(name, (0.0, 0.0))
            counts = min(n, most)
            part += (counts, counts * said / n if n > 0.0 else 0.0)
        return part

    def _shrink(self, factor: float) -> None:
        self.n *= factor
        self.heard = {name: (n * factor, sum_ * factor) for name, (n, sum_) in self.heard.items()}


@dataclass(frozen=True)
class Needed:
    """How much evidence is needed before anything follows from it."""

    feedback: int = 8
    producers: int = 2
    """So many have to stand behind it, each with an equal part."""

    @property
    def most_of_one(self) -> float:
        """For how much one producer can count."""
        return self.feedback / self.producers

    @property
    def of_a_signal(self) -> float:
        """More than one producer can give, where more than one is needed."""
        return min(self.feedback, self.most_of_one + 1)


@dataclass(frozen=True)
class Evidence:
    """What the feedback on a task type says. Each producer counts for a part at most."""

    weight: float
    """Feedback, those of each producer up to Needed.most_of_one."""
    producers: int
    score: float
    means: Mapping[Signal, float]
    """Of the signals that there is enough of; in [-1, 1]."""
    needed: Needed

    @property
    def enough(self) -> bool:
        """Whether anything may follow."""
        return _counted(self.weight) >= self.needed.feedback

    def __str__(self) -> str:
        return (
            f"{_counted(self.weight)} of {self.needed.feedback} feedback that are needed, at most"
            f" {self.needed.most_of_one:g} of each producer"
        )


class Chorus:
    """The voices of a task type at one moment, summed up once and kept up as they go on.

    Changes the voices that it is given: they fade to that moment, and hear what is said.
    """

    def __init__(self, voices: dict[str, Voice], needed: Needed, now: datetime) -> None:
        self.voices = voices
        self.needed = needed
        self.now = now
        for voice in voices.values():
            voice.fade(now)
        self._parts = {name: voice.part(needed.most_of_one) for name, voice in voices.items()}
        self._sums = [math.fsum(column) for column in zip(*self._parts.values(), strict=True)]
        self._sums = self._sums or [0.0] * (2 * len(_HEARD))

    def hear(self, producer: str, signals: Mapping[Signal, float]) -> None:
        """One more feedback. A new voice may take the place of the one that said least."""
        voice = self.voices.get(producer)
        if voice is None:
            while len(self.voices) >= MOST_VOICES:
                least = min(self.voices, key=lambda name: self.voices[name].n)
                del self.voices[least]
                self._add(self._parts.pop(least), -1.0)
            voice = self.voices[producer] = Voice(self.now)
        else:
            self._add(self._parts[producer], -1.0)
        voice.hear(signals)
        self._parts[producer] = voice.part(self.needed.most_of_one)
        self._add(self._parts[producer], 1.0)

    def evidence(self) -> Evidence:
        """What they say together."""
        sums = iter(zip(self._sums[::2], self._sums[1::2], strict=True))
        weight, total = next(sums)
        means = {
            signal: said / n
            for signal, (n, said) in zip(Signal, sums, strict=True)
            if _counted(n) >= self.needed.of_a_signal
        }
        scored = total / weight if self.voices else 0.0
        return Evidence(weight, len(self.voices), scored, means, self.needed)

    def _add(self, part: list[float], sign: float) -> None:
        self._sums = [sum_ + sign * one for sum_, one in zip(self._sums, part, strict=True)]


def _counted(n: float) -> int:
    """Feedback as whole ones: what is a little faded still counts as one."""
    return math.ceil(n - 1e-6)
