"""Which settings can be changed while learnd runs, by the key that a person types."""

import re

import pytest

from daemon.changeable import FixedSettingError, UnknownSettingError, changeable_path
from daemon.settings import SECRET_WORDS, KeyPath, Settings, is_changeable, may_be_secret

SETTINGS = Settings(
    lines={"a.b": {}, "a": {"task_types": ["c"]}, "coding": {}},
    remote={"openai_api_key": "sk-planted", "llm_endpoint": "https://llm.example"},
    finetune={"provider": "scripted"},
).told_by({("remote", "openai_api_key"): "environment OPENAI_API_KEY"})


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("gate.margin", ("gate", "margin")),
        ("finetune.base_model", ("finetune", "base_model")),
        ("finetune.training.epochs", ("finetune", "training", "epochs")),
        ("finetune.training.any.name", ("finetune", "training", "any.name")),
        ("lines.coding.base_model", ("lines", "coding", "base_model")),
        ("lines.game.base_model", ("lines", "game", "base_model")),
        ("lines.a.b.replay_share", ("lines", "a.b", "replay_share")),
        ("lines.a.training.epochs", ("lines", "a", "training", "epochs")),
        ("lines.a.b.training.epochs", ("lines", "a.b", "training", "epochs")),
        ("money.cap_per_day", ("money", "cap_per_day")),
        (
            "money.prices.openai.gpt-4.1.per_million_tokens",
            ("money", "prices", "openai", "gpt-4.1", "per_million_tokens"),
        ),
        ("finetune.training.max_tokens", ("finetune", "training", "max_tokens")),
        ("remote.shutdown_dates.key-4.1", ("remote", "shutdown_dates", "key-4.1")),
        ("lines.coding.system_prompts.coding", ("lines", "coding", "system_prompts", "coding")),
    ],
)
def test_a_key_names_the_place_of_one_setting(key: str, path: KeyPath) -> None:
    assert changeable_path(key, SETTINGS) == path
    assert is_changeable(path)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("gate.margn", "did you mean gate.margin?"),
        ("margin", "did you mean gate.margin?"),
        ("gate", "names several settings: name one, such as gate.min_evidence"),
        ("finetune.training", "names several settings"),
        ("gate.margin.x", "no such setting"),
        ("money.prices.openai", "no such setting"),
        ("money.prices.openai.gpt-4.1", "no such setting"),
        ("money.prices.openai.gpt-4.1.per_day", "no such setting"),
        ("", "no such setting"),
        (".", "no such setting"),
        ("lines", "names several settings"),
        ("lines.coding", "names several settings"),
        ("lines.coding.training", "names several settings"),
        ("lines.nowhere.base_model", "no model line 'nowhere'"),
        ("policy.\N{SNOWMAN}", "no such setting"),
    ],
)
def test_a_key_that_is_none_is_refused_with_what_was_meant(key: str, hint: str) -> None:
    with pytest.raises(UnknownSettingError) as raised:
        changeable_path(key, SETTINGS)
    assert hint in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        "data_dir",
        "database_url",
        "artifacts_dir",
        "simulation_mode",
        "http.port",
        "kafka.bootstrap_servers",
        "kafka.group_id",
        "intake.files.outputs",
        "policy.max_output_characters",
        "queue.high_water",
        "money.currency",
        "finetune.provider",
        "lines.coding.provider",
        "lines.coding.task_types",
        "remote.llm_endpoint",
        "log.level",
    ],
)
def test_what_something_was_opened_with_is_refused_with_where_it_is_set(key: str) -> None:
    with pytest.raises(FixedSettingError, match="cannot be changed while learnd runs") as raised:
        changeable_path(key, SETTINGS)
    assert "restart the daemon" in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        "remote.openai_api_key",
        "remote.llm_api_key",
        "remote.openai_webhook_secret",
        "kafka.sasl_password",
        "finetune.training.api_key",
        "lines.coding.training.Service-Token",
    ],
)
def test_what_may_be_a_secret_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(FixedSettingError, match="never from a database") as raised:
        changeable_path(key, SETTINGS)
    assert "sk-planted" not in str(raised.value)


def test_a_refusal_names_the_source_of_the_value() -> None:
    with pytest.raises(FixedSettingError, match="it is set in environment OPENAI_API_KEY"):
        changeable_path("remote.openai_api_key", SETTINGS)
    with pytest.raises(FixedSettingError, match=r"set it in learnd\.yaml or as LEARND_HTTP__PORT"):
        changeable_path("http.port", SETTINGS)


def test_no_changeable_setting_has_the_name_of_a_secret() -> None:
    changeable = [one.key for one in Settings().explain() if one.changeable]
    assert "gate.margin" in changeable
    assert not [key for key in changeable if SECRET_WORDS & set(re.split(r"[^a-z]", key))]


def test_a_providers_own_secret_in_the_file_is_masked() -> None:
    settings = Settings(
        finetune={"provider": "scripted", "training": {"api_key": "sk-planted", "max_tokens": 5}}
    )
    shown = {one.key: one.value for one in settings.explain()}
    assert "sk-planted" not in shown["finetune.training.api_key"]
    assert shown["finetune.training.max_tokens"] == "5"
    assert may_be_secret(("lines", "coding", "training", "service", "api-key"))
    assert not may_be_secret(("lines", "training", "system_prompts", "token"))
    assert not may_be_secret(("remote", "shutdown_dates", "token"))
