"""The answer of /v1/stats as tables and lines; see screens.py."""

from collections.abc import Mapping
from typing import Any

from daemon.printing import Column, number, say, show_pairs, show_table, when, words

Json = Mapping[str, Any]


def statistics(found: Json) -> None:
    """Totals, task types, feedback, trends, issues and advice."""
    learned, told = found["learning"], found["feedback"]
    recent, completed = learned["recent"], found["completed"]
    show_pairs(
        [
            ("recent", f"since {when(found['window']['since'])} UTC"),
            (
                "outputs",
                f"{learned['outputs']:,}, of them {learned['approved']:,} approved,"
                f" {learned['rejected']:,} rejected, {learned['held']:,} held",
            ),
            ("recent outputs", f"{recent['outputs']:,}, {recent['auto_approved']:,} auto-approved"),
            ("recently judged", _judged(recent["by_people"])),
            ("judged ever", _judged(learned["by_people"])),
            (
                "confidence",
                f"{_mean(recent['avg_confidence'])}, ever {_mean(learned['avg_confidence'])}",
            ),
            ("feedback", f"{told['recent']:,} recently, {told['total']:,} ever"),
            ("average rating", _mean(told["avg_rating"])),
            (
                "runs",
                f"{learned['finetune_jobs']:,} planned ever, {found['active']['total']:,} active,"
                f" {completed['total']:,} completed,"
                f" success rate: {_share(completed['success_rate'])}",
            ),
            ("queued", f"{found['queue']['total']:,}"),
            ("champions", found["models"]),
            ("last updated", when(learned["last_updated"])),
        ]
    )
    say("")
    if learned["by_task_type"]:
        _task_types(learned["by_task_type"])
    _trends(found)
    _listed("Issues", told["common_issues"], "none that feedback shows", _issue)
    _listed("Recommendations", found["recommendations"], "nothing to recommend", _advice)


def _task_types(found: Mapping[str, Json]) -> None:
    show_table(
        [
            Column("task type"),
            number("outputs"),
            number("approved"),
            number("confidence"),
            number("recent"),
            number("judged"),
            number("success"),
            number("rating"),
        ],
        [
            (
                name,
                f"{one['outputs']:,}",
                f"{one['approved']:,}",
                _mean(one["avg_confidence"]),
                f"{one['recent']['outputs']:,}",
                one["recent"]["by_people"]["approved"] + one["recent"]["by_people"]["rejected"],
                _share(one["recent"]["by_people"]["success_rate"]),
                _mean(one["recent"]["avg_rating"]),
            )
            for name, one in sorted(found.items())
        ],
    )


def _trends(found: Json) -> None:
    """What is clear in words, the rest counted."""
    trends = found["feedback"]["improvement_trends"]
    clear = [one for one in trends if one["direction"] in ("improving", "worsening")]
    if clear:
        show_table(
            [Column("trend of"), Column("task type"), Column("is"), words("numbers")],
            [
                (one["about"], one["task_type"] or "all", one["direction"], one["reason"])
                for one in clear
            ],
        )
    unclear = sum(one["direction"] == "no clear trend" for one in trends)
    too_little = [one for one in trends if one["direction"] == "too little data"]
    least = f", such as {_named(too_little[0])}: {too_little[0]['reason']}" if too_little else ""
    too_few = f"{len(too_little)} with too little data{least}"
    say(f"trends: {len(clear)} clear, {unclear} not clear, {too_few}")
    say("")


def _named(trend: Json) -> str:
    return f"{trend['about']} of {trend['task_type'] or 'all'}"


def _listed(head: str, found: Any, without: str, told: Any) -> None:
    if not found:
        say(f"{head.lower()}: {without}")
        return
    say(head)
    for one in found:
        say(f"  {told(one)}")


def _issue(one: Json) -> str:
    return f"{one['name']}: {one['reason']}"


def _advice(one: Json) -> str:
    return f"{one['advice']}: {one['because']}\n    {one['command']}"


def _judged(one: Json) -> str:
    n = one["approved"] + one["rejected"]
    if one["success_rate"] is None:
        return f"{n} of {one['needed']} verdicts by people needed for a rate: counts as healthy"
    verdict = "healthy" if one["is_healthy"] else "not healthy"
    return f"{one['success_rate']:.0%}: {one['approved']:,} of {n:,} approved by people, {verdict}"


def _share(rate: float | None) -> str:
    return "no data" if rate is None else f"{rate:.0%}"


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
