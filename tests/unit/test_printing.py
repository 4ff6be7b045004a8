"""What is printed is safe to show, and an id is never cut."""

import pytest

from daemon.printing import Column, duration, plain, show_json, show_table, text_of, words


def test_what_a_producer_sent_does_not_steer_the_terminal() -> None:
    assert plain("a\x1b[31mb\x9b2Jc\u202ed") == "a\ufffd[31mb\ufffd2Jc\ufffdd"
    assert plain("two\nlines\tand 👩‍🚀") == "two\nlines\tand 👩‍🚀"


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([words("x")], [["[red]not red[/red]"]])
    assert "[red]not red[/red]" in capsys.readouterr().out


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"prompt": "\x1b[31m\x9b é"})
    assert capsys.readouterr().out.isascii()


def test_a_piped_table_is_a_hundred_columns_wide_and_keeps_ids_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    ids = ["r-" + "a" * 30, "b-" + "b" * 30]
    show_table([Column("run"), Column("batch"), words("why")], [[*ids, "word " * 60]])
    out = capsys.readouterr().out
    assert all(one in out for one in ids)
    assert max(map(len, out.splitlines())) <= 100
    assert out.count("word") == 60
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (True, "yes"),
        (0.123456, "0.1235"),
        ({"train": 2, "replay": 1}, "train 2, replay 1"),
        ([], "-"),
        (["a", "b"], "a, b"),
        (12, "12"),
    ],
)
def test_cells_are_short(value: object, shown: str) -> None:
    assert text_of(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3_700, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_a_duration_has_the_two_units_that_matter(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
