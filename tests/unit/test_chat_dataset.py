"""What stands in the files of a run's dataset, and what must never stand there."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.datasets.chat import (
    Dataset,
    DatasetError,
    LeakageError,
    write_dataset,
    write_examples,
)
from learning.events import Message, OutputEvent
from learning.lifecycle import Role
from learning.lines import ModelLine
from learning.ports import HeldOutRow, PreferenceRow, TrainingRow

LINE = ModelLine("queries", frozenset({"normalize", "route"}), "base", "local")


def training_row(
    event_id: int,
    prompt: str,
    output: str | dict[str, Any] = "yes",
    *,
    role: Role = Role.TRAIN,
    task_type: str = "normalize",
    producer: str = "app",
) -> TrainingRow:
    event = OutputEvent(
        producer=producer,
        task_id=f"t{event_id}",
        task_type=task_type,
        prompt=prompt,
        output=output,
    )
    return TrainingRow(event_id, role, task_type, event)


def held_out_row(example_id: int, prompt: str, task_type: str = "normalize") -> HeldOutRow:
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "yes"},
    ]
    return HeldOutRow(example_id, task_type, messages)


TRAINING = (
    training_row(3, "eins"),
    training_row(5, "zwei", {"a": [1, 2]}, role=Role.REPLAY, producer="importer"),
    training_row(8, "drei", "dritte Antwort", task_type="route"),
)
HELD_OUT = (held_out_row(70, "vier"), held_out_row(71, "fünf", "route"))


def write(
    folder: Path,
    training: Sequence[TrainingRow] = TRAINING,
    held_out: Sequence[HeldOutRow] = HELD_OUT,
    line: ModelLine = LINE,
    preferences: Sequence[PreferenceRow] = (),
) -> Dataset:
    return write_dataset(
        folder,
        run_id="r-1",
        batch_id="b-1",
        seed=7,
        line=line,
        training=training,
        preferences=preferences,
        held_out=held_out,
    )


def rows(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_text("utf-8").split("\n")[:-1]]


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_training_rows_are_chat_messages_with_the_answer_last(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "r-1").train_file) == [
        [{"role": "user", "content": "eins"}, {"role": "assistant", "content": "yes"}],
        [{"role": "user", "content": "zwei"}, {"role": "assistant", "content": '{"a":[1,2]}'}],
        [{"role": "user", "content": "drei"}, {"role": "assistant", "content": "dritte Antwort"}],
    ]


def test_validation_rows_are_the_held_out_examples_in_their_order(tmp_path: Path) -> None:
    prompts = [row[0]["content"] for row in rows(write(tmp_path / "r-1").validation_file)]
    assert prompts == ["vier", "fünf"]


def test_training_data_is_both_with_the_training_rows_first(tmp_path: Path) -> None:
    files = everything_in(write(tmp_path / "r-1").folder)
    assert files["training_data.jsonl"] == files["train.jsonl"] + files["validation.jsonl"]


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert everything_in(first.folder) == everything_in(second.folder)
    assert first.digests == second.digests


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    dataset = write(tmp_path / "r-1")
    files = everything_in(dataset.folder)
    assert dataset.digests == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    metadata = json.loads(files["metadata.json"])
    assert {name: entry["sha256"] for name, entry in metadata["files"].items()} == {
        name: digest for name, digest in dataset.digests.items() if name != "metadata.json"
    }


def test_metadata_names_the_sources_the_seed_and_the_counts(tmp_path: Path) -> None:
    metadata = json.loads(write(tmp_path / "r-1").metadata_file.read_bytes())
    assert (metadata["run_id"], metadata["batch_id"], metadata["line"], metadata["seed"]) == (
        "r-1",
        "b-1",
        "queries",
        7,
    )
    assert metadata["sources"] == {
        "events": {"replay": [5], "train": [3, 8]},
        "pairs": [],
        "held_out_examples": [70, 71],
    }
    train = metadata["statistics"]["train"]
    assert train["rows"] == 3
    assert train["roles"] == {"replay": 1, "train": 2}
    assert train["task_types"] == {"normalize": 2, "route": 1}
    assert train["producers"] == {"app": 2, "importer": 1}
    assert train["prompt_characters"] == {"sum": 12, "min": 4, "mean": 4.0, "max": 4}
    assert train["answer_characters"] == {"sum": 28, "min": 3, "mean": 9.3, "max": 14}
    assert metadata["statistics"]["validation"]["task_types"] == {"normalize": 1, "route": 1}


def rejected_row(
    event_id: int, prompt: str, output: str, preferred_id: int | None = None
) -> PreferenceRow:
    event = training_row(event_id, prompt, output).event
    return PreferenceRow(event_id, "normalize", event, preferred_id)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def test_pairs_stand_after_the_training_rows_which_are_as_ever(tmp_path: Path) -> None:
    line = replace(LINE, system_prompts={"normalize": "Be brief."})
    system = {"role": "system", "content": "Be brief."}
    pairs = [rejected_row(9, "Zwei ", "nein", 5), rejected_row(10, "eins", "no", 3)]
    dataset = write(tmp_path / "r-1", line=line, preferences=pairs)
    plain = write(tmp_path / "plain", line=line)
    assert records(dataset.train_file) == [
        *records(plain.train_file),
        {
            "prompt": [system, {"role": "user", "content": "zwei"}],
            "chosen": '{"a":[1,2]}',
            "rejected": "nein",
        },
        {
            "prompt": [system, {"role": "user", "content": "eins"}],
            "chosen": "yes",
            "rejected": "no",
        },
    ]
    metadata = json.loads(dataset.metadata_file.read_bytes())
    assert metadata["sources"]["events"] == {"preference": [9, 10], "replay": [5], "train": [3, 8]}
    assert metadata["sources"]["pairs"] == [
        {"chosen": 5, "rejected": 9},
        {"chosen": 3, "rejected": 10},
    ]
    assert metadata["statistics"]["train"]["rows"] == 5
    assert metadata["statistics"]["train"]["roles"] == {"preference": 2, "replay": 1, "train": 2}


def test_rejected_answers_by_themselves_have_every_row_labelled(tmp_path: Path) -> None:
    dataset = write(tmp_path / "r-1", preferences=[rejected_row(9, "neun", "nein")])
    labels = [(row["messages"][-1]["content"], row["label"]) for row in records(dataset.train_file)]
    assert labels == [
        ("yes", True),
        ('{"a":[1,2]}', True),
        ("dritte Antwort", True),
        ("nein", False),
    ]
    assert all("label" not in row for row in records(dataset.validation_file))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.text(min_size=1), st.sampled_from([None, 3, 8])), max_size=8),
)
def test_a_rejected_answer_never_stands_where_it_would_be_learned(
    rejected: list[tuple[str, int | None]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paired = [one for one in rejected if one[1] is not None] or rejected
        preferences = [
            rejected_row(100 + n, "eins", f"REJECTED {text}", preferred)
            for n, (text, preferred) in enumerate(paired)
        ]
        dataset = write(Path(folder, "r"), preferences=preferences)
        for row in records(dataset.train_file):
            learned = row["chosen"] if "chosen" in row else row["messages"][-1]["content"]
            assert row.get("label") is False or not learned.startswith("REJECTED")
        assert "REJECTED" not in dataset.validation_file.read_text("utf-8")


def test_a_rejected_output_with_a_held_out_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeakageError, match="event 9 "):
        write(tmp_path / "r-1", preferences=[rejected_row(9, "Vier", "nein")])


def test_a_dataset_without_held_out_examples_has_an_empty_validation_file(tmp_path: Path) -> None:
    dataset = write(tmp_path / "r-1", held_out=())
    assert dataset.validation_file.read_bytes() == b""


def test_a_dataset_without_training_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="r-1 has no training row"):
        write(tmp_path / "r-1", training=())


def test_a_system_prompt_stands_before_the_rows_of_its_task_type_only(tmp_path: Path) -> None:
    line = replace(LINE, system_prompts={"route": "Choose a tool."})
    dataset = write(tmp_path / "r-1", line=line)
    told = {"role": "system", "content": "Choose a tool."}
    assert [row[0] == told for row in rows(dataset.train_file)] == [False, False, True]
    assert [row[0] == told for row in rows(dataset.validation_file)] == [False, True]


def test_a_conversation_keeps_its_own_system_message(tmp_path: Path) -> None:
    event = OutputEvent(
        producer="app",
        task_id="t1",
        task_type="normalize",
        messages=[
            Message(role="system", content="Its own."),
            Message(role="user", content="eins"),
            Message(role="assistant", content="yes"),
        ],
    )
    line = replace(LINE, system_prompts={"normalize": "The line's."})
    training = [TrainingRow(1, Role.TRAIN, "normalize", event)]
    [row] = rows(write(tmp_path / "r-1", training=training, line=line).train_file)
    assert [m["content"] for m in row] == ["Its own.", "eins", "yes"]


def test_examples_for_an_evaluation_are_worded_as_in_the_training(tmp_path: Path) -> None:
    line = replace(LINE, system_prompts={"route": "Choose a tool."})
    dataset = write(tmp_path / "r-1", line=line)
    write_examples(tmp_path / "new" / "evaluation.jsonl", line, HELD_OUT)
    written = (tmp_path / "new" / "evaluation.jsonl").read_bytes()
    assert written == dataset.validation_file.read_bytes()


def test_no_held_out_prompt_is_in_the_training_file(tmp_path: Path) -> None:
    dataset = write(tmp_path / "r-1")
    held_out = {row[-2]["content"] for row in rows(dataset.validation_file)}
    assert held_out.isdisjoint(row[-2]["content"] for row in rows(dataset.train_file))


@pytest.mark.parametrize("prompt", ["vier", " VIER\n", "Vier"])
def test_a_held_out_prompt_among_the_training_rows_is_refused_by_name(
    tmp_path: Path, prompt: str
) -> None:
    training = [*TRAINING, training_row(9, prompt, role=Role.RETRY)]
    with pytest.raises(LeakageError, match=r"event 9 .* held-out example 70") as leak:
        write(tmp_path / "r-1", training=training)
    assert (leak.value.event_id, leak.value.example_id) == (9, 70)
    assert not (tmp_path / "r-1").exists()


def test_a_held_out_conversation_among_the_training_rows_is_refused(tmp_path: Path) -> None:
    messages = [
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi"),
        Message(role="user", content="And now?"),
        Message(role="assistant", content="Bye"),
    ]
    event = OutputEvent(producer="app", task_id="t", task_type="route", messages=messages)
    held_out = HeldOutRow(70, "route", [m.model_dump() for m in messages])
    with pytest.raises(LeakageError):
        write(tmp_path / "r-1", [TrainingRow(1, Role.TRAIN, "route", event)], [held_out])


def test_a_text_cannot_end_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\u0085d\re\nf"
    dataset = write(tmp_path / "r-1", training=[training_row(1, text)])
    content = dataset.train_file.read_text("utf-8")
    assert len(content.splitlines()) == 1
    assert json.loads(content)["messages"][0]["content"] == text


def test_writing_again_replaces_the_dataset_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "r-1")
    dataset = write(tmp_path / "r-1", held_out=HELD_OUT[:1])
    assert len(rows(dataset.validation_file)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r-1"]


def test_what_a_kill_left_behind_does_not_matter(tmp_path: Path) -> None:
    for leftover in (".r-1.new", ".r-1.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "train.jsonl").write_text("half a row")
    write(tmp_path / "r-1")
    assert [path.name for path in tmp_path.iterdir()] == ["r-1"]
