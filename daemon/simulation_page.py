"""The answer of a simulation as a page with pictures, which needs no other file and no script."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from daemon.exit_status import ExitStatus
from daemon.printing import when
from daemon.simulation_screen import by_line, changes, compared, heading, heads
from finetune.report.chart import Line, draw
from finetune.report.outline import Picture, Section, Table
from finetune.report.page import page_of
from learning.errors import LearningError

PAGE: Final = "simulation.html"
DATA: Final = "simulation.json"

Json = Mapping[str, Any]

_PICTURES: Final = (
    ("accepted", "Accepted", "outputs"),
    ("held", "Held", "outputs"),
    ("expired", "Expired", "outputs"),
    ("withdrawn", "Withdrawn", "outputs"),
    ("quarantined", "Quarantined", "outputs"),
    ("batches", "Batches", "sealed"),
)
_UNITS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"))


class NotWrittenError(LearningError):
    """The page cannot be written where it should be."""

    exit_status = ExitStatus.USAGE

    def __init__(self, place: Path, error: OSError) -> None:
        super().__init__(f"{place}: {error.strerror or error}")
        self.place = place


def write_simulation(place: Path, found: Json) -> Path:
    """Write the page: into a file that ends with .html, or else into a folder beside its data.

    Returns the page. Raises NotWrittenError.
    """
    try:
        if place.suffix == ".html":
            place.write_text(as_page(found), encoding="utf-8")
            return place
        place.mkdir(parents=True, exist_ok=True)
        contents = {
            PAGE: as_page(found),
            DATA: json.dumps(found, indent=2) + "\n",
            **{f"{one.name}.svg": one.svg for one in pictures_of(found)},
        }
        for name, content in contents.items():
            (place / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise NotWrittenError(place, error) from error
    return place / PAGE


def as_page(found: Json) -> str:
    """The whole page."""
    report = found["report"]
    title = f"Simulation: {when(report['since'])} to {when(report['until'])} (UTC)"
    return page_of(title, list(_sections(found)))


def pictures_of(found: Json) -> Sequence[Picture]:
    """What differs over time, and what there is most to see of."""
    report = found["report"]
    series = report["series"]
    first, second, _ = heads(found)
    unit, places, since = _axis(series)
    per = f"a {_name_of(series['step_seconds'])}"
    pictures = [
        Picture(
            name,
            title,
            draw(
                title,
                f"{what} {per}",
                [
                    Line(first, places, series["recorded"]["counts"][name]),
                    Line(second, places, series["simulated"]["counts"][name]),
                ],
                f"{unit}s since {since}",
            ),
        )
        for name, title, what in _PICTURES
        if any((*series["recorded"]["counts"][name], *series["simulated"]["counts"][name]))
    ]
    spent, cost = (_running(series[side]["spent"]) for side in ("recorded", "simulated"))
    if spent[-1] or cost[-1]:
        lines = [Line(first, places, spent), Line(second, places, cost)]
        svg = draw("Cost so far", report["currency"], lines, f"{unit}s since {since}")
        pictures.append(Picture("cost", "Cost so far", svg))
    return pictures


def _sections(found: Json) -> Iterator[Section]:
    report = found["report"]
    yield Section("What was replayed", list(heading(found)))
    if found["settings"]:
        rows = [(one["key"], one["today"], one["simulated"]) for one in found["settings"]]
        yield Section("Settings", tables=[Table(rows, ("setting", "today", "simulated"))])
    table = Table(compared(report["total"], report["currency"]), ("", *heads(found)))
    tables = [table]
    if report["changes"]:
        tables.append(Table(changes(report), ("what became of events", "events")))
    yield Section("Both sides", tables=tables)
    yield Section("Over time", pictures=pictures_of(found))
    if len(report["lines"]) > 1:
        head = ("line", "accepted", "batches", "runs", "cost")
        yield Section("Lines", tables=[Table(by_line(report), head)])
    yield Section("What was assumed", report["notes"])


def _axis(series: Json) -> tuple[str, list[float], str]:
    """The unit, the places in it, and where it begins."""
    starts = [datetime.fromisoformat(one) for one in series["starts"]]
    length = (starts[-1] - starts[0]).total_seconds()
    seconds, unit = next((one for one in _UNITS if length >= 3 * one[0]), _UNITS[-1])
    places = [(one - starts[0]).total_seconds() / seconds for one in starts]
    return unit, places, f"{starts[0]:%Y-%m-%d %H:%M} UTC"


def _name_of(seconds: int) -> str:
    seconds_of, unit = next(one for one in _UNITS if seconds >= one[0])
    count = seconds // seconds_of
    return unit if count == 1 else f"{count} {unit}s"


def _running(amounts: Sequence[str]) -> list[float]:
    total, found = 0.0, []
    for amount in amounts:
        total += float(amount)
        found.append(total)
    return found
