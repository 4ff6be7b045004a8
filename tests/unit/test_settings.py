"""Settings: bounds, precedence, provenance, and faults that say what to do."""

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from daemon.settings import QueueSettings, Settings, without_password
from daemon.settings_sources import PLAIN_NAMES, SettingsError, load
from finetune.remote.access import ServiceAccess
from finetune.remote.chat_evaluator import ChatRules, CompareBy
from finetune.remote.chat_service import ChatLimits
from finetune.remote.http_mapping import FineTuneEndpoint, HttpMapping
from learning.batch_sizing import SizeRules
from learning.batching import BatchRules
from learning.events import BUILT_IN_TASK_TYPES
from learning.gate import GateRules
from learning.policy import Policy
from learning.preferences import Objective
from learning.sampling import ReplayStrategy, SplitRules
from learning.screening import PiiMode, TaskRules
from tests.webhooks import SECRET as WEBHOOK_SECRET


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from the machine that the tests run on."""
    for name in list(os.environ):
        if name.startswith("LEARND_") or name in PLAIN_NAMES:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "learnd.yaml"
    path.write_text(text)
    return path


def sources(settings: Settings) -> dict[str, str]:
    return {one.key: one.source for one in settings.explain() if one.source != "default"}


def problems(**arguments: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        load(**arguments)
    return str(raised.value)


# --- defaults -------------------------------------------------------------------------


def test_the_defaults_are_the_rules_that_the_core_has() -> None:
    settings = Settings()
    assert settings.policy_rules() == Policy()
    assert settings.batch_rules() == BatchRules()
    assert settings.split_rules() == SplitRules()
    assert settings.gate_rules() == GateRules()


def test_a_line_may_repeat_otherwise_than_the_others() -> None:
    settings = Settings(
        split={"replay_share": 0.3, "held_out_share": 0.1},
        lines={"coding": {"replay_share": 0.0, "replay_strategy": "reservoir"}},
    )

    assert settings.split_rules("coding") == replace(
        settings.split_rules(), replay_share=0.0, replay_strategy=ReplayStrategy.RESERVOIR
    )
    assert settings.split_rules("audio") == settings.split_rules()
    assert settings.split_rules().replay_share == 0.3


def test_what_is_not_set_lies_in_the_data_directory(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert settings.database_url == f"sqlite:///{tmp_path}/data/learnd.db"
    assert settings.dataset_dir == tmp_path / "data" / "datasets"


def test_settings_by_themselves_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARND_QUEUE__BATCH_SIZE", "7")
    assert Settings().queue.batch_size == 20


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().queue.batch_size = 3  # type: ignore[misc]


def test_there_is_no_model_endpoint_or_key_in_the_code() -> None:
    settings = Settings()
    assert settings.finetune.base_model is None
    told = settings.remote.model_dump(exclude={"http"})
    places = [name for name in told if name.endswith(("_endpoint", "_key", "_secret", "_url"))]
    assert len(places) > 6
    assert not any(told[name] for name in places)
    assert not settings.kafka.configured


# --- precedence and provenance --------------------------------------------------------


def test_each_source_yields_to_the_one_above_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written(tmp_path, "queue: {batch_size: 2, max_queue_size: 20, max_wait_seconds: 200}")
    monkeypatch.setenv("BATCH_SIZE", "3")
    monkeypatch.setenv("LEARND_QUEUE__MAX_QUEUE_SIZE", "30")
    settings = load(overrides={"queue.max_queue_size": 40})
    assert settings.queue.max_wait_seconds == 200
    assert settings.queue.batch_size == 3
    assert settings.queue.max_queue_size == 40
    assert sources(settings) == {
        "queue.batch_size": "environment BATCH_SIZE",
        "queue.max_queue_size": "command line",
        "queue.max_wait_seconds": "file learnd.yaml",
    }


def test_a_prefixed_name_goes_before_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "3")
    monkeypatch.setenv("LEARND_QUEUE__BATCH_SIZE", "4")
    settings = load()
    assert settings.queue.batch_size == 4
    assert sources(settings) == {"queue.batch_size": "environment LEARND_QUEUE__BATCH_SIZE"}


@pytest.mark.parametrize(
    ("name", "given", "key", "shown"),
    [
        ("LLM_ENDPOINT", "https://llm:8000/v1", "remote.llm_endpoint", "https://llm:8000/v1"),
        ("LLM_API_KEY", "sk-1", "remote.llm_api_key", "********"),
        ("FINETUNE_ENDPOINT", "https://tune", "remote.finetune_endpoint", "https://tune"),
        ("FINETUNE_API_KEY", "sk-3", "remote.finetune_api_key", "********"),
        ("DATASET_DIR", "/srv/sets", "dataset_dir", "/srv/sets"),
        ("LEARNING_RATE", "0.2", "policy.learning_rate", "0.2"),
        ("FEEDBACK_THRESHOLD", "0.8", "policy.feedback_threshold", "0.8"),
        ("BATCH_SIZE", "50", "queue.batch_size", "50"),
        ("SIMULATION_MODE", "true", "simulation_mode", "true"),
        ("AUTO_APPROVE", "1", "policy.enable_auto_approval", "true"),
        ("OPENAI_BASE_URL", "https://ai/v1", "remote.openai_endpoint", "https://ai/v1"),
        ("OPENAI_API_KEY", "sk-2", "remote.openai_api_key", "********"),
        ("OPENAI_WEBHOOK_SECRET", WEBHOOK_SECRET, "remote.openai_webhook_secret", "********"),
    ],
)
def test_the_plain_names_of_op4_are_read(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str, key: str, shown: str
) -> None:
    assert set(PLAIN_NAMES) >= {name}
    monkeypatch.setenv(name, given)
    settings = load()
    assert {one.key: one.value for one in settings.explain()}[key] == shown
    assert sources(settings) == {key: f"environment {name}"}


def test_the_learning_rate_is_the_loops_and_not_the_trainers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARNING_RATE", "0.3")
    settings = load()
    assert settings.policy.learning_rate == 0.3
    assert settings.finetune.training == {}


def test_an_empty_variable_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "")
    monkeypatch.setenv("LEARND_KAFKA__GROUP_ID", "")
    assert sources(load()) == {}


def test_topics_are_listed_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARND_KAFKA__OUTPUTS_TOPICS", "first, second")
    monkeypatch.setenv("LEARND_KAFKA__FEEDBACK_TOPICS", '["third"]')
    kafka = load().kafka
    assert kafka.outputs_topics == ("first", "second")
    assert kafka.feedback_topics == ("third",)


def test_a_section_may_come_as_json_and_names_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARND_LINES", '{"small.talk": {"task_types": ["persona"]}}')
    monkeypatch.setenv("LEARND_FINETUNE__TRAINING__MAX_STEPS", "60")
    settings = load()
    assert sources(settings) == {
        "lines.small.talk.task_types": "environment LEARND_LINES",
        "finetune.training.max_steps": "environment LEARND_FINETUNE__TRAINING__MAX_STEPS",
    }


def test_a_named_file_must_be_there_and_the_default_one_need_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load().queue.batch_size == 20
    other = tmp_path / "other.yaml"
    assert "cannot be read" in problems(config=other)
    monkeypatch.setenv("LEARND_CONFIG", str(other))
    assert str(other) in problems()
    other.write_text("queue: {batch_size: 5}")
    assert sources(load()) == {"queue.batch_size": f"file {other}"}


def test_a_section_that_is_commented_out_sets_nothing(tmp_path: Path) -> None:
    written(tmp_path, "kafka:\n#  group_id: x\nqueue: {}\n")
    assert sources(load()) == {}


def test_variables_of_the_client_and_of_kubernetes_are_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARND_URL", "http://there")
    monkeypatch.setenv("LEARND_TOKEN", "t")
    monkeypatch.setenv("LEARND_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("LEARND_PORT", "tcp://10.0.0.1:8700")
    monkeypatch.setenv("LEARND_PORT_8700_TCP_ADDR", "10.0.0.1")
    assert sources(load()) == {}


# --- faults ---------------------------------------------------------------------------


def test_a_misspelt_key_is_named_with_its_file_and_the_right_one(tmp_path: Path) -> None:
    path = written(tmp_path, "queue: {batch_sze: 3}")
    assert problems(config=path) == (
        f"file {path}: queue.batch_sze: no such setting; did you mean batch_size?"
    )


def test_a_key_in_the_wrong_place_is_pointed_to_the_right_one(tmp_path: Path) -> None:
    written(tmp_path, "max_queue_size: 3")
    assert "did you mean queue.max_queue_size?" in problems()


def test_a_misspelt_variable_is_named_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARND_HTTP_PORT", "80")
    assert problems() == (
        "environment LEARND_HTTP_PORT: no such setting; did you mean LEARND_HTTP__PORT?"
    )


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    written(tmp_path, "http: {port: 99999}\ngate: {margin: 2}\nlog: {level: loud}")
    found = problems().splitlines()
    assert [line.split(": ")[1] for line in found] == ["http.port", "gate.margin", "log.level"]
    assert "(it is 99999)" in found[0]


def test_a_fault_names_the_source_that_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARND_GATE__MARGIN", "x")
    assert problems().startswith("environment LEARND_GATE__MARGIN: gate.margin: ")
    monkeypatch.delenv("LEARND_GATE__MARGIN")
    assert problems(overrides={"gate.margin": 2}).startswith("command line: gate.margin: ")


def test_a_secret_is_not_repeated_in_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEARND_KAFKA", '{oops "sasl_password": "hunter2"')
    monkeypatch.setenv("LLM_ENDPOINT", "ftp://user:hunter2@host")
    found = problems()
    assert "kafka" in found
    assert "remote.llm_endpoint" in found
    assert "hunter2" not in found


def test_a_truth_value_is_no_number(tmp_path: Path) -> None:
    written(tmp_path, "queue: {batch_size: yes}")
    assert "a number is needed" in problems()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("queue: {batch_size: 1, batch_size: 2}", "batch_size stands twice (line 1)"),
        ("a: [1", "is not YAML"),
        ("- queue", "must hold settings"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_broken_file_is_one_clear_fault(tmp_path: Path, text: str, said: str) -> None:
    written(tmp_path, text)
    assert said in problems()


def test_a_file_that_is_not_text_is_one_clear_fault(tmp_path: Path) -> None:
    path = tmp_path / "learnd.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in problems(config=path)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("queue: {high_water: 50}", "smaller than low_water"),
        ("kafka: {dead_letter_topic: learnd.outputs}", "letters would go round"),
        ("kafka: {max_message_bytes: 9000000}", "smaller than max_message_bytes"),
        ("queue: {batch_size: 50, max_queue_size: 10}", "smaller than batch_size"),
        ("queue: {min_batch_size: 21}", "min_batch_size 21 <= batch_size 20"),
        ("queue: {max_batch_size: 19}", "batch_size 20 <= max_batch_size 19"),
        ("queue: {max_batch_size: 101}", "max_batch_size 101 <= max_queue_size 100"),
        ("gate: {min_evidence: 40}", "min_evidence 40 <= wanted_evidence 32"),
        ("kafka: {outputs_topics: [a], feedback_topics: [a]}", "carries one kind of event"),
        ("kafka: {security_protocol: SASL_SSL}", "sasl_mechanism, sasl_username, sasl_password"),
        ("kafka: {bootstrap_servers: broker}", "host:port"),
        ("kafka: {ssl_certfile: learnd.yaml}", "belong together"),
        ("split: {held_out_share: 1.0}", "less than 1"),
        ("policy: {min_confidence: .nan}", "finite"),
        ("database_url: /var/lib/learnd.db", "sqlite:///"),
        ("remote: {llm_endpoint: 'http://llm:8000'}", "remote.llm_endpoint: https is needed"),
        ("remote: {openai_endpoint: 'https://a:b@ai'}", "remote.openai_endpoint: a name or"),
        ("remote: {finetune_endpoint: 'https://169.254.169.254'}", "remote.finetune_endpoint: 169"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    tmp_path: Path, section: str, said: str
) -> None:
    written(tmp_path, section)
    assert said in problems()


# --- model lines ----------------------------------------------------------------------


def test_every_built_in_task_type_has_a_line_of_its_own() -> None:
    lines = Settings(finetune={"base_model": "models/tiny"}).model_lines()
    assert [line.name for line in lines] == list(BUILT_IN_TASK_TYPES)
    assert all(line.base_model == "models/tiny" for line in lines)


def test_a_configured_line_owns_its_task_types_alone(tmp_path: Path) -> None:
    written(
        tmp_path,
        """
        finetune: {base_model: models/tiny, training: {epochs: 2, learning_rate: 0.01}}
        lines:
          code:
            task_types: [coding, website]
            base_model: models/other
            training: {epochs: 5}
            system_prompts: {coding: Write code.}
          poems: {}
        """,
    )
    lines = load().model_lines()
    code = lines.owner("website")
    assert code is not None
    assert (code.name, code.base_model) == ("code", "models/other")
    assert (code.training["epochs"], code.training["learning_rate"]) == (5, 0.01)
    assert code.system_prompts == {"coding": "Write code."}
    assert lines.get("coding") is None
    poems = lines.owner("poems")
    assert poems is not None
    assert poems.base_model == "models/tiny"
    audio = lines.owner("audio")
    assert audio is not None
    assert audio.training["epochs"] == 2


def test_equal_training_settings_are_equal_however_they_were_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARND_FINETUNE__TRAINING__EPOCHS", "3")
    written_out = next(iter(load().model_lines()))
    assert written_out.training == next(iter(Settings().model_lines())).training


def test_a_line_goes_on_at_one_rate_and_keeps_the_mean_unless_it_is_told_otherwise() -> None:
    as_shipped = next(iter(Settings().model_lines())).training
    told = load(
        overrides={
            "finetune.training.schedule": "cosine",
            "lines.coding.training.averaged_share": 0.0,
        }
    ).model_lines()

    assert (as_shipped["schedule"], as_shipped["averaged_share"]) == ("constant", 0.5)
    coding, audio = told.get("coding"), told.get("audio")
    assert coding is not None
    assert audio is not None
    assert (coding.training["schedule"], coding.training["averaged_share"]) == ("cosine", 0.0)
    assert (audio.training["schedule"], audio.training["averaged_share"]) == ("cosine", 0.5)


def test_training_settings_of_another_provider_are_passed_as_they_are() -> None:
    settings = load(overrides={"finetune.provider": "other", "finetune.training.depth": 9})
    assert next(iter(settings.model_lines())).training == {"depth": 9}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "finetune: {training: {epohcs: 1}}",
            "finetune.training.epohcs: no such setting; did you mean epochs?",
        ),
        ("finetune: {training: {epochs: 0}}", "finetune.training.epochs: "),
        (
            "finetune: {training: {objective: dpo}}",
            "finetune.training.objective: dpo learns from rejected outputs, which are left out"
            " unless the policy lets them in: set policy.learn_from_rejected: true",
        ),
        (
            "lines: {a: {training: {objective: kto}}}",
            "lines.a.training.objective: kto learns from rejected outputs, which are left out"
            " unless the policy lets them in: set lines.a.learn_from_rejected: true",
        ),
        (
            "policy: {learn_from_rejected: true}",
            "policy.learn_from_rejected: sft learns from approved outputs only: set"
            " finetune.training.objective to kto",
        ),
        (
            "lines: {a: {learn_from_rejected: true}}",
            "lines.a.learn_from_rejected: sft learns from approved outputs only: set"
            " lines.a.training.objective to kto",
        ),
        (
            "finetune: {training: {objective: kto}}\npolicy: {learn_from_rejected: true}\n"
            "lines: {a: {learn_from_rejected: false}}",
            "lines.a.training.objective: kto learns from rejected outputs",
        ),
        (
            "finetune: {provider: other, training: {objective: ppo}}",
            "finetune.training.objective: one of sft, dpo, kto is needed here",
        ),
        ("finetune: {provider: huggingface, training: {epohcs: 1}}", "did you mean epochs?"),
        ("lines: {a: {training: {epochs: 0}}}", "lines.a.training.epochs: "),
        ("lines: {a: {traning: {epochs: 1}}}", "did you mean training?"),
        ("lines: {a: {task_types: [x]}, b: {task_types: [x]}}", "claimed by the lines 'a' and 'b'"),
        ("lines: {a: {system_prompts: {b: Hi.}}}", "does not learn from b"),
        ("lines: {audio: {task_types: [game]}}", "the task type audio has no line then"),
        ("lines: {'a b': {}}", "lines.a b"),
    ],
)
def test_a_line_that_cannot_work_is_refused(tmp_path: Path, text: str, said: str) -> None:
    written(tmp_path, text)
    assert said in problems()


# --- what is learned from -------------------------------------------------------------


def test_as_shipped_no_line_learns_from_rejected_outputs() -> None:
    assert {line.objective for line in load().model_lines()} == {Objective.SFT}


def test_one_line_may_learn_from_rejected_outputs(tmp_path: Path) -> None:
    text = (
        "lines: {a: {learn_from_rejected: true, rejected_share: 0.2, training: {objective: dpo}}}"
    )
    written(tmp_path, text)
    settings = load()
    objectives = {line.name: line.objective for line in settings.model_lines()}
    assert objectives.pop("a") is Objective.DPO
    assert set(objectives.values()) == {Objective.SFT}
    assert (settings.split_rules("a").rejected_share, settings.split_rules().rejected_share) == (
        0.2,
        0.5,
    )


def test_all_lines_may_learn_from_rejected_outputs_but_one(tmp_path: Path) -> None:
    written(
        tmp_path,
        "policy: {learn_from_rejected: true}\nfinetune: {training: {objective: kto}}\n"
        "lines: {audio: {learn_from_rejected: false, training: {objective: sft}}}",
    )
    objectives = {line.name: line.objective for line in load().model_lines()}
    assert objectives.pop("audio") is Objective.SFT
    assert set(objectives.values()) == {Objective.KTO}


# --- the rest -------------------------------------------------------------------------


def test_rules_follow_the_settings() -> None:
    settings = load(overrides={"policy.hold_days": 2, "queue.max_wait_seconds": 60})
    assert settings.policy_rules().hold == timedelta(days=2)
    assert settings.batch_rules().max_wait == timedelta(minutes=1)


def test_a_secret_is_not_in_what_is_shown_of_the_settings() -> None:
    settings = load(overrides={"kafka.sasl_password": "hunter2", "remote.llm_api_key": "hunter2"})
    assert "hunter2" not in repr(settings)
    assert all("hunter2" not in one.value for one in settings.explain())


def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    found = problems(overrides={"kafka.ssl_cafile": tmp_path / "ca.pem"})
    assert found == "command line: kafka.ssl_cafile: there is no such file"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:********@host/db"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("http://me:p@ss@host", "http://me:********@host"),
    ],
)
def test_the_password_of_an_address_is_masked(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_batch_size_adapts_between_the_configured_one_and_a_full_queue() -> None:
    assert Settings().size_rules() == SizeRules(True, 20, 20, 100, 4)
    queue = QueueSettings(min_batch_size=5, max_batch_size=60, adaptive=False)
    assert Settings(queue=queue).size_rules() == SizeRules(False, 20, 5, 60, 4)


def test_a_key_goes_to_the_service_that_it_was_given_for() -> None:
    both = load(
        overrides={
            "remote.openai_endpoint": "https://train/v1/",
            "remote.openai_api_key": "for-training",
            "remote.llm_endpoint": "https://answer/v1",
        }
    ).remote
    assert both.training_service() == ServiceAccess("https://train/v1", SecretStr("for-training"))
    assert both.chat_service() == ServiceAccess("https://answer/v1")


def test_remote_versions_are_judged_as_the_settings_say() -> None:
    assert load().remote.chat_rules() == ChatRules()
    told = {
        "remote.compare_by": "answers",
        "remote.scorer": "exact",
        "remote.chat_timeout_seconds": 5,
        "remote.chat_retries": 0,
        "remote.chat_concurrency": 2,
        "remote.chat_longest_wait_seconds": 3,
        "remote.max_answer_tokens": 7,
    }
    assert load(overrides=told).remote.chat_rules() == ChatRules(
        CompareBy.ANSWERS,
        "exact",
        ChatLimits(
            timeout=timedelta(seconds=5),
            concurrency=2,
            retries=0,
            longest_wait=timedelta(seconds=3),
            max_answer_tokens=7,
        ),
    )


def test_one_service_both_trains_and_answers_unless_there_are_two() -> None:
    one = load(overrides={"remote.llm_endpoint": "https://ai/v1"}).remote
    assert one.training_service() == one.chat_service() == ServiceAccess("https://ai/v1")
    assert load().remote.training_service() is None


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("too-short", "begins with whsec_"),
        ("whsec_", "at least 24 bytes after whsec_, before base64; this one has 0"),
        ("whsec_c2hvcnQ=", "this one has 5"),
        ("whsec_not base64", "what follows whsec_ is not base64"),
        ("whsec_\u00e9", "what follows whsec_ is not base64"),
    ],
)
def test_a_signing_secret_that_could_be_guessed_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, secret: str, why: str
) -> None:
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", secret)
    found = problems()
    assert found.startswith("environment OPENAI_WEBHOOK_SECRET: remote.openai_webhook_secret: ")
    assert why in found
    assert secret == "whsec_" or secret not in found


def test_without_a_signing_secret_there_is_no_key() -> None:
    assert load().remote.webhook_key() is None
    assert load(overrides={"remote.openai_webhook_secret": WEBHOOK_SECRET}).remote.webhook_key()


def test_plain_http_to_another_machine_is_for_an_operator_to_allow() -> None:
    remote = load(
        overrides={"remote.llm_endpoint": "http://llm:8000", "remote.allow_plain_http": True}
    ).remote
    assert remote.chat_service() == ServiceAccess("http://llm:8000", allow_plain=True)


# --- a plain fine-tune endpoint -------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "submit: {body: {base: '{modell}'}}",
            "remote.http.submit.body: no value is called modell",
        ),
        ("submit: {body: {a: [{b: '{x}'}]}}", "remote.http.submit.body: no value is called x"),
        ("status: {path: '/jobs/{run_id}'}", "remote.http.status.path: no value is called run_id"),
        ("status: {path: 'jobs/{job_id}'}", "remote.http.status.path: "),
        ("lookup: {path: '/jobs/{job_id}'}", "remote.http.lookup.path: no value is called job_id"),
        ("lookup: {}", "remote.http.lookup.path: "),
        ("dataset_address: 's3://x/{name}'", "remote.http.dataset_address: no value is called"),
        ("dataset: carrier_pigeon", "remote.http.dataset: "),
        ("answer: {state: 'a..b'}", "remote.http.answer.state: "),
        ("retries: 21", "remote.http.retries: "),
        ("idempotency_header: 'a b'", "remote.http.idempotency_header: "),
        ("lokup: {path: /}", "remote.http.lokup: no such setting; did you mean lookup?"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused_by_its_key(
    tmp_path: Path, text: str, said: str
) -> None:
    written(tmp_path, f"remote: {{http: {{{text}}}}}")
    assert said in problems()


def test_a_body_replaces_the_default_one_and_words_may_be_listed_with_commas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEARND_REMOTE__HTTP__SUBMIT__BODY", '{"base": "{model}"}')
    monkeypatch.setenv("LEARND_REMOTE__HTTP__STATES__SUCCEEDED", "ready, deployed")
    mapping = load().remote.http
    assert mapping.submit.body == {"base": "{model}"}
    assert mapping.states.succeeded == ("ready", "deployed")


def test_the_endpoint_brings_its_key_its_mapping_and_the_runs_patience() -> None:
    settings = load(
        overrides={
            "remote.finetune_endpoint": "https://tune/v1/",
            "remote.finetune_api_key": "for-tuning",
            "finetune.timeout_seconds": 60,
        }
    )
    assert settings.fine_tune_endpoint() == FineTuneEndpoint(
        ServiceAccess("https://tune/v1", SecretStr("for-tuning")),
        HttpMapping(),
        timedelta(minutes=1),
    )
    assert load().fine_tune_endpoint() is None


def test_a_key_loses_the_end_of_its_line_and_may_hold_nothing_that_no_header_carries() -> None:
    assert load(
        overrides={"remote.llm_api_key": "hunter2-hunter2\n"}
    ).remote.llm_api_key == SecretStr("hunter2-hunter2")
    for key in ("hunter2\nX-Other: 1", "hunter2 é", " "):
        said = problems(overrides={"remote.llm_api_key": key})
        assert said.startswith("command line: remote.llm_api_key: a key has letters")
        assert "hunter2" not in said


# --- screening ------------------------------------------------------------------------


def test_the_default_rules_are_those_of_the_core_with_code_looked_at_in_code() -> None:
    rules = Settings().screening.rules()
    assert rules.default == TaskRules()
    assert {name: one.syntax for name, one in rules.task_types.items()} == {
        "coding": "auto",
        "game": "auto",
        "website": "auto",
    }


def test_a_task_type_differs_from_the_section_in_what_it_says(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
screening:
  pii: hold
  banned_patterns: [secret sauce]
  task_types:
    coding: {pii: off, syntax: off}
    route: {json_schema: {type: object}}
""",
    )
    rules = load(path).screening.rules()
    assert rules.of("audio").pii is PiiMode.HOLD
    assert (rules.of("coding").pii, rules.of("coding").syntax) == (PiiMode.OFF, "off")
    assert rules.of("route").json_schema == {"type": "object"}
    assert rules.of("route").banned_patterns == ("secret sauce",)


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"task_types": {"route": {"json_schema": {"type": "strin"}}}}, "no usable JSON Schema"),
        ({"json_schema": {"$ref": "http://x.example/"}}, "only references within the schema"),
        ({"banned_patterns": ["re:("]}, "no regular expression"),
        ({"languages": ["english"]}, "languages"),
        ({"syntax": "cobol"}, "syntax"),
    ],
)
def test_a_rule_that_cannot_be_used_is_a_fault_that_is_named(
    setting: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "learnd.yaml"
    path.write_text(json.dumps({"screening": setting}))
    told = problems(config=path)
    assert fault in told
    assert "screening." in told


def test_other_rules_have_another_digest_and_other_limits_have_not() -> None:
    rules = Settings().screening.rules()
    assert Settings(screening={"pii": "hold"}).screening.rules().digest() != rules.digest()
    assert Settings(screening={"seconds": 9}).screening.rules().digest() == rules.digest()
    assert Settings(screening={"task_types": {"route": {"skip": ["pii"]}}}).screening.rules() != (
        rules
    )
