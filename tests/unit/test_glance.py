"""What `learnd status --watch` shows of recorded answers, at every size."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from daemon.glance import WIDEST, Answers, Glance
from daemon.watching import IntakeRate
from tests.answers import fact, health, line, run, status

URL = "http://127.0.0.1:8700"
STEERING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def glance(**told: Any) -> Glance:
    """A glance at a line that trains, unless told otherwise."""
    answers = Answers(
        status=told.pop("status", status(runs=[run()])),
        health=told.pop("health", health()),
        lag=told.pop("lag", 1_204),
        facts=told.pop("facts", [fact("coding: batch b-1 sealed by size")]),
    )
    return Glance(URL, answers, told.pop("stored_per_second", 12.4), **told)


def shown(glance: Glance, width: int = 80, height: int = 24) -> list[str]:
    """The lines that a terminal of this size shows."""
    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True
    )
    console.print(glance)
    return console.export_text().rstrip("\n").split("\n")


def many() -> Glance:
    """More of everything than 24 lines hold."""
    names = [f"type-{n}" for n in range(12)]
    return glance(
        status=status(
            lines=[line(name) for name in names],
            runs=[run(name) for name in names],
            queued=dict.fromkeys(names, 13),
        ),
        health=health(consumer="not reading yet: is the broker reachable?"),
        facts=[fact(f"fact {n}") for n in range(50)],
    )


def test_a_screenful_has_the_loop_at_a_glance() -> None:
    assert shown(glance()) == [
        "learnd  http://127.0.0.1:8700                              healthy  12:00:30 UTC",
        "intake 12.4/s   lag 1,204   queued 13   held 3   dead letters 2",
        "",
        "queue                        waiting   oldest",
        "  coding   ━━━━━━━━━━──────  13 of 20  2 min 5 s",
        "",
        "runs                         step      state",
        "  coding   ━━━━━━──────────  34 of 90  running  loss 1.234, 1 min 15 s left",
        "",
        "champions         for         held out  last decision",
        "  coding   1.0.3  2 h 15 min  32 of 32  1.0.3 promote -16% loss  better on 32 r…",
        "",
        "lately",
        "  12:00:30  coding: batch b-1 sealed by size",
    ]


def test_a_daemon_with_nothing_to_show_says_so() -> None:
    nothing = status(lines=[], queued={}, outputs={}, dead_letters={}, feedback={})

    lines = shown(glance(status=nothing, facts=[], lag=None, stored_per_second=None))

    assert lines[1] == "intake -   lag -   queued 0   held 0   dead letters 0"
    assert [text for text in lines if text.startswith("  ")] == [
        "  nothing waits",
        "  nothing is being trained",
        "  no model line has a version yet",
        "  nothing since the daemon was started",
    ]


@pytest.mark.parametrize("width", [1, 20, 40, 80, 119, 200])
@pytest.mark.parametrize("height", [1, 3, 10, 24, 60])
def test_a_glance_fits_whatever_terminal_there_is(width: int, height: int) -> None:
    for one in (glance(), many()):
        lines = one.lines(width, height)
        assert len(lines) <= height
        assert all(text.cell_len <= min(width, WIDEST) for text in lines)


def test_what_has_no_room_is_counted_and_no_section_is_lost() -> None:
    lines = shown(many())

    assert len(lines) == 24
    counted = [int(text.split()[1]) for text in lines if text.startswith("  and")]
    assert sum(counted) + sum("type-" in text for text in lines) == 3 * 12
    for head in ("queue", "runs", "champions", "lately"):
        assert any(text.startswith(head) for text in lines)


def test_a_piped_glance_shows_everything() -> None:
    lines = [text.plain for text in many().lines(100, None)]

    assert sum("34 of 90" in text for text in lines) == 12
    assert sum("fact" in text for text in lines) == 50


def test_what_is_wrong_stands_under_the_head() -> None:
    lines = shown(glance(health=health(consumer="not reading yet", partitions="stuck at 7")))

    assert lines[0].split()[2:4] == ["not", "healthy"]
    assert lines[2:4] == ["! consumer: not reading yet", "! partitions: stuck at 7"]


def test_low_rates_are_told_like_checks() -> None:
    ill = health(healthy=False)
    ill["metrics"]["success_rate"] = 0.4

    assert shown(glance(health=ill))[2] == "! approved by people 40%, needed > 70%"


def test_a_check_that_has_something_to_say_is_heard() -> None:
    """For instance that the consumer pauses because the disk is nearly full."""
    paused = health()
    paused["checks"]["intake"] = {"name": "intake", "ok": True, "detail": "paused: disk is full"}

    assert shown(glance(health=paused))[2] == "! intake: paused: disk is full"


def test_a_line_that_cannot_keep_up_is_a_warning() -> None:
    slow = line()
    slow["batch_size"] |= {"size": 100, "cause": "overloaded", "reason": "100 is the maximum"}

    assert "! coding: batches of 100: 100 is the maximum" in shown(
        glance(status=status(lines=[slow]))
    )


def test_a_daemon_that_went_away_is_told_and_the_last_answer_stays() -> None:
    lines = shown(glance(trouble="no answer since 12:00:30"))

    assert "no answer  12:00:30 UTC" in lines[0]
    assert lines[2] == "! no answer since 12:00:30"
    assert any("13 of 20" in text for text in lines)


def test_a_queue_with_several_task_types_has_a_row_for_each() -> None:
    line_of_two = line("arcade", task_types=["audio", "game"], run_id="r-1")
    two = status(lines=[line_of_two], queued={"audio": 4, "game": 30})

    rows = shown(glance(status=two))[4:6]

    assert rows == [
        "  audio    ━━━─────────────  4 of 20   2 min 5 s  line is busy",
        "  game     ━━━━━━━━━━━━━━━━  30 of 20  2 min 5 s  line is busy",
    ]


def test_a_task_type_without_a_line_still_has_its_row() -> None:
    homeless = status(lines=[], queued={"gone": 4})

    assert shown(glance(status=homeless))[4] == "  gone     ────────────────  4        2 min 5 s"


def test_a_run_that_waits_says_why() -> None:
    waiting = run(state="waiting", progress=None, message="nobody knows\nwhat came of it")

    assert shown(glance(status=status(runs=[waiting])))[7].endswith(
        "waiting  nobody knows what came of it"
    )


@pytest.mark.parametrize(
    ("decision", "said"),
    [
        (None, "none yet"),
        ({"outcome": "abstain", "candidate_loss": None}, "1.0.3 abstain  better"),
        ({"outcome": "reject", "candidate_loss": 2.5}, "1.0.3 reject +100% loss"),
        ({"outcome": "promote", "champion_loss": 0.0}, "1.0.3 promote  better"),
    ],
)
def test_a_gain_is_shown_where_it_was_measured(decision: Any, said: str) -> None:
    one = line()
    one["last_decision"] = decision and one["last_decision"] | decision

    assert any(said in text for text in shown(glance(status=status(lines=[one]))))


def test_text_from_outside_neither_steers_the_terminal_nor_is_markup() -> None:
    bad = "\x1b[2J\x07[bold red]evil[/] \u202e\r\nnext"
    ill = health()
    ill["checks"][bad] = {"name": bad, "ok": False, "detail": bad}
    hostile = glance(
        status=status(
            lines=[line(bad)],
            runs=[run(bad, state="waiting", message=bad)],
            queued={bad: 1},
        ),
        health=ill,
        facts=[fact(bad)],
        trouble=bad,
    )

    lines = shown(hostile, width=120)

    assert len(lines) <= 24
    assert not STEERING.search("\n".join(lines))
    assert sum("[bold red]evil[/]" in text for text in lines) >= 5


def test_no_colour_is_used_when_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, width=80, height=24).print(glance())

    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", screen.getvalue())


def test_the_rate_of_intake_is_that_of_the_last_seconds() -> None:
    rate = IntakeRate()

    def after(n: int, now: float) -> float | None:
        return rate.after(status(dead_letters={"not_json": n}), now)

    assert after(0, 0.0) is None
    assert after(20, 2.0) == 10.0
    assert after(20, 14.0) == pytest.approx(20 / 14)
    assert after(20, 30.0) == 0.0
    assert after(50, 31.0) == pytest.approx(30 / 17)
