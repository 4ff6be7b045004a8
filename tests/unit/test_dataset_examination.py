"""A file is examined in one pass: bad lines, repeats, leaks and lengths, each where it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.datasets.dataset_file import DatasetFile, Reading
from finetune.datasets.examination import Examination, Leak, Likeness, Rules, Twin, examine
from finetune.datasets.flaws import DatasetFileError, Flaw
from finetune.datasets.formats import Format
from finetune.datasets.tokens import token_counter
from finetune.datasets.writing import outputs

STORY = " ".join(f"word{n}" for n in range(80))


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def pair(prompt: str, completion: str = "yes", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **fields}


def examined(path: Path, *against: Path, **rules: Any) -> Examination:
    others = [DatasetFile(other, Reading()) for other in against]
    return examine(DatasetFile(path, Reading()), Rules(**rules), against=others)


def test_each_bad_line_is_named_with_its_number_and_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "a", pair("a"), "", "{", pair(""), pair("b"), '{"text": "c"}')

    found = examined(path)

    assert [(line.line, line.flaw) for line in found.bad.listed] == [
        (3, Flaw.NOT_JSON),
        (4, Flaw.EMPTY_TEXT),
        (6, Flaw.UNKNOWN_FORMAT),
    ]
    assert all(line.detail and line.advice for line in found.bad.listed)
    assert (found.good, found.bad.n, found.flaws["not_json"]) == (2, 3, 1)


def test_repeats_are_told_apart_and_name_the_line_that_they_repeat(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        pair(STORY),
        "{",
        pair("b"),
        pair(STORY),
        pair(f"{STORY} more"),
        pair("B", "another answer"),
    )

    found = examined(path)

    assert found.duplicates.listed == [Twin(4, 1, 1.0)]
    ((line, of_line, likeness),) = found.near_duplicates.listed
    assert (line, of_line) in {(5, 1), (5, 4)}
    assert 0.8 <= likeness < 1
    assert found.repeated_prompts == 2


def test_a_leak_is_found_as_a_row_a_prompt_or_nearly_and_names_its_file(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", "{", pair("a"), pair("b", "other"))
    two = write(tmp_path / "two.jsonl", pair(STORY))
    path = write(
        tmp_path / "train", pair("x"), pair("a"), pair("B"), pair(f"{STORY} more"), pair("x")
    )

    found = examined(path, one, two)

    assert found.leaks.listed == [
        Leak(2, str(one), 2, Likeness.SAME),
        Leak(3, str(one), 3, Likeness.PROMPT),
        Leak(4, str(two), 1, Likeness.NEAR),
    ]
    assert found.leaks.n == 3
    assert found.duplicates.listed == [Twin(5, 1, 1.0)]
    assert found.unwanted.leak.tolist() == [False, True, True, True, False]


def test_rows_that_leak_twice_are_duplicates_of_each_other_too(tmp_path: Path) -> None:
    other = write(tmp_path / "other", pair("a"))
    found = examined(write(tmp_path / "train", pair("a"), pair("b"), pair("a")), other)
    assert found.duplicates.listed == [Twin(3, 1, 1.0)]
    assert found.leaks.n == 2


def test_near_duplicates_may_be_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a", pair(STORY), pair(f"{STORY} more"))
    assert examined(path, near=None).near_duplicates.n == 0


def test_lengths_are_those_of_prompts_answers_and_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a", pair("12345", "123"), pair("1", "1", task_type="audio"))

    found = examined(path, max_length=5)

    assert (found.characters["prompt"].longest, found.characters["answer"].longest) == (5, 3)
    assert (found.characters["row"].total, found.characters["row"].above_limit) == (10, 1)
    assert found.task_types == {"audio": 1}
    assert found.tokens == {}


def test_tokens_are_counted_by_a_models_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = write(tmp_path / "a", pair("one two three", "four"))

    found = examined(path, token_count=token_counter(tmp_path), max_length=3)

    assert (found.tokens["prompt"].longest, found.tokens["row"].longest) == (3, 4)
    assert (found.tokens["row"].above_limit, found.characters["row"].limit) == (1, None)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetFileError, match=r"has no tokenizer\.json"):
        token_counter(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DatasetFileError, match="is no tokenizer"):
        token_counter(tmp_path)


def test_the_format_is_that_of_most_of_the_first_rows(tmp_path: Path) -> None:
    odd = {"messages": [{"role": "user", "content": "a"}]}
    path = write(tmp_path / "a", "{", odd, pair("a"), pair("b"))
    assert DatasetFile(path, Reading()).format is Format.PROMPT_COMPLETION
    assert DatasetFile(path, Reading(format=Format.MESSAGES)).format is Format.MESSAGES


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"question": "a", "response": "b", "id": 1})
    renamed = {"prompt": "question", "completion": "response"}
    (row,) = DatasetFile(path, Reading(renamed=renamed)).rows()
    assert row.example.extra == {"id": 1}  # type: ignore[union-attr]


@pytest.mark.parametrize(("content", "words"), [("", "is empty"), ('{"a": 1}\n', "known format")])
def test_what_is_no_dataset_is_refused_with_the_files_name(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetFileError, match=rf"a\.jsonl.*{words}"):
        DatasetFile(path, Reading())


def test_a_file_that_changes_between_two_passes_is_refused(tmp_path: Path) -> None:
    dataset = DatasetFile(write(tmp_path / "a", pair("a")), Reading())
    list(dataset.rows())
    write(tmp_path / "a", pair("a"), pair("b"))
    with pytest.raises(DatasetFileError, match="was changed"):
        list(dataset.rows())


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def fail(new: Path, kept: Path) -> None:
        with outputs(new, kept, overwrite=True) as (output, _):
            output.write(pair("a"))
            raise Stop

    kept = write(tmp_path / "kept", pair("old"))
    with pytest.raises(Stop):
        fail(tmp_path / "new", kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert kept.read_text() == json.dumps(pair("old")) + "\n"


def test_what_exists_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    kept = write(tmp_path / "kept", pair("old"))
    with pytest.raises(DatasetFileError, match="--force"), outputs(kept, overwrite=False):
        pass
    with outputs(kept, overwrite=True) as (output,):
        output.write({"a": "\u2028"})
    assert kept.read_bytes() == b'{"a": "\\u2028"}\n'
