"""The books that are kept inside every transaction: running counts, counts by time, history."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, insert

from daemon.store.dialect import add_up
from daemon.store.tables import outputs_over_time, tallies, transitions
from learning.lifecycle import APPROVED_STATES, REJECTED_STATES
from learning.ports import EventKind


@dataclass
class OutputFlow:
    """What came and was said of one task type's outputs; columns of outputs_over_time."""

    outputs: int = 0
    confidence_sum: float = 0.0
    confidence_n: int = 0
    approved: int = 0
    rejected: int = 0
    auto_approved: int = 0


@dataclass
class Tally:
    """Changes to the running counts, collected and written once per transaction."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    confidence_sums: defaultdict[tuple[str, str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    confidence_counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    flows: defaultdict[str, OutputFlow] = field(default_factory=lambda: defaultdict(OutputFlow))
    """By task type."""

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

    def arrive(
        self, task_type: str, state: str, confidences: Sequence[float | None], *, by_human: bool
    ) -> None:
        """One more output of the stream, with its first verdict, for each confidence."""
        key = (EventKind.OUTPUT, task_type, state)
        sum_before, n_before = self.confidence_sums[key], self.confidence_counts[key]
        self.add_all(*key, confidences)
        flow = self.flows[task_type]
        flow.outputs += len(confidences)
        flow.confidence_sum += self.confidence_sums[key] - sum_before
        flow.confidence_n += self.confidence_counts[key] - n_before
        self._judge(task_type, None, state, by_human, len(confidences))

    def move(
        self,
        kind: str,
        task_type: str,
        before: str,
        after: str,
        confidence: float | None = None,
        *,
        times: int = 1,
        by_human: bool = False,
        is_verdict: bool = True,
    ) -> None:
        """One, or `times` alike, that was in one state is in another.

        `by_human` says whether a person approved an output that is approved from now on. What
        was approved before, and only waited, gets no verdict once more.
        """
        self._count((kind, task_type, before), -times, confidence)
        self._count((kind, task_type, after), times, confidence)
        if kind == EventKind.OUTPUT and is_verdict:
            self._judge(task_type, before, after, by_human, times)

    def confirm(self, task_type: str) -> None:
        """A person approved an output that was approved without one."""
        self.flows[task_type].approved += 1

    def _judge(
        self, task_type: str, before: str | None, after: str, by_human: bool, times: int
    ) -> None:
        """Count a verdict, if the move is one. Nobody but a person rejects."""
        if after in REJECTED_STATES:
            self.flows[task_type].rejected += times
        elif after in APPROVED_STATES and before not in APPROVED_STATES:
            flow = self.flows[task_type]
            if by_human:
                flow.approved += times
            else:
                flow.auto_approved += times

    def _count(self, key: tuple[str, str, str], step: int, confidence: float | None) -> None:
        self.counts[key] += step
        if confidence is not None:
            self.confidence_sums[key] += step * confidence
            self.confidence_counts[key] += step

    def write(self, tx: Connection, now: datetime) -> None:
        """Add everything collected to the stored counts, and to those of this hour.

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
        hour = now.replace(minute=0, second=0, microsecond=0)
        add_up(
            tx,
            outputs_over_time,
            ("task_type", "span", "since"),
            [
                {"task_type": task_type, "span": "hour", "since": hour, **vars(flow)}
                for task_type, flow in sorted(self.flows.items())
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
