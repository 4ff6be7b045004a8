"""The two books that are kept inside every transaction: running counts and history."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, insert

from daemon.store.dialect import add_up
from daemon.store.tables import tallies, transitions


@dataclass
class Tally:
    """Changes to the running counts, collected and written once per transaction."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    confidence_sums: defaultdict[tuple[str, str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    confidence_counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, kind: str, task_type: str, state: str, confidence: float | None = None) -> None:
        """One more of a kind in a state."""
        self.add_all(kind, task_type, state, [confidence])

    def add_all(
        self, kind: str, task_type: str, state: str, confidences: Sequence[float | None]
    ) -> None:
        """One more of a kind in a state for each confidence."""
        key = (kind, task_type, state)
        known = [confidence for confidence in confidences if confidence is not None]
        self.counts[key] += len(confidences)
        if known:
            self.confidence_sums[key] += math.fsum(known)
            self.confidence_counts[key] += len(known)

    def move(
        self,
        kind: str,
        task_type: str,
        before: str,
        after: str,
        confidence: float | None = None,
        *,
        times: int = 1,
    ) -> None:
        """One, or `times` alike, that was in one state is in another."""
        self._count((kind, task_type, before), -times, confidence)
        self._count((kind, task_type, after), times, confidence)

    def _count(self, key: tuple[str, str, str], step: int, confidence: float | None) -> None:
        self.counts[key] += step
        if confidence is not None:
            self.confidence_sums[key] += step * confidence
            self.confidence_counts[key] += step

    def write(self, tx: Connection) -> None:
        """Add everything collected to the stored counts.

        In the order of their keys, so that two writers cannot wait for each other.
        """
        add_up(
            tx,
            tallies,
            ("kind", "task_type", "state"),
            [
                {
                    "kind": kind,
                    "task_type": task_type,
                    "state": state,
                    "n": n,
                    "confidence_sum": self.confidence_sums[kind, task_type, state],
                    "confidence_n": self.confidence_counts[kind, task_type, state],
                }
                for (kind, task_type, state), n in sorted(self.counts.items())
            ],
        )


@dataclass(frozen=True)
class Move:
    """One step in the life of an event, a batch, a run or a version."""

    kind: str
    ref: str
    before: str | None
    after: str
    reason: str
    actor: str


def record(tx: Connection, moves: Iterable[Move], now: datetime) -> None:
    """Write history rows."""
    rows = [
        {
            "kind": move.kind,
            "ref": move.ref,
            "from_state": move.before,
            "to_state": move.after,
            "reason": move.reason,
            "actor": move.actor,
            "at": now,
        }
        for move in moves
    ]
    if rows:
        tx.execute(insert(transitions), rows)
