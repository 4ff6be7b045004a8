"""What the store says over the file and the environment, and who sees it."""

import ast
import inspect
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from daemon import app
from daemon.live_settings import LiveSettings, StoredSettingsError
from daemon.settings import KeyPath, LineSettings, Settings, section_of
from daemon.settings_sources import SettingsError
from daemon.store.setting_changes import StoredSetting, StoredSettings
from learning.events import BUILT_IN_TASK_TYPES

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
LINE = "coding"
GIVEN: Mapping[str, Any] = {
    "finetune": {"provider": "scripted", "base_model": "tiny", "training": {"plan": "improve"}},
    "lines": {LINE: {}},
    "queue": {"max_queue_size": 1_000},
}


def stored(revision: int, values: Mapping[KeyPath, Any], reason: str = "a test") -> StoredSettings:
    return StoredSettings(
        revision,
        {path: StoredSetting(value, revision, "ada", reason, AT) for path, value in values.items()},
    )


def seen_by_the_parts(live: LiveSettings) -> Mapping[str, Any]:
    """Everything that the parts of a daemon ask for when they need it."""
    line = live.lines.get(LINE)
    assert line is not None
    return {
        "judge and expiry": live.policy(),
        "feedback": live.feedback_rules(),
        "sealer": live.batch_rules(),
        "screening": live.screening_rules(),
        "batch sizes and views": live.size_rules(),
        "firewall": live.firewall_rules(),
        "adapter": live.now.adaptation_rules(),
        "adapter's clock": live.now.adaptation.every_seconds,
        "live verdict": live.verdict_rules(),
        "rollbacks": live.step_back_limits(),
        "split": live.split_rules(LINE),
        "runner": live.runner_rules(),
        "operations": live.max_queue_size(),
        "overview": live.wanted_evidence(),
        "evaluator": dict(live.training()),
        "costs": live.budget(),
        "shutdowns": live.now.remote.shutdown_dates,
        "everybody who holds the lines": line,
    }


PREFERENCES: Mapping[KeyPath, Any] = {("finetune", "training", "objective"): "kto"}
CHANGES: list[Mapping[KeyPath, Any]] = [
    {("policy", "min_confidence"): 0.9},
    {("policy", "enable_auto_approval"): True},
    {("policy", "feedback_threshold"): 0.9},
    {("policy", "hold_days"): 1},
    {("policy", "learn_from_rejected"): True, **PREFERENCES},
    {("policy", "learning_rate"): 0.2},
    {("feedback", "adapt"): False},
    {("feedback", "min_feedback"): 20},
    {("feedback", "min_producers"): 3},
    {("feedback", "max_offset"): 0.1},
    {("feedback", "max_offset_a_day"): 0.01},
    {("feedback", "min_trust"): 0.2},
    {("feedback", "metrics"): ["clarity"]},
    {("feedback", "learned_metrics"): 4},
    {("feedback", "lower_is_better"): ["latency"]},
    {("feedback", "moods", "bright"): "Write brightly."},
    {("queue", "batch_size"): 30},
    {("queue", "max_queue_size"): 500},
    {("queue", "max_wait_seconds"): 60},
    {("queue", "adaptive"): False},
    {("queue", "min_batch_size"): 10},
    {("queue", "max_batch_size"): 90},
    {("queue", "max_size_changes_a_day"): 1},
    {("policy", "adaptive"): False},
    {("adaptation", "low_success"): 0.6},
    {("adaptation", "good_success"): 0.9},
    {("adaptation", "raised_threshold"): 0.9},
    {("adaptation", "high_confidence"): 0.99},
    {("adaptation", "fading_confidence"): 0.8},
    {("adaptation", "min_judged"): 5},
    {("adaptation", "min_confidences"): 5},
    {("adaptation", "window_hours"): 12},
    {("adaptation", "dwell_hours"): 1},
    {("adaptation", "respect_days"): 1},
    {("adaptation", "max_changes_a_day"): 1},
    {("adaptation", "pinned"): ["policy.feedback_threshold"]},
    {("adaptation", "every_seconds"): 1},
    {("verdict", "automatic_rollback"): False},
    {("verdict", "level"): 0.02},
    {("verdict", "level_without_one"): 0.1},
    {("verdict", "margin"): 0.1},
    {("verdict", "min_evidence"): 10},
    {("verdict", "settled_after"): 1_000},
    {("verdict", "min_producers"): 1},
    {("verdict", "max_rollbacks_a_day"): 2},
    {("verdict", "spare_forced_hours"): 1},
    {("verdict", "canary_share"): 0.1},
    {("firewall", "enabled"): False},
    {("firewall", "off"): ["outlier"]},
    {("firewall", "remembered"): 1_000},
    {("firewall", "max_repeats"): 1},
    {("firewall", "max_near_repeats"): 1},
    {("firewall", "near_likeness"): 0.9},
    {("firewall", "max_same_answers"): 1},
    {("firewall", "min_evidence"): 50},
    {("firewall", "surprise_margin"): 6},
    {("firewall", "overlap_margin"): 0.5},
    {("firewall", "max_usual_surprise"): 0.5},
    {("firewall", "trigger_events"): 8},
    {("firewall", "trigger_share"): 0.5},
    {("firewall", "outlier_deviations"): 20},
    {("firewall", "max_producer_events_a_day"): 100},
    {("firewall", "max_producer_share"): 0.5},
    {("firewall", "max_topic_events_a_day"): 100},
    {("firewall", "max_topic_share"): 0.5},
    {("firewall", "quota_min_events"): 10},
    {("firewall", "quota_min_producers"): 2},
    {("screening", "enabled"): False},
    {("screening", "seconds"): 9},
    {("screening", "syntax"): "python"},
    {("screening", "json_schema"): {"type": "object"}},
    {("screening", "languages"): ["de"]},
    {("screening", "banned_patterns"): ["internal use"]},
    {("screening", "secrets"): False},
    {("screening", "pii"): "hold"},
    {("screening", "phone_region"): "DE"},
    {("screening", "skip"): ["pii"]},
    {("screening", "task_types", "route", "pii"): "hold"},
    {("split", "held_out_share"): 0.3},
    {("split", "starting_share"): 0.3},
    {("split", "wanted_held_out"): 10},
    {("split", "replay_share"): 0.1},
    {("split", "replay_strategy"): "reservoir"},
    {("split", "cross_task_share"): 0.2},
    {("split", "cross_task_learning"): False},
    {("split", "related_task_types", LINE): ["audio"]},
    {("split", "rejected_share"): 0.1},
    {("gate", "min_evidence"): 4},
    {("gate", "wanted_evidence"): 40},
    {("gate", "margin"): 0.1},
    {("gate", "regression_margin"): 0.1},
    {("gate", "negligible_loss"): 0.1},
    {("gate", "related_margin"): 0.1},
    {("gate", "related_evidence"): 0},
    {("gate", "significance"): 0.1},
    {("gate", "recent_evidence"): 100},
    {("gate", "older_evidence"): 100},
    {("finetune", "base_model"): "other"},
    {("finetune", "training", "plan"): "worse"},
    {("finetune", "max_attempts"): 9},
    {("finetune", "retry_base_seconds"): 1},
    {("finetune", "retry_max_seconds"): 100},
    {("finetune", "timeout_seconds"): 100},
    {("remote", "shutdown_dates", "gpt-4.1"): "2027-01-14"},
    {("money", "prices", "openai", "gpt-4.1", "per_million_tokens"): 25},
    {("money", "cap_per_run"): "12.50"},
    {("money", "cap_per_day"): 100},
    {("money", "cap_per_month"): 1_000},
    {("money", "assumed_epochs"): 3},
    {("lines", LINE, "base_model"): "other"},
    {("lines", LINE, "training", "plan"): "worse"},
    {("lines", LINE, "system_prompts", LINE): "You write tests."},
    {("lines", LINE, "replay_share"): 0.1},
    {("lines", LINE, "replay_strategy"): "reservoir"},
    {("lines", LINE, "cross_task_share"): 0.2},
    {("lines", LINE, "rejected_share"): 0.1},
    {
        ("lines", LINE, "learn_from_rejected"): True,
        ("lines", LINE, "training", "objective"): "kto",
    },
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ".".join(next(iter(change))))
def test_a_change_is_seen_at_once_and_so_is_its_end(change: Mapping[KeyPath, Any]) -> None:
    live = LiveSettings(Settings(**GIVEN))
    before = seen_by_the_parts(live)

    live.take(stored(1, change))
    assert seen_by_the_parts(live) != before

    live.take(stored(2, {}))
    assert seen_by_the_parts(live) == before


def test_every_changeable_setting_is_among_those_that_were_tried() -> None:
    sections = {name: section_of(name) for name in Settings.model_fields}
    changeable = {
        (name, field)
        for name, section in sections.items()
        if section is not None
        for field in section.changeable
    } | {("lines", field) for field in LineSettings.changeable}

    tried = {
        ("lines", path[2]) if path[0] == "lines" else path[:2]
        for change in CHANGES
        for path in change
    }

    assert tried == changeable


def test_no_part_of_the_daemon_is_given_a_copy_of_what_may_change() -> None:
    asked = {ast.unparse(node) for node in ast.walk(ast.parse(inspect.getsource(app)))}
    copies = {
        f"settings.{name}.{field}"
        for name in Settings.model_fields
        if (section := section_of(name)) is not None
        for field in section.changeable
    } | {
        f"settings.{rules}"
        for rules in dir(Settings)
        if rules.endswith("_rules") or rules in ("model_lines", "lines", "gate", "split")
    }
    assert "settings.kafka.configured" in asked
    assert not [text for text in asked if text.removeprefix("self.") in copies]


def test_what_is_shown_says_who_set_it_when_and_why() -> None:
    live = LiveSettings(Settings(**GIVEN))
    live.take(stored(1, {("gate", "margin"): 0.1}, "too many false alarms"))
    live.take(stored(2, {("lines", LINE, "base_model"): "other", ("gate", "margin"): 0.2}, ""))

    shown = {one.key: one for one in live.now.explain()}

    assert shown["gate.margin"].value == "0.2"
    assert shown["gate.margin"].source == "store, by ada, 2026-11-21"
    assert shown["lines.coding.base_model"].source == "store, by ada, 2026-11-21"
    assert shown["gate.margin"].changeable
    assert not shown["http.port"].changeable


def test_a_reason_is_a_part_of_the_source() -> None:
    live = LiveSettings(Settings(**GIVEN), stored(3, {("gate", "margin"): 0.1}, "false alarms"))
    shown = {one.key: one for one in live.now.explain()}
    assert shown["gate.margin"].source == "store, by ada, 2026-11-21: false alarms"
    assert live.revision == 3


def test_the_store_goes_before_the_file_and_the_rest_of_the_file_stays() -> None:
    given = Settings(gate={"margin": 0.3, "older_evidence": 10}).told_by(
        {("gate", "margin"): "file learnd.yaml", ("gate", "older_evidence"): "file learnd.yaml"}
    )
    live = LiveSettings(given, stored(1, {("gate", "margin"): 0.1}))
    assert (live.now.gate.margin, live.now.gate.older_evidence) == (0.1, 10)

    live.take(stored(2, {}))
    assert live.now.gate.margin == 0.3
    assert live.now.sources[("gate", "margin")] == "file learnd.yaml"


def test_a_value_that_is_a_mapping_replaces_the_one_of_the_file() -> None:
    path = ("finetune", "training", "distributed")
    given = Settings(finetune={"training": {"distributed": {"world_size": 4, "backend": "gloo"}}})
    live = LiveSettings(given, stored(1, {path: {"world_size": 2}}))
    assert live.training()["distributed"] == {"world_size": 2}
    assert live.now.sources[(*path, "world_size")].startswith("store")


def test_secrets_of_the_file_stay_what_they_are() -> None:
    given = Settings(
        **GIVEN, remote={"openai_endpoint": "https://o.example", "openai_api_key": "k"}
    )
    live = LiveSettings(given, stored(1, {("gate", "margin"): 0.1}))
    key = live.now.remote.openai_api_key
    assert key is not None
    assert key.get_secret_value() == "k"
    assert live.now.database_url == given.database_url


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({("gate", "margin"): 2}, "gate.margin: input should be less than 1 (it is 2)"),
        ({("gate", "margin"): "much"}, "gate.margin: input should be a valid number"),
        ({("queue", "batch_size"): True}, "queue.batch_size: a number is needed here"),
        ({("queue", "batch_size"): {"a": 1}}, "queue.batch_size: input should be a valid integer"),
        ({("queue", "batch_size"): 5_000}, "max_queue_size 1000 is smaller than batch_size 5000"),
        ({("gate", "min_evidence"): 60}, "needed: min_evidence 60 <= wanted_evidence 32"),
        ({("lines", LINE, "training", "objective"): "kto"}, "learns from rejected outputs"),
        ({("lines", LINE, "system_prompts", "game"): "x"}, "does not learn from game"),
        ({("split", "related_task_types", "game"): ["gaem"]}, "no model line learns from 'gaem'"),
        ({("split", "related_task_types", "game"): ["game"]}, "learns from itself anyway"),
        ({("finetune", "base_model"): ""}, "finetune.base_model"),
        ({("finetune", "base_model"): "x" * 10_001}, "finetune.base_model"),
    ],
)
def test_a_change_is_tried_with_all_other_settings(
    change: Mapping[KeyPath, Any], fault: str
) -> None:
    live = LiveSettings(Settings(**GIVEN))
    with pytest.raises(SettingsError) as raised:
        live.tried(StoredSettings(), change)
    assert fault in str(raised.value)


def test_a_fault_of_the_local_trainers_settings_says_what_was_meant() -> None:
    live = LiveSettings(Settings())
    with pytest.raises(SettingsError, match=r"did you mean epochs\?"):
        live.tried(StoredSettings(), {("finetune", "training", "epoch"): 3})


def test_what_clashes_with_an_earlier_change_names_who_made_that() -> None:
    live = LiveSettings(Settings())
    with pytest.raises(SettingsError, match="store, by ada, 2026-11-21: a test: gate"):
        live.tried(stored(1, {("gate", "wanted_evidence"): 60}), {("gate", "recent_evidence"): 40})


def test_values_that_only_fit_together_are_tried_together() -> None:
    live = LiveSettings(Settings())
    fitting: Mapping[KeyPath, Any] = {
        ("gate", name): 100 for name in ("min_evidence", "wanted_evidence", "recent_evidence")
    }
    live.tried(StoredSettings(), fitting)


def test_a_daemon_does_not_start_with_what_does_not_fit_and_says_how_to_get_out() -> None:
    given = Settings(queue={"max_queue_size": 50}).told_by(
        {("queue", "max_queue_size"): "file learnd.yaml"}
    )
    with pytest.raises(StoredSettingsError) as raised:
        LiveSettings(given, stored(1, {("queue", "batch_size"): 60}))
    assert "max_queue_size 50 is smaller than batch_size 60" in str(raised.value)
    assert "`learnd settings unset KEY --offline`" in str(raised.value)


def test_a_running_daemon_keeps_what_it_has_when_anothers_change_does_not_fit() -> None:
    live = LiveSettings(Settings(queue={"max_queue_size": 50}))
    live.take(stored(1, {("gate", "margin"): 0.1}))

    live.take(stored(2, {("gate", "margin"): 0.2, ("queue", "batch_size"): 60}))
    assert live.now.gate.margin == 0.1
    assert (live.revision, live.seen) == (1, 2)
    assert "revision 2 of the stored settings does not fit here" in live.fault

    live.take(stored(3, {("gate", "margin"): 0.2}))
    assert live.now.gate.margin == 0.2
    assert live.fault == ""


def test_an_answer_that_came_late_takes_nothing_back() -> None:
    live = LiveSettings(Settings())
    heard = []
    live.listen(lambda: heard.append(live.revision))
    live.take(stored(2, {("gate", "margin"): 0.2}))
    live.take(stored(1, {("gate", "margin"): 0.1}))
    assert live.now.gate.margin == 0.2
    assert heard == [2]


def test_every_built_in_task_type_keeps_its_line() -> None:
    live = LiveSettings(Settings())
    lines = live.lines
    live.take(stored(1, {("finetune", "base_model"): "other"}))
    assert live.lines is lines
    assert {line.name for line in lines} == set(BUILT_IN_TASK_TYPES)
    assert {line.base_model for line in lines} == {"other"}


def test_what_feedback_has_moved_stays_when_a_setting_changes() -> None:
    live = LiveSettings(Settings(**GIVEN))
    live.adapt({LINE: 0.05}, {LINE: {"bot": 0.2}})
    before = live.policy()

    live.take(stored(1, {("policy", "min_confidence"): 0.6}))

    assert live.policy().bar(live.policy().min_confidence, LINE) == 0.65
    assert live.bars()[LINE] == 0.65
    assert live.policy().distrusted == before.distrusted


def test_the_policy_is_the_same_object_until_something_has_changed() -> None:
    live = LiveSettings(Settings(**GIVEN))
    live.adapt({LINE: 0.05}, {})
    before = live.policy()
    live.adapt({LINE: 0.05}, {})
    assert live.policy() is before
