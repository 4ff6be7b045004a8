"""Health is a pure function of counts and findings (OP2)."""

from datetime import UTC, datetime

import pytest

from monitoring.health import Check, Measurements, assess

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def test_without_data_a_daemon_is_healthy_and_says_that_it_has_none() -> None:
    report = assess(Measurements(), [], NOW)
    assert report.healthy
    assert report.metrics["success_rate"] is None
    assert report.finetune["success_rate"] is None
    assert report.timestamp == NOW


@pytest.mark.parametrize(
    ("approved", "rejected", "healthy"),
    [(71, 29, True), (70, 30, False), (0, 20, False), (0, 19, True)],
)
def test_people_must_approve_more_than_seven_in_ten_once_they_judged_enough(
    approved: int, rejected: int, healthy: bool
) -> None:
    assert assess(Measurements(approved=approved, rejected=rejected), [], NOW).healthy is healthy


@pytest.mark.parametrize(
    ("succeeded", "failed", "healthy"), [(81, 19, True), (80, 20, False), (0, 1, False)]
)
def test_more_than_eight_in_ten_runs_must_succeed(
    succeeded: int, failed: int, healthy: bool
) -> None:
    measured = Measurements(runs_succeeded=succeeded, runs_failed=failed)
    assert assess(measured, [], NOW).healthy is healthy


def test_one_bad_finding_is_unhealthy() -> None:
    findings = [Check("store", ok=False, detail="locked"), Check("kafka", ok=True)]
    report = assess(Measurements(), findings, NOW)
    assert not report.healthy
    assert report.checks["store"].detail == "locked"
