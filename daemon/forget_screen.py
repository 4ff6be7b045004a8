"""What was forgotten, or would be, for a person to read.

Takes the API's JSON and prints; asks nothing and decides nothing.
"""

from collections.abc import Mapping
from typing import Any

from daemon.printing import Column, say, show_pairs, show_table, some_of

Json = Mapping[str, Any]


def would_forget(found: Json) -> None:
    """The answer of /v1/forget to a dry run."""
    if not _anything(found):
        say("There is nothing to forget: nothing of it is stored, or it is forgotten already.")
        return
    say("This would be forgotten, for good:")
    _counts(found)
    _versions(found, "Versions that know it, and would be tainted")
    champions = [
        f"{one['line']}@{one['version']}" for one in found["versions"] if one["was_champion"]
    ]
    if champions:
        say(f"A clean ancestor would be champion in the place of {some_of(champions)}.")


def forgot_it(found: Json) -> None:
    """The answer of /v1/forget."""
    if not _anything(found):
        say("Nothing was left to forget.")
    else:
        say(f"Forgotten (forgetting {found['forgetting_id']}):")
        _counts(found)
        _versions(found, "Versions that knew it, and are tainted now")
    for moved in found["champions"]:
        say(f"{moved['line']}: {moved['version']} is the champion now, {moved['left']} was.")
    for again in found["learned_again"]:
        batch = again["batch"]
        say(
            f"{again['line']}: {again['reason']}"
            if batch is None
            else f"{again['line']}: {batch['n_retry']} events are learned again, run"
            f" {batch['run_id']}"
        )
    if found["pending"]:
        say(f"The files of {some_of(found['pending'])} go as soon as these runs are over.")
    if not found["scrubbed"]:
        say("Readers were in the way: the database's log is cleared by the next forgetting.")


def _anything(found: Json) -> bool:
    return any(found["counts"].values()) or bool(found["versions"] or found["runs"])


def _counts(found: Json) -> None:
    counts = found["counts"]
    show_pairs(
        [
            ("  outputs", counts["outputs"]),
            ("  feedback", counts["feedback"]),
            ("  dead letters", counts["dead_letters"]),
            ("  held-out examples", counts["held_out"]),
            ("  runs called off", some_of(found["runs"]) or None),
            ("  files of runs", some_of(found["files"]) or None),
            ("  weights", some_of(found["artifacts"]) or None),
        ]
    )
    say("")


def _versions(found: Json, title: str) -> None:
    if not found["versions"]:
        say("No version knows it.")
        return
    show_table(
        [Column("version"), Column("was")],
        [
            (
                f"{one['line']}@{one['version']}",
                "champion" if one["was_champion"] else one["state"],
            )
            for one in found["versions"]
        ],
        title=title,
    )
