"""The metrics page, read back as Prometheus reads it."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from learning.facts import (
    BatchSealed,
    CandidateDecided,
    EventsExpired,
    EventsForgotten,
    EventsRefused,
    EventsScreened,
    EventsStored,
    FeedbackReset,
    LoopAdapted,
    PartitionFenced,
    Promoted,
    QuarantineReleased,
    RollbackHeldBack,
    RolledBack,
    RunFailed,
    RunLaunched,
    RunLost,
    RunTakenOver,
    RunTrained,
    TopicRecreated,
    WebhookReceived,
    WebhookRefused,
)
from learning.lifecycle import EventState, FeedbackState
from learning.ports import TrainerCondition, TrainerState
from learning.screening import ScreeningOutcome
from monitoring.metrics import ChampionLoss, LearningHealth, LineHealth, Metrics, Snapshot

SINCE = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def samples(metrics: Metrics) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_what_several_daemons_take_from_each_other_is_counted(metrics: Metrics) -> None:
    metrics.count(PartitionFenced("outputs", 1, 3))
    metrics.count(RunTakenOver("audio", "r-1", "alpha"))
    metrics.count(RunLost("r-2"))
    metrics.show(Snapshot(ready=True, silent_runs=2))

    assert value(metrics, "learnd_fenced_writes_total", topic="outputs") == 1
    assert value(metrics, "learnd_runs_taken_over_total", line="audio") == 1
    assert value(metrics, "learnd_runs_lost_total") == 1
    assert value(metrics, "learnd_silent_runs") == 2


def test_the_days_of_a_model_that_ends_are_shown_and_disappear_with_it(metrics: Metrics) -> None:
    metrics.show(Snapshot(ready=True, shutdown_days={("gpt-a", "audio"): -2}))
    assert value(metrics, "learnd_model_shutdown_days", model="gpt-a", line="audio") == -2
    metrics.show(Snapshot(ready=True))
    assert value(metrics, "learnd_model_shutdown_days", model="gpt-a", line="audio") is None


def test_webhooks_are_counted_by_known_type_and_reason(metrics: Metrics) -> None:
    failed = "fine_tuning.job.failed"
    metrics.count(WebhookReceived(failed, True, "wh_1", "job-1", is_new=True))
    metrics.count(WebhookReceived(failed, True, "wh_1", "job-1", is_new=False))
    for number in range(3):
        metrics.count(WebhookReceived(f"made.up.{number}", False, "wh", None, is_new=True))
    metrics.count(WebhookRefused("bad_signature"))

    assert value(metrics, "learnd_webhooks_total", type=failed, outcome="stored") == 1
    assert value(metrics, "learnd_webhooks_total", type=failed, outcome="duplicate") == 1
    assert value(metrics, "learnd_webhooks_total", type="other", outcome="stored") == 3
    assert value(metrics, "learnd_webhooks_refused_total", reason="bad_signature") == 1


def test_stored_events_are_counted_by_source_task_type_and_verdict(metrics: Metrics) -> None:
    fact = EventsStored(
        source="kafka",
        outputs={("audio", EventState.QUEUED): 3, ("audio", EventState.HELD): 1},
        feedback={("audio", FeedbackState.JOINED): 2},
        rejudged={("audio", EventState.WITHDRAWN): 1},
        dead_letters={"not_json": 4},
        duplicates=5,
    )
    metrics.count(fact)
    metrics.count(fact)
    assert value(
        metrics, "learnd_events_total", source="kafka", task_type="audio", verdict="queued"
    ) == (6)
    assert (
        value(metrics, "learnd_events_total", source="kafka", task_type="audio", verdict="held")
        == 2
    )
    assert (
        value(metrics, "learnd_feedback_total", source="kafka", task_type="audio", state="joined")
        == 4
    )
    assert value(metrics, "learnd_rejudged_total", task_type="audio", verdict="withdrawn") == 2
    assert value(metrics, "learnd_dead_letters_total", source="kafka", reason="not_json") == 8
    assert value(metrics, "learnd_duplicates_total", source="kafka") == 10


def test_every_fact_is_counted(metrics: Metrics) -> None:
    metrics.count(EventsExpired(2))
    metrics.count(
        EventsScreened(
            {("audio", ScreeningOutcome.PASSED): 5, ("audio", ScreeningOutcome.STOPPED): 1},
            complaints={"secrets": 1},
            checks={"secrets": 6},
            seconds={"secrets": 0.5},
        )
    )
    metrics.count(TopicRecreated("t", 0, 5, 0))
    metrics.count(EventsRefused("http", {"not_json": 2}))
    metrics.count(BatchSealed("audio", "b-1", "r-1", "size", 8, 4, 2, 1))
    metrics.count(RunLaunched("audio", "r-1", 1, "local", "j-1"))
    metrics.count(RunFailed("audio", "r-1", 1, "out_of_memory", "no room", retried=True))
    metrics.count(RunTrained("audio", "r-1", 42.0, 1_000))
    metrics.count(CandidateDecided("audio", "r-1", "1.0.1-rc.1", "promote", "better", 0.8, 0.4))
    metrics.count(Promoted("audio", "1.0.1", "1.0.0", forced=False, actor="runner"))
    metrics.count(RollbackHeldBack("audio", "1.0.1", "1.0.0", "e = 300", "limit"))
    metrics.count(RolledBack("audio", "1.0.0", "1.0.1", "me", "worse"))
    metrics.count(EventsForgotten(3, 12, 4, 1, 2, ["audio@1.0.3"], "ann"))
    for name, labels, wanted in [
        ("learnd_forgotten_total", {"kind": "output"}, 12),
        ("learnd_forgotten_total", {"kind": "held_out"}, 2),
        ("learnd_versions_tainted_total", {}, 1),
        ("learnd_expired_total", {}, 2),
        ("learnd_rollbacks_held_back_total", {"line": "audio"}, 1),
        ("learnd_topics_recreated_total", {"topic": "t"}, 1),
        ("learnd_events_refused_total", {"source": "http", "reason": "not_json"}, 2),
        ("learnd_batches_total", {"line": "audio", "trigger": "size"}, 1),
        ("learnd_batch_members_total", {"line": "audio", "role": "held_out"}, 4),
        ("learnd_run_launches_total", {"line": "audio", "provider": "local"}, 1),
        (
            "learnd_run_failures_total",
            {"line": "audio", "error": "out_of_memory", "retried": "yes"},
            1,
        ),
        ("learnd_run_trained_tokens_total", {"line": "audio"}, 1_000),
        ("learnd_run_duration_seconds_sum", {"line": "audio"}, 42),
        ("learnd_run_duration_seconds_bucket", {"line": "audio", "le": "60.0"}, 1),
        ("learnd_run_duration_seconds_bucket", {"line": "audio", "le": "30.0"}, 0),
        ("learnd_decisions_total", {"line": "audio", "outcome": "promote"}, 1),
        ("learnd_promotions_total", {"line": "audio", "forced": "no"}, 1),
        ("learnd_rollbacks_total", {"line": "audio"}, 1),
    ]:
        assert value(metrics, name, **labels) == wanted, name


def test_a_snapshot_sets_the_gauges(metrics: Metrics) -> None:
    metrics.show(
        Snapshot(
            ready=True,
            queued={"audio": 7},
            held={"audio": 2},
            oldest_queued_seconds={"audio": 90.0},
            runs_by_state={"running": 1},
            lag={("learnd.outputs", 3): 11},
            file_lag={"feedback": (70, 2.5)},
            lines=[LineHealth("audio", "1.0.1", SINCE, 16, 32)],
            losses=[ChampionLoss("audio", "1.0.1", 0.4)],
            learning=[LearningHealth("audio", 0.8, 0.95, 4.5)],
            issues=[("audio", "many_rejections")],
            recommendations={"flush": 2},
            success_rate=0.9,
        )
    )
    for name, labels, wanted in [
        ("learnd_ready", {}, 1),
        ("learnd_queue_events", {"task_type": "audio"}, 7),
        ("learnd_held_events", {"task_type": "audio"}, 2),
        ("learnd_oldest_queued_age_seconds", {"task_type": "audio"}, 90),
        ("learnd_runs", {"state": "running"}, 1),
        ("learnd_consumer_lag_records", {"topic": "learnd.outputs", "partition": "3"}, 11),
        ("learnd_file_lag_bytes", {"kind": "feedback"}, 70),
        ("learnd_file_lag_seconds", {"kind": "feedback"}, 2.5),
        ("learnd_champion_info", {"line": "audio", "version": "1.0.1"}, 1),
        ("learnd_champion_since_timestamp_seconds", {"line": "audio"}, SINCE.timestamp()),
        ("learnd_held_out_examples", {"line": "audio"}, 16),
        ("learnd_held_out_examples_wanted", {"line": "audio"}, 32),
        ("learnd_held_out_loss", {"line": "audio", "version": "1.0.1"}, 0.4),
        ("learnd_success_ratio", {}, 0.9),
        ("learnd_recent_success_ratio", {"task_type": "audio"}, 0.8),
        ("learnd_recent_confidence_mean", {"task_type": "audio"}, 0.95),
        ("learnd_recent_rating_mean", {"task_type": "audio"}, 4.5),
        ("learnd_feedback_issues", {"task_type": "audio", "issue": "many_rejections"}, 1),
        ("learnd_recommendations", {"rule": "flush"}, 2),
    ]:
        assert value(metrics, name, **labels) == wanted, name
    rate = value(metrics, "learnd_fine_tune_success_ratio")
    assert rate is not None
    assert math.isnan(rate)


def test_what_is_gone_disappears_from_the_page(metrics: Metrics) -> None:
    metrics.show(Snapshot(ready=True, lines=[LineHealth("audio", "1.0.1", SINCE, 1, 2)]))
    metrics.show(Snapshot(ready=False, lines=[LineHealth("audio", "1.0.2", SINCE, 1, 2)]))
    assert value(metrics, "learnd_champion_info", line="audio", version="1.0.1") is None
    assert value(metrics, "learnd_champion_info", line="audio", version="1.0.2") == 1
    assert value(metrics, "learnd_ready") == 0


def test_the_page_has_no_series_that_nobody_reads(metrics: Metrics) -> None:
    metrics.count(RunTrained("audio", "r-1", 1.0, 1))
    assert b"_created" not in metrics.render()


def test_the_trainer_is_asked_at_each_rendering(metrics: Metrics) -> None:
    now = TrainerCondition(TrainerState.COLD, None, None, 0, 0, {})
    metrics.show_trainer(lambda: now)
    assert samples(metrics)["learnd_trainer_resident_memory_bytes", frozenset()] == 0

    now = TrainerCondition(TrainerState.WARM, 7, 1_000, 3, 2, {"idle": 1, "memory": 4})
    page = {
        (name, *dict(labels).values()): value for (name, labels), value in samples(metrics).items()
    }
    assert page["learnd_trainer_resident_memory_bytes",] == 1_000
    assert page["learnd_trainer_state", "warm"] == 1
    assert page["learnd_trainer_state", "cold"] == 0
    assert page["learnd_trainer_uses_total", "warm"] == 3
    assert page["learnd_trainer_uses_total", "cold"] == 2
    assert page["learnd_trainer_ends_total", "memory"] == 4


def test_two_daemons_of_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.count(EventsExpired(1))
    assert value(first, "learnd_expired_total") == 1
    assert value(second, "learnd_expired_total") == 0


def test_what_feedback_changes_is_counted_and_the_bars_are_shown(metrics: Metrics) -> None:
    metrics.count(LoopAdapted("audio", "relax_validation", 2, "good"))
    metrics.count(FeedbackReset("audio", 1, "ada", "a prank"))
    metrics.show(Snapshot(ready=True, bars={"audio": 0.72}))

    adapted = "learnd_loop_adaptations_total"
    assert value(metrics, adapted, task_type="audio", change="relax_validation") == 2
    assert value(metrics, adapted, task_type="audio", change="reset") == 1
    assert value(metrics, "learnd_confidence_bar", task_type="audio") == 0.72


def test_what_the_firewall_stopped_is_the_stores_count_and_what_was_released_the_daemons(
    metrics: Metrics,
) -> None:
    metrics.show(Snapshot(ready=True, stopped={"repeat": 3, "trigger": 40}))
    metrics.count(QuarantineReleased(7, "web", None, None, more=False, actor="me", reason=""))
    assert value(metrics, "learnd_firewall_quarantined_total", rule="repeat") == 3
    assert value(metrics, "learnd_firewall_quarantined_total", rule="trigger") == 40
    assert value(metrics, "learnd_firewall_released_total") == 7
