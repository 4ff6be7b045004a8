"""`learnd runs report`: what a daemon has stored of a run, written as a report."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.exit_status import ExitStatus
from tests.acceptance.test_cli import Terminal, clean_environment, serve_past
from tests.rows import Generations, Past

CURVE = {
    "steps": [1, 2, 3],
    "loss": [2.0, 1.0, None],
    "learning_rate": [1e-4, 2e-4, 0.0],
    "grad_norm": [3.0, 2.0, None],
    "tokens": [100, 100, 200],
    "rows": [2, 2, 4],
    "seconds": [0.5, 0.5, 1.0],
}
MEASURED: dict[str, Any] = {
    "do": "train",
    "steps": 3,
    "rows": 9,
    "rows_truncated": 2,
    "rows_skipped": 1,
    "skipped": [{"line": 4, "reason": "the output is empty"}],
    "final_loss": 1.0,
    "curve": CURVE,
}


@dataclass
class Stage:
    """Somebody who asks about a run without a version, and one that made 1.0.1."""

    terminal: Terminal
    failed: str
    promoted: str


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    def fill(past: Past) -> tuple[str, str]:
        made = Generations(past)
        failed = past.run(
            past.batch({made.lost: "retry"}),
            state="failed",
            training={"epochs": 3, "max_steps": None},
            measurements=MEASURED,
        )
        return failed, made.runs[0]

    terminal = Terminal(tmp_path, clean_environment())
    async with serve_past(tmp_path / "learnd-data", fill) as (url, ((failed, promoted), _)):
        terminal.env["LEARND_URL"] = url
        yield Stage(terminal, failed, promoted)


async def test_a_report_has_the_stored_curve_the_settings_and_what_was_cut(stage: Stage) -> None:
    ran = await stage.terminal.type("runs", "report", stage.failed, "--json")
    assert ran.status == ExitStatus.DONE, ran.err
    told = ran.json
    assert told["curve"]["loss"] == CURVE["loss"]
    assert told["settings"] == {"epochs": 3}
    assert told["dataset"]["outputs cut at their end"] == 2
    assert told["dataset"]["events of role retry"] == 1
    assert told["left_out"] == [{"file": "train.jsonl", "line": 4, "reason": "the output is empty"}]
    assert told["training"]["input tokens a second"] == 200.0
    assert told["evaluation"] is None


async def test_a_report_has_the_gates_numbers_of_the_version_that_was_made(stage: Stage) -> None:
    ran = await stage.terminal.type("runs", "report", stage.promoted, "--output", "here")
    assert ran.status == ExitStatus.DONE, ran.err
    folder = stage.terminal.folder / "here"
    assert ran.out.strip() == "here/report.html"
    told = json.loads((folder / "report.json").read_text())
    assert told["facts"]["version"] == "1.0.1"
    assert told["evaluation"]["verdict"] == "promote"
    assert "against 1.0.0" in told["evaluation"]["reason"]
    (part, *_) = told["evaluation"]["slices"]
    assert part["loss_before"] > part["loss_after"]
    assert (folder / "report.md").exists()


async def test_a_curve_does_not_fill_the_screen_of_a_run(stage: Stage) -> None:
    shown = await stage.terminal.type("runs", stage.failed)
    assert "learning_rate" not in shown.out
    assert "final_loss 1" in shown.out


async def test_a_run_that_does_not_exist_is_refused(stage: Stage) -> None:
    ran = await stage.terminal.type("runs", "report", "r-nothing")
    assert ran.status == ExitStatus.REFUSED
    assert "no run r-nothing" in ran.err
