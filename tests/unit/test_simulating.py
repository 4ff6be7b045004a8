"""Which settings and times a simulation takes, what a file says, and how the answer looks."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from daemon import simulation_screen
from daemon.api.ports import SimulationAnswer
from daemon.changeable import UnknownSettingError
from daemon.settings import Settings
from daemon.settings_sources import SettingsError
from daemon.simulating import (
    OF_A_LINE,
    SECTIONS,
    IrrelevantSettingError,
    SimulationError,
    UnknownLineError,
    changed_settings,
    task_types_of,
    time_told,
)
from daemon.simulation_file import simulate_file
from daemon.simulation_page import NotWrittenError, as_page, write_simulation

NOW = datetime(2026, 5, 8, 12, tzinfo=UTC)
DOCUMENT = Path(__file__).parents[2] / "docs" / "simulate.md"


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("7d", NOW - timedelta(days=7)),
        ("24h", NOW - timedelta(hours=24)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("90s", NOW - timedelta(seconds=90)),
        ("2w", NOW - timedelta(days=14)),
        ("now", NOW),
        ("2026-05-01", datetime(2026, 5, 1, tzinfo=UTC)),
        ("2026-05-01T12:00Z", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("2026-05-01T12:00:00+02:00", datetime(2026, 5, 1, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_so_long_ago_or_has_a_zone(text: str, time: datetime) -> None:
    assert time_told(text, NOW) == time


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("yesterday", "7d, 24h"),
        ("2026-05-01T12:00", "has no zone: write 2026-05-01T12:00Z"),
        ("2026-13-01", "no time"),
        ("7", "no time"),
        ("-7d", "no time"),
        ("999999999w", "hundred years"),
        ("0001-01-01T00:00+14:00", "no time"),
    ],
)
def test_what_is_no_time_is_said_with_what_would_be(text: str, hint: str) -> None:
    with pytest.raises(SimulationError, match=hint):
        time_told(text, NOW)


def test_settings_that_matter_are_tried_and_validated_together() -> None:
    values = {"policy.min_confidence": 0.9, "queue.batch_size": 40, "queue.min_batch_size": None}
    changed = changed_settings(Settings(queue={"min_batch_size": 5}), values)
    assert changed.policy.min_confidence == 0.9
    assert changed.size_rules().least == 40
    with pytest.raises(SettingsError, match="max_queue_size 100 is smaller"):
        changed_settings(Settings(), {"queue.batch_size": 150})


@pytest.mark.parametrize(
    "key", ["gate.margin", "kafka.group_id", "finetune.base_model", "lines.coding.base_model"]
)
def test_settings_that_do_not_matter_are_refused_with_those_that_do(key: str) -> None:
    with pytest.raises(IrrelevantSettingError, match=r"does not matter.*policy\.min_confidence"):
        changed_settings(Settings(), {key: 1})


def test_unknown_settings_lines_and_task_types_get_the_usual_hints() -> None:
    with pytest.raises(UnknownSettingError, match=r"did you mean policy\.min_confidence"):
        changed_settings(Settings(), {"policy.min_confidnce": 1})
    for line, task_type in (("nowhere", None), (None, "nothing")):
        with pytest.raises(UnknownLineError):
            task_types_of(Settings(), line, task_type)
    with pytest.raises(SimulationError, match="does not learn from"):
        task_types_of(Settings(), "coding", "audio")
    assert task_types_of(Settings(), "coding", None) == frozenset({"coding"})
    assert task_types_of(Settings(), None, None) is None


def test_the_settings_that_matter_are_documented() -> None:
    text = DOCUMENT.read_text()
    for section, names in (*SECTIONS.items(), ("lines.LINE", OF_A_LINE)):
        listed = ", ".join(f"`{name}`" for name in names)
        assert f"| `{section}` | {listed} |" in text


# --- files --------------------------------------------------------------------------------


def event(number: int, **fields: Any) -> dict[str, Any]:
    at = NOW - timedelta(hours=5) + timedelta(seconds=number)
    return {
        "event_id": f"e-{number}",
        "producer": "studio",
        "task_id": f"t-{number}",
        "task_type": "coding",
        "prompt": f"say {number}",
        "output": f"it is {number}",
        "approved": True,
        "timestamp": at.isoformat(),
        **fields,
    }


def said(number: int, approved: bool, seconds: int) -> dict[str, Any]:
    kept = event(seconds, event_id=f"f-{number}", task_id=f"t-{number}", approved=approved)
    return {key: value for key, value in kept.items() if key not in ("prompt", "output")}


def of_file(
    lines: list[dict[str, Any]], values: dict[str, Any] | None = None, **asked: Any
) -> SimulationAnswer:
    content = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    more: dict[str, Any] = dict.fromkeys(("since", "until", "line", "task_type"))
    return simulate_file(
        content, Settings(), values or {}, now=NOW, run_seconds=300.0, **{**more, **asked}
    )


def test_a_file_is_put_in_the_order_of_its_times() -> None:
    lines = [said(1, False, 9), event(2, confidence=0.5), event(1), said(7, True, 9)]
    found = of_file(lines, {"policy.min_confidence": 0.4})
    before, after = found.report.total.recorded, found.report.total.simulated
    assert (before.held, before.withdrawn) == (1, 1)
    assert (after.accepted, after.withdrawn) == (1, 1)
    assert any("1 feedback name a task" in note for note in found.report.notes)


def test_feedback_on_a_task_with_two_outputs_is_set_aside() -> None:
    lines = [event(1), event(2, task_id="t-1"), said(1, False, 9)]
    assert of_file(lines).report.total.simulated.accepted == 2


def test_a_validator_of_the_simulation_is_asked_of_a_file_too() -> None:
    found = of_file([event(1)], {"policy.max_output_characters": 3})
    assert found.report.total.recorded.accepted == 1
    assert found.report.total.simulated.quarantined == 1


def test_a_file_may_be_cut_by_time_and_by_line() -> None:
    lines = [event(1), event(2, task_type="audio"), event(3)]
    assert of_file(lines, line="coding").report.arrived == 2
    assert of_file(lines, since="2026-05-08T07:00:02Z").report.arrived == 2
    with pytest.raises(SimulationError, match="is not before"):
        of_file(lines, since="1h", until="2h")


# --- what is shown ------------------------------------------------------------------------


def shown(found: SimulationAnswer) -> Any:
    return TypeAdapter(SimulationAnswer).dump_python(found, mode="json")


def test_the_screen_says_what_would_have_been(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [event(n, confidence=0.8) for n in range(30)] + [event(31, task_type="audio")]
    values = {"policy.min_confidence": 0.9, "money.prices.local.tiny.per_job": 2}
    simulation_screen.simulated(shown(of_file(lines, values)))
    told = capsys.readouterr().out
    assert told.splitlines()[0].startswith("a file has no verdicts")
    for words in ("accepted -> held", "policy.min_confidence", "-30", "audio"):
        assert words in told
    simulation_screen.simulated(shown(of_file([])))
    assert "nothing to simulate" in capsys.readouterr().out


def test_the_page_needs_no_script_and_escapes_what_was_sent(tmp_path: Path) -> None:
    lines = [event(n) for n in range(30)] + [{"<script>": 1}]
    found = shown(of_file(lines, {"queue.batch_size": 40}))
    page = as_page(found)
    assert page.count("<svg") >= 2
    assert "<script" not in page

    folder = tmp_path / "report"
    assert write_simulation(folder, found) == folder / "simulation.html"
    assert json.loads((folder / "simulation.json").read_text()) == found
    assert (folder / "accepted.svg").exists()
    file = tmp_path / "alone.html"
    assert write_simulation(file, found).read_text() == page
    with pytest.raises(NotWrittenError):
        write_simulation(tmp_path / "no" / "such.html", found)


def test_an_empty_answer_has_a_page_too() -> None:
    assert "no numbers" not in as_page(shown(of_file([])))
