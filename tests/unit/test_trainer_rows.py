"""Dataset files as the trainer reads them."""

import json
from pathlib import Path

import pytest

from finetune.trainer.errors import RequestFailed
from finetune.trainer.rows import Row, Turn, read_rows


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    )
    return str(path)


def chat(*turns: tuple[str, str]) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})


def test_a_prompt_with_its_completion_is_a_user_and_an_assistant(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"prompt": "2+2", "completion": "4"}')

    assert read_rows(path) == (Row(1, (Turn("user", "2+2"),), "4"),)


def test_the_last_message_is_the_output_and_all_before_it_the_prompt(tmp_path: Path) -> None:
    turns = (("system", "be brief"), ("user", "2+2"), ("assistant", "4"))
    path = write(tmp_path / "rows.jsonl", chat(*turns))

    (row,) = read_rows(path)

    assert row.prompt == (Turn("system", "be brief"), Turn("user", "2+2"))
    assert row.output == "4"


def test_other_keys_are_ignored(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        '{"prompt": "a", "completion": "b", "weight": 1, "event": {"id": "e"}}',
        '{"messages": [{"role": "user", "content": "a", "name": "n"},'
        ' {"role": "assistant", "content": "b", "refusal": null}], "tools": []}',
    )

    assert [row.output for row in read_rows(path)] == ["b", "b"]


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "", '{"prompt": "a", "completion": "b"}', " ")

    assert [row.line for row in read_rows(path)] == [2]


def test_line_separators_inside_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"prompt": "a\u2028b\x85c", "completion": "d\u2029e"}')

    assert [row.output for row in read_rows(path)] == ["d\u2029e"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ("{}", "neither messages"),
        ('{"prompt": "a"}', "neither messages"),
        ('{"prompt": "a", "completion": 1}', "completion"),
        ('{"messages": []}', "assistant's output"),
        (chat(("user", "a")), "assistant's output"),
        (chat(("assistant", "a")), "no message before"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "messages.0.content"),
        ('{"prompt": "\\ud800", "completion": "b"}', "Invalid JSON"),
        (b'{"prompt": "\xff", "completion": "b"}', "Invalid JSON"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str | bytes, complaint: str) -> None:
    path = write(tmp_path / "rows.jsonl", '{"prompt": "a", "completion": "b"}', line)

    with pytest.raises(RequestFailed, match=r"rows\.jsonl, line 2: ") as caught:
        read_rows(path)

    assert caught.value.code == "bad_dataset"
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestFailed, match=r"absent\.jsonl") as caught:
        read_rows(str(tmp_path / "absent.jsonl"))

    assert caught.value.code == "bad_dataset"
