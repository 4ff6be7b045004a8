"""The last facts of this process, in words: what `learnd status --watch` shows of the past.

Kept in memory alone. What has to last is in the history, which is in the database.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from learning.clock import Clock
from learning.facts import Fact
from monitoring.logs import in_words, is_routine

KEPT = 50


@dataclass(frozen=True)
class ToldFact:
    """One fact in words, and when it was told."""

    at: datetime
    kind: str
    """The name of its class in learning.facts."""
    text: str


class RecentFacts:
    """Listens, and keeps the last KEPT facts that are no routine."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._facts: deque[ToldFact] = deque(maxlen=KEPT)

    def __call__(self, fact: Fact) -> None:
        """Remember a fact. Does not block."""
        if not is_routine(fact):
            self._facts.append(ToldFact(self._clock(), type(fact).__name__, in_words(fact)))

    def newest(self) -> Sequence[ToldFact]:
        """The newest first."""
        return list(reversed(self._facts))
