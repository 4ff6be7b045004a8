"""The loop at a glance: the daemon's answers as one screenful.

Pure: answers and a size in, text out. It asks nobody; daemon/watching.py does. Whatever came from
outside is shown without control characters and never read as markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from daemon.printing import duration, plain
from daemon.screens import complaints, trainer_state, warnings

Json = Mapping[str, Any]
Row = Sequence[Text]
"""Cells; those of one section stand below each other."""

WIDEST = 120
BAR = 16
GOOD, BAD, WARN, QUIET, STRONG = "green", "red", "yellow", "dim", "bold"
FULL, EMPTY = "━", "─"
GAP = 2
INDENT = 2


@dataclass(frozen=True)
class Answers:
    """What one look at the daemon brought."""

    status: Json
    health: Json
    lag: int | None
    """Records not yet read; None without a consumer."""
    facts: Sequence[Json]
    """Newest first; empty where the daemon is too old to tell."""


@dataclass(frozen=True)
class Glance:
    """One screenful. Fits whatever console renders it; what has no room is counted."""

    url: str
    answers: Answers
    stored_per_second: float | None
    """Outputs, feedback and dead letters together; None until two looks can be compared."""
    trouble: str | None = None
    """Why there is no newer answer than this one."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fill the terminal."""
        yield from self.lines(options.max_width, options.height or console.height)

    def lines(self, width: int, height: int | None) -> list[Text]:
        """At most `height` lines of `width` cells; a height of None shows everything."""
        width = min(width, WIDEST)
        status = self.answers.status
        head = [self._title(width), self._intake(), *self._warnings()]
        sections = [
            _Section(("queue", "", "waiting", "oldest"), _queues(status), "nothing waits"),
            _Section(("runs", "", "step", "state"), _runs(status), "nothing is being trained"),
            _Section(
                ("champions", "", "for", "held out", "last decision"),
                _champions(status),
                "no model line has a version yet",
            ),
            _Section(
                ("lately",),
                _facts(self.answers.facts),
                "nothing since the daemon was started",
                counts=False,
            ),
        ]
        _align(sections[:3])
        if height is not None:
            _share_out(sections, height - len(head))
        shown = head + [line for section in sections for line in section.lines()]
        for line in shown[:height]:
            line.truncate(width, overflow="ellipsis")
        return shown[:height]

    def _title(self, width: int) -> Text:
        health, at = self.answers.health, datetime.fromisoformat(self.answers.status["at"])
        verdict = ("healthy", GOOD) if health["healthy"] else ("not healthy", f"{BAD} bold")
        if self.trouble is not None:
            verdict = ("no answer", f"{BAD} bold")
        left = Text.assemble(("learnd", STRONG), "  ", (one_line(self.url), QUIET))
        right = Text.assemble(verdict, (f"  {at:%H:%M:%S} UTC", QUIET))
        left.truncate(max(0, width - right.cell_len - GAP), overflow="ellipsis", pad=True)
        return Text.assemble(left, " " * GAP, right)

    def _intake(self) -> Text:
        status = self.answers.status
        held = sum(one["states"].get("held", 0) for one in status["outputs"].values())
        dead = sum(status["dead_letters"].values())
        rate = self.stored_per_second
        parts = [
            ("intake", f"{rate:,.1f}/s" if rate is not None else "-", ""),
            ("lag", "-" if self.answers.lag is None else f"{self.answers.lag:,}", ""),
            ("queued", f"{status['stats']['queue']['total']:,}", ""),
            ("held", f"{held:,}", WARN if held else ""),
            ("dead letters", f"{dead:,}", WARN if dead else ""),
        ]
        if (trainer := status.get("trainer")) is not None:
            parts.append(("trainer", trainer_state(trainer), ""))
        return Text("   ").join(
            Text.assemble((f"{name} ", QUIET), (value, style or STRONG))
            for name, value, style in parts
        )

    def _warnings(self) -> list[Text]:
        told = [(self.trouble, BAD)] if self.trouble is not None else []
        told += [(text, BAD) for text in complaints(self.answers.health)]
        told += [(text, WARN) for text in warnings(self.answers.health)]
        told += [
            (f"{one['line']}: batches of {size['size']}: {size['reason']}", WARN)
            for one in self.answers.status["lines"]
            if (size := one.get("batch_size") or {}).get("cause") in ("overloaded", "failing_runs")
        ]
        return [Text(f"! {one_line(text)}", style) for text, style in told]


class _Section:
    """A blank line, a head and rows; `room` is how many lines it may have."""

    def __init__(
        self, heads: Sequence[str], rows: Sequence[Row], without: str, *, counts: bool = True
    ) -> None:
        self.heads = heads
        self.rows = rows
        self._without = without
        self.counts = counts
        """Whether rows that have no room are counted."""
        self.room = 2 + max(1, len(rows))
        self.least = min(self.room, 4)

    def lines(self) -> list[Text]:
        """As many lines as there is room for."""
        if self.room < self.least:
            return []
        head = [Text(self.heads[0], STRONG), *(Text(name, QUIET) for name in self.heads[1:])]
        if not self.rows:
            return [Text(), head[0], Text(f"  {self._without}", QUIET)]
        n_rows = self.room - 2
        is_cut = n_rows < len(self.rows)
        n_shown = n_rows - 1 if is_cut and self.counts else n_rows
        rows = [(Text(" " * INDENT).append_text(row[0]), *row[1:]) for row in self.rows[:n_shown]]
        lines = [Text(), *_columns([head, *rows])]
        if is_cut and self.counts:
            lines.append(Text(f"  and {len(self.rows) - n_shown} more", QUIET))
        return lines


def _align(sections: Sequence[_Section]) -> None:
    """Give the names that begin their rows one width, so that the eye finds a line again."""
    names = [row[0] for section in sections for row in section.rows]
    widest = max(
        *(len(section.heads[0]) - INDENT for section in sections),
        *(name.cell_len for name in names),
    )
    for name in names:
        name.pad_right(widest - name.cell_len)


def _share_out(sections: Sequence[_Section], height: int) -> None:
    """Cut the longest sections until all fit; where nothing helps, the last ones go."""
    while sum(section.room for section in sections) > height:
        long = [section for section in sections if section.room > section.least]
        if long:
            # What is not counted can be read elsewhere, and goes first.
            max(long, key=lambda section: (not section.counts, section.room)).room -= 1
        elif left := [section for section in sections if section.room]:
            left[-1].room = 0
        else:
            return


def _columns(rows: Sequence[Row]) -> list[Text]:
    """Rows with their cells below each other; a row's last cell takes what is left."""
    widths: dict[int, int] = {}
    for row in rows:
        for i, cell in enumerate(row[:-1]):
            widths[i] = max(widths.get(i, 0), cell.cell_len)
    lines = []
    for row in rows:
        line = Text()
        for i, cell in enumerate(row):
            line.append_text(cell)
            if i < len(row) - 1:
                line.append(" " * (widths[i] - cell.cell_len + GAP))
        line.rstrip()
        lines.append(line)
    return lines


def _queues(status: Json) -> list[Row]:
    at = datetime.fromisoformat(status["at"])
    line_of = {
        task_type: one for one in status["lines"] for task_type in one.get("task_types") or ()
    }
    rows: list[Row] = []
    for task_type, waiting in status["stats"]["queue"]["by_type"].items():
        line = line_of.get(task_type)
        size = line["batch_size"]["size"] if line is not None else None
        since = status["oldest_queued_at"].get(task_type)
        age = (at - datetime.fromisoformat(since)).total_seconds() if since else 0.0
        of = f"{waiting:,} of {size:,}" if size is not None else f"{waiting:,}"
        rows.append(
            (
                Text(one_line(task_type)),
                _bar(waiting / size if size else 0.0, GOOD),
                Text(of, STRONG),
                Text(duration(age)),
                Text("line is busy" if line is not None and line["run_id"] else "", QUIET),
            )
        )
    return rows


def _runs(status: Json) -> list[Row]:
    return [_run(run) for run in status["stats"]["active"]["jobs"]]


def _run(run: Json) -> Row:
    progress = run["progress"] or {}
    step, total = progress.get("step") or 0, progress.get("total_steps") or 0
    numbers = progress.get("numbers") or {}
    share = step / total if total else 0.0
    told = []
    if (loss := numbers.get("loss")) is not None:
        told.append(f"loss {loss:.3f}")
    if (left := numbers.get("seconds_left")) is not None and run["state"] == "running":
        told.append(f"{duration(left)} left")
    if run["failures"]:
        told.append(f"attempt {run['attempt']}")
    if run["message"] and run["state"] in ("planned", "waiting"):
        told.append(one_line(run["message"]))
    return (
        Text(one_line(run["line"])),
        _bar(share, "cyan"),
        Text(f"{step:,} of {total:,}" if total else "", STRONG),
        Text(run["state"], WARN if run["state"] == "waiting" else ""),
        Text(", ".join(told), QUIET),
    )


def _champions(status: Json) -> list[Row]:
    at = datetime.fromisoformat(status["at"])
    rows: list[Row] = []
    for one in status["lines"]:
        since = one["champion_since"]
        age = duration((at - datetime.fromisoformat(since)).total_seconds()) if since else ""
        rows.append(
            (
                Text(one_line(one["line"])),
                Text(one["champion"] or "-", STRONG),
                Text(age, QUIET),
                Text(f"{one['held_out']} of {one['wanted_held_out']}"),
                *_verdict(one),
            )
        )
    return rows


def _verdict(line: Json) -> Row:
    if line["base_model"] is None:
        return (Text("no base model: nothing can be trained", WARN),)
    if (last := line["last_decision"]) is None:
        return (Text("none yet", QUIET),)
    style = {"promote": GOOD, "reject": BAD}.get(last["outcome"], WARN)
    return (
        Text(f"{last['version']} {last['outcome']}{_gain(last)}", style),
        Text(one_line(last["reason"]), QUIET),
    )


def _gain(last: Json) -> str:
    """How much lower the candidate's loss was, where both were measured."""
    before, after = last["champion_loss"], last["candidate_loss"]
    if not before or after is None:
        return ""
    return f" {(after - before) / before:+.0%} loss"


def _facts(facts: Sequence[Json]) -> list[Row]:
    return [
        (
            Text(f"{datetime.fromisoformat(fact['at']):%H:%M:%S}", QUIET),
            Text(one_line(fact["text"]), WARN if fact["kind"] in _BAD_NEWS else ""),
        )
        for fact in facts
    ]


_BAD_NEWS = frozenset(
    {"RunFailed", "RolledBack", "EventsForgotten", "TopicRecreated", "EventsStored"}
)


def _bar(share: float, style: str) -> Text:
    done = min(BAR, int(share * BAR))
    return Text.assemble((FULL * done, style), (EMPTY * (BAR - done), QUIET))


def one_line(text: str) -> str:
    """A text from outside on one line, without characters that steer a terminal."""
    return " ".join(plain(str(text)).split())
