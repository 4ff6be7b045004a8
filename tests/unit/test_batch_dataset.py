"""A dataset file that a person brings: what is read, refused, split and kept apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.datasets.batch import BadRowsError, Sources, prepare
from finetune.datasets.chat import DatasetError


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def pair(number: int, answer: str = "yes") -> dict[str, str]:
    return {"prompt": f"question {number}", "completion": answer}


def read(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(path: Path | None) -> list[str]:
    return [row["messages"][-2]["content"] for row in read(path)]


def test_127_examples_are_101_to_train_on_and_26_to_validate(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(number) for number in range(127)])
    made = prepare(tmp_path / "dataset", Sources(file))
    assert (made.n_train, made.n_validation) == (101, 26)
    assert len(read(made.train_file)) == 101
    both = prompts(made.train_file) + prompts(made.validation_file)
    assert sorted(both) == sorted(f"question {number}" for number in range(127))


def test_the_same_file_and_seed_make_the_same_bytes_and_another_seed_another_split(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(number) for number in range(50)])
    one = prepare(tmp_path / "one", Sources(file, seed=1))
    again = prepare(tmp_path / "again", Sources(file, seed=1))
    other = prepare(tmp_path / "other", Sources(file, seed=2))
    assert one.sha256 == again.sha256 != other.sha256


def test_one_prompt_never_stands_on_both_sides(tmp_path: Path) -> None:
    rows = [pair(number % 10, answer=str(number)) for number in range(100)]
    rows += [{"prompt": f"  QUESTION {number} ", "completion": "x"} for number in range(10)]
    made = prepare(tmp_path / "dataset", Sources(write(tmp_path / "rows.jsonl", rows)))
    train = {prompt.strip().casefold() for prompt in prompts(made.train_file)}
    validation = {prompt.strip().casefold() for prompt in prompts(made.validation_file)}
    assert train
    assert validation
    assert not train & validation


def test_chat_messages_and_pairs_are_read_and_a_system_prompt_is_put_first(tmp_path: Path) -> None:
    own = [
        {"role": "system", "content": "Mine."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    file = write(tmp_path / "rows.jsonl", [{"messages": own, "id": 4}, pair(1)])
    made = prepare(
        tmp_path / "dataset", Sources(file, validation_share=0.0, system_prompt="Yours.")
    )
    assert read(made.train_file)[0] == {"messages": own}
    assert read(made.train_file)[1]["messages"][0] == {"role": "system", "content": "Yours."}
    assert made.validation_file is None


def test_every_bad_line_is_named_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(pair(1)),
        "not json",
        "",
        json.dumps({"prompt": "p"}),
        json.dumps({"prompt": "p", "completion": " "}),
        json.dumps({"messages": [{"role": "user", "content": "u"}]}),
        json.dumps({"messages": [{"role": "user", "content": 3}]}),
    ]
    file.write_text("\n".join(lines))
    with pytest.raises(BadRowsError) as raised:
        prepare(tmp_path / "dataset", Sources(file))
    assert [fault.line for fault in raised.value.faults] == [2, 4, 5, 6, 7]
    for told in ("line 2: ", "is missing", "answer is empty", "no_answer", "content"):
        assert told in str(raised.value)
    assert "--skip-bad-rows" in str(raised.value)
    assert not (tmp_path / "dataset").exists()

    made = prepare(tmp_path / "dataset", Sources(file, skip_bad_rows=True))
    assert made.n_train == 1
    assert [fault.line for fault in made.faults] == [2, 4, 5, 6, 7]
    told = json.loads((tmp_path / "dataset" / "metadata.json").read_text())
    assert len(told["left_out"]) == 5


def test_a_prompt_of_the_validation_file_may_not_be_trained_on(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(1), pair(2), pair(3)])
    validation = write(tmp_path / "validation.jsonl", [pair(9), pair(2, "no")])
    with pytest.raises(BadRowsError, match="line 2: its prompt is that of line 2"):
        prepare(tmp_path / "dataset", Sources(file, validation))
    made = prepare(tmp_path / "dataset", Sources(file, validation, skip_bad_rows=True))
    assert prompts(made.train_file) == ["question 1", "question 3"]
    assert made.n_validation == 2


def test_repeated_rows_are_counted_and_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [pair(1), pair(1), pair(2)])
    made = prepare(tmp_path / "dataset", Sources(file, validation_share=0.0))
    assert (made.n_train, made.n_repeated) == (3, 1)


def test_a_file_that_is_missing_or_has_no_row_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        prepare(tmp_path / "dataset", Sources(tmp_path / "rows.jsonl"))
    with pytest.raises(DatasetError, match="no row is left"):
        prepare(tmp_path / "dataset", Sources(write(tmp_path / "rows.jsonl", [])))


# --- preferences ----------------------------------------------------------------------


def pairs(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(n)]


def test_pairs_are_trained_on_as_pairs_and_validated_on_by_the_chosen_answer(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "rows.jsonl", pairs(10))
    made = prepare(tmp_path / "dataset", Sources(file, objective="dpo", system_prompt="Be brief."))
    system = {"role": "system", "content": "Be brief."}
    for row in read(made.train_file):
        assert row["prompt"][0] == system
        assert (row["chosen"], row["rejected"]) == ("yes", "no")
    for row in read(made.validation_file):
        assert row["messages"][0] == system
        assert row["messages"][-1] == {"role": "assistant", "content": "yes"}
    assert (made.n_train, made.n_validation) == (8, 2)


def test_rejected_answers_are_trained_on_by_their_label_and_never_validated_on(
    tmp_path: Path,
) -> None:
    rows: list[Any] = [{**pair(i), "label": good} for i in range(10) for good in (True, False)]
    file = write(tmp_path / "rows.jsonl", [*rows, *pairs(1)])
    made = prepare(tmp_path / "dataset", Sources(file, objective="kto"))
    labels = [row.get("label") for row in read(made.train_file)]
    assert labels.count(True) == labels.count(False) > 0
    assert made.n_validation >= 2
    both = set(prompts(made.validation_file)) & {
        row["messages"][-2]["content"] for row in read(made.train_file) if "messages" in row
    }
    assert both == set()


@pytest.mark.parametrize(
    ("objective", "row", "told"),
    [
        ("sft", pairs(1)[0], "set training.objective"),
        ("sft", {**pair(1), "label": False}, "set training.objective"),
        ("dpo", pair(1), "needs prompt, chosen and rejected"),
        ("kto", pair(1), "needs a label"),
        ("dpo", {"prompt": "p", "chosen": "a", "rejected": " "}, "rejected answer is empty"),
    ],
)
def test_a_row_that_does_not_fit_the_objective_is_named(
    tmp_path: Path, objective: Any, row: Any, told: str
) -> None:
    file = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(BadRowsError, match=told):
        prepare(tmp_path / "dataset", Sources(file, objective=objective))
