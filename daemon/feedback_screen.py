"""The answers about what feedback has changed, as tables and lines; see screens.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.printing import Column, number, say, show_pairs, show_table, when, words

Json = Mapping[str, Any]


def every_task_type(found: Sequence[Json]) -> None:
    """The answer of /v1/feedback/loop."""
    heard = [one for one in found if one["feedback"] or _is_turned(one)]
    if not heard:
        say("No feedback has counted yet: every bar is as configured.")
        return
    show_table(
        [
            Column("task type"),
            number("bar"),
            number("auto bar"),
            number("trust"),
            number("weight"),
            Column("mood"),
            number("score"),
            number("feedback"),
        ],
        [
            (
                one["task_type"],
                _bar(one["min_confidence"], one["offset"]),
                f"{one['feedback_threshold']:g}",
                f"{one['trust']:.2f}",
                f"{one['weight']:.2f}",
                one["mood"],
                _score(one),
                f"{one['feedback']:,}",
            )
            for one in heard
        ],
    )
    quiet = len(found) - len(heard)
    if quiet:
        say(f"The others ({quiet}) have had none, and are as configured.")
    say("`learnd feedback TASK_TYPE` shows what brought one there; `learnd feedback reset` undoes.")


def task_type(found: Json) -> None:
    """The answers of /v1/feedback/loop/TASK_TYPE and /v1/feedback/effects."""
    loop, effects = found["loop"], found["effects"]
    distrusted = ", ".join(f"{name} ({trust})" for name, trust in loop["distrusted"].items())
    style = ", ".join(f"{mood} {weight:.2f}" for mood, weight in loop["style"].items())
    show_pairs(
        [
            ("task type", loop["task_type"]),
            ("bar", _bar(loop["min_confidence"], loop["offset"])),
            ("bar of auto-approval", f"{loop['feedback_threshold']:g}"),
            ("trust", f"{loop['trust']:.2f}"),
            ("distrusted producers", distrusted or None),
            ("weight", f"{loop['weight']:.2f}"),
            ("style", style or None),
            ("adds to prompts", loop["sentence"] or None),
            ("feedback that counted", f"{loop['feedback']:,}"),
            (
                "evidence",
                f"{loop['evidence']:g} of {loop['evidence_needed']} that are needed, of"
                f" {loop['producers']} producers",
            ),
            ("score", _score(loop)),
            *((f"  {name}", f"{value:+.2f}") for name, value in loop["signals"].items()),
        ]
    )
    if not effects:
        return
    say("")
    show_table(
        [Column("at (UTC)"), Column("what"), Column("before -> after"), words("why"), Column("by")],
        [
            (
                when(one["at"]),
                f"{one['change']}{' of ' + one['subject'] if one['subject'] else ''}",
                f"{one['before']:g} -> {one['after']:g}" if one["done"] else "-",
                one["reason"],
                one["actor"],
            )
            for one in effects
        ],
    )


def reset(found: Json) -> None:
    """The answer of /v1/feedback/reset."""
    say(
        f"{found['task_type']}: taken back, {found['dials']} things were turned ({found['reason']})"
    )


def _is_turned(one: Json) -> bool:
    at_rest = (one["offset"], one["trust"], one["weight"]) == (0, 0.5, 1)
    return bool(not at_rest or one["style"] or one["distrusted"])


def _bar(bar: float, offset: float) -> str:
    return f"{bar:g} ({offset:+g})" if offset else f"{bar:g}"


def _score(one: Json) -> str:
    return "too little" if one["score"] is None else f"{one['score']:+.2f}"
