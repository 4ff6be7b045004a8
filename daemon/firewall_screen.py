"""What the firewall stopped as tables and lines; see screens.py."""

from collections.abc import Mapping
from typing import Any

from daemon.printing import Column, number, say, show_table, words


def firewall(found: Mapping[str, Any]) -> None:
    """The answer of /v1/firewall."""
    ever = found["ever"]
    told = ", ".join(f"{n:,} {rule}" for rule, n in sorted(ever.items())) or "nothing"
    say(f"stopped since the beginning: {told}")
    if not found["groups"]:
        say("nothing was stopped in the last 24 hours")
        return
    show_table(
        [Column("rule"), Column("producer"), number("stopped"), number("waiting")],
        [
            (one["rule"], one["producer"], f"{one['count']:,}", f"{one['waiting']:,}")
            for one in found["groups"]
        ],
        title="In the last 24 hours" + (", at least" if found["is_cut"] else ""),
    )
    show_table(
        [number("event"), Column("task type"), words("why the newest were stopped")],
        [
            (str(event["id"]), event["task_type"], event["reason"])
            for one in found["groups"]
            for event in one["examples"]
        ],
    )
    say("")
    for one in found["groups"]:
        if one["waiting"]:
            say(one["release"])


def released(found: Mapping[str, Any]) -> None:
    """The answer of /v1/firewall/release."""
    more = "; more wait, release again to go on" if found["more"] else ""
    say(f"{found['count']} events are queued now{more}")
