"""What `learnd settings` shows a person: settings, changes of them, and one that was made."""

import json
from collections.abc import Sequence
from typing import Any

from daemon.exit_status import ExitStatus
from daemon.printing import Column, number, say, show_table, text_of, when, words
from learning.errors import LearningError

Json = Any
AS_CONFIGURED = "as configured"


class NotShownError(LearningError):
    """No setting has this key, or it is one of a line or a mapping that is not set."""

    exit_status = ExitStatus.REFUSED

    def __init__(self, key: str) -> None:
        super().__init__(f"no setting {key} is set; `learnd settings get` lists those that are")


def only(found: Json, keys: Sequence[str]) -> Json:
    """The answer with the settings of some keys or sections; all without keys.

    Raises NotShownError.
    """
    if not keys:
        return found
    chosen: dict[str, Json] = {}
    for key in keys:
        below = [
            one
            for one in found["settings"]
            if one["key"] == key or one["key"].startswith(f"{key}.")
        ]
        if not below:
            raise NotShownError(key)
        chosen |= {one["key"]: one for one in below}
    return {**found, "settings": list(chosen.values())}


def settings(found: Json) -> None:
    """Settings, and the revision to name when they are changed."""
    show_table(
        [Column("setting"), words("value"), Column("live"), words("source")],
        [
            (one["key"], one["value"], "yes" if one["changeable"] else "", one["source"])
            for one in found["settings"]
        ],
    )
    say(f"Revision {found['revision']}. Those marked live: `learnd settings set KEY=VALUE`.")
    if found["fault"]:
        say(f"warning: {found['fault']}")


def changed(done: Json) -> None:
    """A change that was made just now."""
    if done["undoes"] is not None:
        say(f"revision {done['undoes']} is undone")
    for move in done["moves"]:
        say(_move(move))
    say(f"Revision {done['revision']}; `learnd settings undo` takes it back.")


def history(listed: Sequence[Json]) -> None:
    """Changes, newest first."""
    if not listed:
        say("No setting was changed at run time yet.")
        return
    show_table(
        [
            number("revision"),
            Column("at (UTC)"),
            Column("by"),
            words("what"),
            words("why"),
            Column("undone by"),
        ],
        [
            (
                one["revision"],
                when(one["at"]),
                one["actor"],
                "; ".join(_move(move) for move in one["moves"]),
                _why(one),
                one["undone_by"] or "",
            )
            for one in listed
        ],
    )


def _why(change: Json) -> str:
    undone = f"undoes {change['undoes']}" if change["undoes"] is not None else ""
    return ": ".join(part for part in (undone, change["reason"]) if part)


def _move(move: Json) -> str:
    return f"{'.'.join(move['path'])}: {_value(move['before'])} -> {_value(move['after'])}"


def _value(value: Any) -> str:
    if value is None:
        return AS_CONFIGURED
    return value if isinstance(value, str) else json.dumps(value)


def adaptation(found: Sequence[Json]) -> None:
    """The answer of /v1/settings/adaptation."""
    show_table(
        [Column("setting"), Column("next"), Column("cause"), words("because")],
        [
            (
                one["key"],
                "stays" if one["step"] is None else _step(one["step"]["value"]),
                one["cause"],
                one["reason"],
            )
            for one in found
        ],
    )


def _step(value: Any) -> str:
    return "goes back" if value is None else f"becomes {text_of(value)}"
