"""The answer of a simulation as tables and lines; see screens.py."""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from daemon.api.ports import Source
from daemon.printing import Column, number, say, show_table, when, words
from learning.batching import Trigger
from learning.budget import shown
from learning.simulation import Became

Json = Mapping[str, Any]
Row = tuple[str, str, str, str]
"""What is compared, what did happen, what would have, and the difference."""


def simulated(found: Json) -> None:
    """The answer of /v1/simulations."""
    report = found["report"]
    for line in heading(found):
        say(line)
    if not report["arrived"] + report["carried"]:
        say("there is no output in this time: nothing to simulate")
        _show_left_out(found)
        return
    say("")
    if found["settings"]:
        show_table(
            [Column("setting"), words("today"), words("simulated")],
            [(one["key"], one["today"], one["simulated"]) for one in found["settings"]],
        )
    show_table(
        [Column(""), *(number(name) for name in heads(found))],
        compared(report["total"], report["currency"]),
    )
    if report["changes"]:
        show_table([Column("what became of events"), number("events")], changes(report))
    if len(report["lines"]) > 1:
        show_table(
            [Column("line"), number("accepted"), number("batches"), number("runs"), words("cost")],
            by_line(report),
        )
    for note in report["notes"]:
        say(f"- {note}")
    _show_left_out(found)


def heading(found: Json) -> Iterator[str]:
    """How far to trust it, and what was replayed."""
    report, control = found["report"], found["report"]["control"]
    if found["source"] == Source.RECORD:
        yield f"reproduces {control['reproduced']:,} of {control['verdicts']:,} verdicts"
        if control["reproduced"] < control["verdicts"]:
            yield from _why_not(found, control)
    else:
        yield "a file has no verdicts: beside the simulation stands what today's settings would do"
    waited = f", {report['carried']:,} had waited since before" if report["carried"] else ""
    yield (
        f"{when(report['since'])} to {when(report['until'])} (UTC):"
        f" {report['arrived']:,} outputs arrived{waited}; {report['feedback']:,} feedback"
    )


def heads(found: Json) -> tuple[str, str, str]:
    """Over the columns of `compared`."""
    recorded = found["source"] == Source.RECORD
    return "did happen" if recorded else "today", "would have", "difference"


def compared(sides: Json, currency: str) -> list[Row]:
    """One row for each figure that is not nothing on both sides."""
    before, after = sides["recorded"], sides["simulated"]
    rows = [
        *((kind.value, before[kind], after[kind]) for kind in Became),
        ("batches", _total(before["batches"]), _total(after["batches"])),
        *(
            (
                f"batches by {trigger}",
                before["batches"].get(trigger, 0),
                after["batches"].get(trigger, 0),
            )
            for trigger in Trigger
        ),
        ("events in batches", before["sealed"], after["sealed"]),
        ("events to train", before["trained"], after["trained"]),
        ("events held out", before["held_out"], after["held_out"]),
        ("repeated beside them", before["repeated"], after["repeated"]),
        ("runs launched", before["launched"], after["launched"]),
    ]
    found = [
        (name, f"{one:,}", f"{other:,}", f"{other - one:+,}" if other != one else "")
        for name, one, other in rows
        if one or other or name == Became.ACCEPTED
    ]
    spent, cost = Decimal(before["spent"]), Decimal(after["spent"])
    if spent or cost:
        more = cost - spent
        sign = "+" if more > 0 else "-" if more else ""
        difference = f"{sign}{shown(abs(more), currency)}" if more else ""
        found.append(("cost", shown(spent, currency), shown(cost, currency), difference))
    return found


def changes(report: Json) -> list[tuple[str, str]]:
    """How many events would have become something else."""
    return [
        (f"{one['recorded']} -> {one['simulated']}", f"{one['events']:,}")
        for one in report["changes"]
    ]


def by_line(report: Json) -> list[Sequence[str]]:
    """The figures that matter most, for each line."""
    return [
        (
            name,
            _pair(sides["recorded"]["accepted"], sides["simulated"]["accepted"]),
            _pair(_total(sides["recorded"]["batches"]), _total(sides["simulated"]["batches"])),
            _pair(sides["recorded"]["launched"], sides["simulated"]["launched"]),
            " -> ".join(
                shown(Decimal(sides[side]["spent"]), report["currency"])
                for side in ("recorded", "simulated")
            ),
        )
        for name, sides in report["lines"].items()
    ]


def _why_not(found: Json, control: Json) -> Iterator[str]:
    if found["setting_changes"]:
        yield (
            f"settings were changed {found['setting_changes']} times in this time: of verdicts from"
            " before, what did happen is compared with what today's settings would do"
        )
    for one in control["differences"]:
        yield (
            f"  event {one['id']}: the record says {one['recorded']}, today's settings say"
            f" {one['replayed']}"
        )


def _show_left_out(found: Json) -> None:
    left_out = found["left_out"]
    if left_out is None:
        return
    if left_out["duplicates"]:
        say(f"- {left_out['duplicates']:,} lines repeat an event that stands before")
    if left_out["n_refused"]:
        say(f"- {left_out['n_refused']:,} lines are no events, and were left out; the first:")
        show_table([number("line"), words("why")], left_out["refused"])


def _pair(one: int, other: int) -> str:
    return f"{one:,}" if one == other else f"{one:,} -> {other:,}"


def _total(counts: Mapping[str, int]) -> int:
    return sum(counts.values())
