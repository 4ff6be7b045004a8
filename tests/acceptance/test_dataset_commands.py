"""`learnd dataset` as a script types it: real files, large ones too, in a process of its own."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.exit_status import ExitStatus

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240
MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Ran:
    """How a command ended, what it said, and the most memory it had, in bytes."""

    status: int
    out: str
    err: str
    peak_bytes: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal:
    """Somebody who types `learnd dataset` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def type(self, *words: str | Path) -> Ran:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, "dataset", *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        *err, peak = done.stderr.splitlines()
        return Ran(done.returncode, done.stdout, "\n".join(err), int(peak) * 1024)


# The command itself, which says at its end how much memory it had. (What getrusage says of a
# process begins with the memory of whoever started it.)
_MEASURED = """
import atexit, re, sys
from pathlib import Path
def peak():
    return re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)
atexit.register(lambda: print(peak(), file=sys.stderr))
from daemon.cli import main
main()
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pair(prompt: str, completion: str = "yes", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **fields}


def test_each_bad_line_is_named_with_its_reason_and_what_to_do(terminal: Terminal) -> None:
    file = write(terminal.folder / "a.jsonl", pair("a"), "{", pair(""), pair("a"))

    ran = terminal.type("validate", file)

    assert ran.status == ExitStatus.DONE
    assert "2  not_json" in ran.out
    assert "3  empty_text  there is no word of a user before the answer" in ran.out
    assert "empty_text  fill it in, or leave the row out" in ran.out
    assert re.search(r"^duplicates +1$", ran.out, re.MULTILINE)


def test_strictly_one_bad_line_is_a_failure(terminal: Terminal) -> None:
    good = write(terminal.folder / "good.jsonl", pair("a"), pair("b"))
    bad = write(terminal.folder / "bad.jsonl", pair("a"), "{")
    assert terminal.type("validate", good, "--strict").status == ExitStatus.DONE
    ran = terminal.type("validate", bad, "--strict", "--json")
    assert ran.status == ExitStatus.REFUSED
    (line,) = ran.json["bad"]["listed"]
    assert (line["line"], line["flaw"]) == (2, "not_json")
    assert line["detail"]
    assert line["advice"]


def test_a_file_without_one_good_row_is_refused(terminal: Terminal) -> None:
    file = write(terminal.folder / "a.jsonl", pair(""))
    assert terminal.type("validate", file).status == ExitStatus.REFUSED


def test_filtering_writes_the_good_rows_as_they_are(terminal: Terminal) -> None:
    evaluation = write(terminal.folder / "eval.jsonl", pair("judge"))
    file = terminal.folder / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"prompt":"a",  "completion":"\\u0061"}\r\n{\n'
        b'{"prompt":"a","completion":"a"}\n{"prompt":"Judge","completion":"x"}\n'
    )
    out = terminal.folder / "good.jsonl"

    ran = terminal.type("validate", file, "--out", out)
    dropped = terminal.type(
        "validate", file, "--against", evaluation, "--out", out, "--force",
        "--drop", "duplicates", "--drop", "leaks", "--json",
    )  # fmt: skip

    assert ran.status == ExitStatus.DONE
    assert "3 rows written to good.jsonl" in ran.out
    assert dropped.json["written"]["rows"] == 1
    assert dropped.json["leaks"]["listed"] == [
        {"line": 4, "of_file": str(evaluation), "of_line": 1, "how": "same_prompt"}
    ]
    assert out.read_bytes() == b'{"prompt":"a",  "completion":"\\u0061"}\n'


def test_a_leak_is_a_failure_strictly(terminal: Terminal) -> None:
    file = write(terminal.folder / "a.jsonl", pair("a"))
    ran = terminal.type("validate", file, "--against", file, "--strict")
    assert ran.status == ExitStatus.REFUSED
    assert "Rows that leak from another file" in ran.out


def test_what_exists_is_not_overwritten(terminal: Terminal) -> None:
    file = write(terminal.folder / "a.jsonl", pair("a"))
    ran = terminal.type("validate", file, "--out", file)
    assert ran.status == ExitStatus.REFUSED
    assert "--force" in ran.err


def test_a_conversion_that_loses_something_is_refused_with_its_line(terminal: Terminal) -> None:
    file = write(terminal.folder / "a.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    out = terminal.folder / "out.jsonl"

    refused = terminal.type("convert", file, "--to", "messages", "--out", out)

    assert refused.status == ExitStatus.REFUSED
    assert "line 1: messages cannot hold it: the rejected answer would be lost" in refused.err
    assert not out.exists()
    assert terminal.type("convert", file, "--to", "messages", "--out", out, "--lossy").status == 0
    assert rows_of(out) == [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    ]


def test_an_array_in_alpacas_words_becomes_messages_in_lines(terminal: Terminal) -> None:
    file = terminal.folder / "alpaca.json"
    file.write_text(json.dumps([{"instruction": "a", "input": "b", "output": "c"}, {}], indent=2))
    out = terminal.folder / "out.jsonl"

    ran = terminal.type("convert", file, "--to", "messages", "--out", out)

    assert ran.status == ExitStatus.DONE
    assert "1 rows of messages written to out.jsonl, from instruction, 1 bad lines" in ran.out
    assert rows_of(out)[0]["messages"][0] == {"role": "user", "content": "a\nb"}
    strict = terminal.type("convert", file, "--to", "messages", "--out", out, "--strict", "--force")
    assert strict.status == ExitStatus.REFUSED
    assert "line 7: unknown_format" in strict.err


def test_a_split_is_the_same_twice_and_nothing_leaks(terminal: Terminal) -> None:
    rows = [pair(f"question {n}", task_type="ab"[n % 2]) for n in range(125)]
    rows += [pair("Question  3"), pair("QUESTION 4")]
    file = write(terminal.folder / "a.jsonl", *rows)

    ran = terminal.type("split", file, "--out", terminal.folder / "one", "--seed", "5")
    again = terminal.type("split", file, "--out", terminal.folder / "two", "--seed", "5", "--json")

    assert "101 rows written to train.jsonl" in ran.out
    assert "26 rows written to validation.jsonl" in ran.out
    for name in ("train.jsonl", "validation.jsonl", "split.json"):
        one, two = terminal.folder / "one" / name, terminal.folder / "two" / name
        assert one.read_bytes() == two.read_bytes()
    assert again.json == json.loads((terminal.folder / "one" / "split.json").read_text())
    train, held_out = (
        terminal.folder / "one" / name for name in ("train.jsonl", "validation.jsonl")
    )
    assert len(rows_of(train)) + len(rows_of(held_out)) == 127
    assert terminal.type("validate", train, "--against", held_out, "--strict").status == 0


def test_statistics_show_how_long_the_rows_are(terminal: Terminal) -> None:
    file = write(terminal.folder / "a.jsonl", *(pair("x" * n) for n in range(1, 101)))

    ran = terminal.type("stats", file, "--max-length", "50")

    assert "prompt characters  mean 50.5, half up to 50" in ran.out
    assert "longer than 50     53 of 100 rows (53.0%)" in ran.out
    assert "64 - 127" in ran.out
    assert "█" in ran.out
    assert terminal.type("stats", file, "--json").json["characters"]["prompt"]["p99"] >= 97


@pytest.mark.parametrize("command", ["validate", "split"])
def test_memory_does_not_grow_with_the_file(terminal: Terminal, command: str) -> None:
    """A file larger than the memory that the command may have, with a huge line in it."""
    file = terminal.folder / "large.jsonl"
    filler = "lorem ipsum dolor sit amet " * 2_600
    with file.open("w") as out:
        for n in range(2_400):
            out.write(json.dumps(pair(f"question {n}", f"{n} {filler}")) + "\n")
            if n == 1_000:
                out.write("x" * (40 * MEGABYTE) + "\n")
    assert file.stat().st_size > 200 * MEGABYTE
    more = ["--out", "out"] if command == "split" else []

    ran = terminal.type(command, file, "--near", "0", "--json", *more)

    assert ran.status == ExitStatus.DONE
    if command == "validate":
        assert (ran.json["good"], ran.json["flaws"]) == (2_400, {"too_long": 1})
    assert ran.peak_bytes < 150 * MEGABYTE


def test_looking_for_near_duplicates_does_not_hold_the_texts(terminal: Terminal) -> None:
    def told_twice(n: int) -> Ran:
        """What is said of n rows and as many that are nearly the same."""
        file = terminal.folder / f"{n}.jsonl"
        with file.open("w") as out:
            for row in range(2 * n):
                words = " ".join(f"a_long_word_{row % n}x{at}" for at in range(300))
                out.write(json.dumps(pair(words, str(row // n))) + "\n")
        ran = terminal.type("validate", file, "--json")
        assert ran.json["near_duplicates"]["n"] == n
        return ran

    few, many = told_twice(100), told_twice(2_000)

    assert (terminal.folder / "2000.jsonl").stat().st_size > 20 * MEGABYTE
    assert many.peak_bytes - few.peak_bytes < 10 * MEGABYTE
