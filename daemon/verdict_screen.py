"""The answer about a live verdict as tables and lines; see screens.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from daemon.printing import Column, number, say, show_pairs, show_table, when, words
from learning.live_verdict import e_in_words

Json = Mapping[str, Any]

MOST_SHOWN = 12
WORDS = {
    "no_predecessor": "nothing to compare with",
    "collecting": "too few verdicts yet",
    "open": "open",
    "worse": "worse than the version before it",
    "settled": "settled",
}


def verdict(found: Json) -> None:
    """The answer of /v1/models/{line}/verdict."""
    told = found["verdict"]
    role = "champion" if found["is_champion"] else "not the champion"
    show_pairs(
        [
            ("version", f"{found['line']} {found['version']} ({role})"),
            ("verdict", WORDS.get(told["standing"], told["standing"])),
            ("because", told["reason"]),
            *_evidence(told),
            ("canary share", f"{found['canary_share']:.0%} to {found['predecessor']}")
            if found["canary_share"]
            else ("canary share", "0%"),
            ("automatic rollback", "on" if found["automatic_rollback"] else "off"),
            *((("held back", found["obstacle"]),) if found["obstacle"] else ()),
        ]
    )
    say("")
    _approvals(found["approvals"])
    _looks(found["looks"])
    _rollbacks(found["rollbacks"])


def _evidence(told: Json) -> Sequence[tuple[str, str]]:
    if told["standing"] == "no_predecessor":
        return ()
    rows = [("evidence", f"{e_in_words(told['log_e'])} of {e_in_words(told['threshold'])}")]
    if told["log_e_without_one"] is not None:
        rows.append(
            (
                "without one producer",
                f"{e_in_words(told['log_e_without_one'])}"
                f" of {e_in_words(told['threshold_without_one'])}"
                f" (without {told['decisive_producer'] or 'the smaller ones'})",
            )
        )
    if told["at_least"] is not None:
        rows.append(("needed at least", f"{told['at_least']:,} more verdicts"))
    return rows


def _approvals(approvals: Sequence[Json]) -> None:
    show_table(
        [
            Column("version"),
            number("verdicts"),
            number("approved"),
            Column("rate"),
            words("by producer"),
        ],
        [
            (
                one["version"],
                f"{one['n']:,}",
                f"{one['yes']:,}",
                f"{one['rate']:.1%} ({one['low']:.1%} to {one['high']:.1%})"
                if one["rate"] is not None
                else "-",
                ", ".join(
                    f"{name or 'others'} {counts['yes']:,}/{counts['n']:,}"
                    for name, counts in one["by_producer"].items()
                ),
            )
            for one in approvals
        ],
    )


def _looks(looks: Sequence[Json]) -> None:
    if not looks:
        return
    show_table(
        [Column("evidence at"), number("verdicts"), number("rate"), number("before"), number("e")],
        [
            (
                when(one["at"]),
                f"{one['n']:,}",
                f"{one['yes'] / one['n']:.1%}",
                f"{one['before_yes'] / one['before_n']:.1%}" if one["before_n"] else "-",
                e_in_words(one["log_e"]),
            )
            for one in looks[-MOST_SHOWN:]
        ],
    )


def _rollbacks(rollbacks: Sequence[Json]) -> None:
    if not rollbacks:
        return
    show_table(
        [Column("rolled back"), Column("from"), Column("to"), Column("by"), words("because")],
        [
            (when(one["at"]), one["left"], one["to"], one["actor"], one["reason"])
            for one in rollbacks
        ],
    )
