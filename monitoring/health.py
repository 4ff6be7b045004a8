"""Say whether the loop does what it is for: live, ready, healthy.

Pure: measurements and findings in, a report out. Live is "restart me if not", ready is
"send me work", healthy is "the models get better" (OP2). The three are kept apart: a
daemon whose outputs are all rejected is live and ready, and not healthy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from learning.statistics import ENOUGH_JUDGED

HEALTHY_SUCCESS_RATE = 0.7
HEALTHY_FINE_TUNE_SUCCESS = 0.8


@dataclass(frozen=True)
class Check:
    """One finding: of the store, of Kafka, of a loop. `detail` says what to do when not ok."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Measurements:
    """What people said of outputs lately, and what became of all runs so far."""

    approved: int = 0
    """Verdicts of people, each on an output."""
    rejected: int = 0
    since: datetime | None = None
    """From when on verdicts count."""
    runs_succeeded: int = 0
    runs_failed: int = 0


@dataclass(frozen=True)
class HealthReport:
    """The answer of /healthz."""

    healthy: bool
    metrics: Mapping[str, Any]
    finetune: Mapping[str, Any]
    timestamp: datetime
    checks: Mapping[str, Check]


def success_rate(succeeded: int, failed: int) -> float | None:
    """succeeded / (succeeded + failed), in [0, 1]; None when both are zero."""
    total = succeeded + failed
    return succeeded / total if total else None


def all_ok(checks: Sequence[Check]) -> bool:
    """Whether no finding is bad."""
    return all(check.ok for check in checks)


def rate_by_people(measured: Measurements) -> float | None:
    """The success rate of outputs; None below ENOUGH_JUDGED verdicts."""
    judged = measured.approved + measured.rejected
    return success_rate(measured.approved, measured.rejected) if judged >= ENOUGH_JUDGED else None


def assess(measured: Measurements, checks: Sequence[Check], now: datetime) -> HealthReport:
    """Healthy: no bad finding, success rate > 0.7 and fine-tune success > 0.8.

    A rate without data counts as healthy and is told as None, so that an idle daemon is
    not reported as a failing one, nor as a perfect one. That of outputs needs ENOUGH_JUDGED
    verdicts: one "no" in the morning is no illness.
    """
    outputs = rate_by_people(measured)
    runs = success_rate(measured.runs_succeeded, measured.runs_failed)
    return HealthReport(
        healthy=all_ok(checks)
        and _above(outputs, HEALTHY_SUCCESS_RATE)
        and _above(runs, HEALTHY_FINE_TUNE_SUCCESS),
        metrics={
            "success_rate": outputs,
            "threshold": HEALTHY_SUCCESS_RATE,
            "approved": measured.approved,
            "rejected": measured.rejected,
            "needed": ENOUGH_JUDGED,
            "since": measured.since,
        },
        finetune={
            "success_rate": runs,
            "threshold": HEALTHY_FINE_TUNE_SUCCESS,
            "succeeded": measured.runs_succeeded,
            "failed": measured.runs_failed,
        },
        timestamp=now,
        checks={check.name: check for check in checks},
    )


def _above(rate: float | None, threshold: float) -> bool:
    return rate is None or rate > threshold
