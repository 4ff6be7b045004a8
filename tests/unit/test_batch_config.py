"""What `learnd finetune` is told, by its file and over it by the command line."""

import json
from pathlib import Path

import pytest

from daemon.batch_config import BatchConfig, read_config
from daemon.settings_sources import SettingsError
from finetune.trainer.protocol import TrainingSettings


def config(tmp_path: Path, text: str, name: str = "f.yaml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_the_command_line_is_laid_over_the_file_key_by_key(tmp_path: Path) -> None:
    file = config(tmp_path, "model: org/one\nseed: 3\ntraining: {epochs: 9, learning_rate: 1e-4}\n")
    read = read_config(file, {"model": "org/two", "training": {"epochs": 1}})
    assert (read.model, read.seed) == ("org/two", 3)
    assert read.training == {"epochs": 1, "learning_rate": "1e-4"}


@pytest.mark.parametrize("indent", [2, "\t"])
def test_a_json_file_says_the_same_as_a_yaml_file(tmp_path: Path, indent: int | str) -> None:
    keys = {"model": "org/one", "training": {"learning_rate": 1e-4}}
    file = config(tmp_path, json.dumps(keys, indent=indent), "f.json")
    assert read_config(file, {}) == BatchConfig.model_validate(keys)


def test_equal_settings_make_the_same_job_however_they_are_written(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    one = BatchConfig(model="m", dataset=rows, training={"epochs": 3, "learning_rate": "2e-4"})
    other = BatchConfig(model="m", dataset=rows)
    third = BatchConfig(model="m", dataset=rows, training={"epochs": 4})
    assert one.plan(evaluate_only=False).job_id() == other.plan(evaluate_only=False).job_id()
    assert third.plan(evaluate_only=False).job_id() != other.plan(evaluate_only=False).job_id()
    rows.write_text("{}\n{}\n")
    assert (
        one.plan(evaluate_only=False).job_id()
        != BatchConfig(model="m")
        .model_copy(update={"dataset": config(tmp_path, "{}\n", "other.jsonl")})
        .plan(evaluate_only=False)
        .job_id()
    )


def test_training_settings_are_complete() -> None:
    plan = BatchConfig(model="m", dataset=Path("rows.jsonl")).plan(evaluate_only=False)
    assert plan.training == TrainingSettings().model_dump(mode="json", exclude={"seed"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modell: x", "did you mean model"),
        ("epochs: 3", "epochs: it belongs below training"),
        ("training: {seed: 3}", "write `seed` beside `training`"),
        ("training: 3", "training must hold settings"),
        ("validation_share: 1.5", "validation_share: "),
        ("- a", "must hold settings, each as"),
        ("model: a\nmodel: b", "stands twice"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_what_to_do(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=r"f\.yaml") as raised:
        read_config(config(tmp_path, text), {})
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"), [('{"model": "a", "model": "b"}', "stands twice"), ("{", "is not JSON")]
)
def test_a_mistake_in_a_json_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        read_config(config(tmp_path, text, "f.json"), {})


@pytest.mark.parametrize(
    ("training", "told"),
    [({"epoch": 3}, "did you mean epochs"), ({"epochs": 0}, "training.epochs: ")],
)
def test_a_mistake_in_the_training_settings_is_named(
    training: dict[str, object], told: str
) -> None:
    told_config = BatchConfig(model="m", dataset=Path("rows.jsonl"), training=training)
    with pytest.raises(SettingsError, match=told):
        told_config.plan(evaluate_only=False)
