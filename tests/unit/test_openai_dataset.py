"""What the service would refuse is refused before it is sent, with the line that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.remote.openai_dataset import RowsRefusedError, training_upload, validation_upload
from finetune.remote.openai_settings import OpenAITraining, training_settings
from tests.services.fake_openai.rows import fault_of

PROMPT = {"role": "user", "content": "say it"}
ANSWER = {"role": "assistant", "content": "it"}
ROW = {"messages": [PROMPT, ANSWER]}
PAIR = {"prompt": [PROMPT], "chosen": "yes", "rejected": "no"}
TEN = OpenAITraining()
ONE = OpenAITraining(min_examples=1)
DPO = OpenAITraining(objective="dpo", min_examples=1)


def written(folder: Path, *rows: Any) -> Path:
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def test_chat_rows_go_as_they_are(tmp_path: Path) -> None:
    file = written(tmp_path, *[ROW] * 10)
    upload = training_upload(file, TEN)
    assert (upload.content, upload.n_rows, upload.n_left_out) == (file.read_bytes(), 10, 0)
    assert fault_of(upload.content, "supervised", 10) is None


def test_fewer_than_ten_examples_are_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(RowsRefusedError, match=r"9 examples.*10 at least.*training\.min_examples"):
        training_upload(written(tmp_path, *[ROW] * 9), TEN)


def test_a_service_may_want_fewer(tmp_path: Path) -> None:
    assert training_upload(written(tmp_path, ROW), ONE).n_rows == 1


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [ANSWER]}, "a prompt, and the answer last"),
        ({"messages": [PROMPT, ANSWER, PROMPT]}, "the answer must be last"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "'tool' is none of system"),
        ({"messages": [PROMPT, {"role": "assistant", "content": " "}]}, "assistant has no text"),
        ({"messages": [{"role": "user", "content": 7}, ANSWER]}, "user has no text"),
        ({"messages": [PROMPT, {**ANSWER, "weight": 0}]}, "a `role` and a `content`"),
        ({**ROW, "label": True}, "good and what is bad"),
        (PAIR, "good and what is bad"),
        ([1], "no JSON object"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_by_its_line(
    tmp_path: Path, row: Any, fault: str
) -> None:
    with pytest.raises(RowsRefusedError, match=rf"train\.jsonl: line 2.*{fault}"):
        training_upload(written(tmp_path, ROW, row), ONE)


def test_an_example_longer_than_the_model_takes_is_refused(tmp_path: Path) -> None:
    long = {"messages": [PROMPT, {"role": "assistant", "content": "x" * 500}]}
    settings = OpenAITraining(min_examples=1, max_example_tokens=100)
    with pytest.raises(RowsRefusedError, match=r"line 1: some \d+ tokens, more than 100"):
        training_upload(written(tmp_path, long), settings)


def test_a_file_larger_than_the_service_takes_is_refused_unread(tmp_path: Path) -> None:
    file = written(tmp_path, ROW)
    with file.open("ab") as more:
        more.truncate((1 << 20) + 1)
    with pytest.raises(RowsRefusedError, match=r"more than 1 MiB"):
        training_upload(file, OpenAITraining(min_examples=1, max_file_mib=1))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RowsRefusedError, match="cannot be read"):
        training_upload(tmp_path / "none.jsonl", ONE)


def test_pairs_are_reworded_for_dpo_and_other_rows_counted(tmp_path: Path) -> None:
    upload = training_upload(written(tmp_path, ROW, PAIR, ROW), DPO)
    assert (upload.n_rows, upload.n_left_out) == (1, 2)
    assert fault_of(upload.content, "dpo", 1) is None
    row = json.loads(upload.content)
    assert row["preferred_output"][0]["content"] == "yes"
    assert row["non_preferred_output"][0]["content"] == "no"


def test_dpo_without_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RowsRefusedError, match="0 pairs"):
        training_upload(written(tmp_path, ROW), DPO)


@pytest.mark.parametrize("broken", [{"rejected": ""}, {"chosen": 7}, {"prompt": []}])
def test_a_broken_pair_is_named_by_its_line(tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises(RowsRefusedError, match="line 1"):
        training_upload(written(tmp_path, {**PAIR, **broken}), DPO)


def test_validation_rows_have_no_least_number_and_may_be_missing(tmp_path: Path) -> None:
    file = written(tmp_path, ROW)
    upload = validation_upload(file, TEN)
    assert upload is not None
    assert upload.n_rows == 1
    assert validation_upload(None, TEN) is None
    assert validation_upload(written(tmp_path), TEN) is None
    assert validation_upload(written(tmp_path, ROW), DPO) is None, "dpo takes pairs only"


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"epoch": 3}, "did you mean epochs"),
        ({"method": "lora"}, "it knows epochs, minibatch_size"),
        ({"epochs": 0}, "training setting epochs"),
        ({"objective": "kto"}, "training setting objective"),
        ({"learning_rate_multiplier": "nan"}, "learning_rate_multiplier"),
    ],
)
def test_a_setting_that_is_not_understood_is_named(training: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        training_settings(training)


def test_numbers_may_come_as_texts_from_the_environment() -> None:
    assert training_settings({"epochs": "3", "minibatch_size": "auto"}).epochs == 3
