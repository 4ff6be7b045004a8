"""What `learnd dataset` prints: findings by line, distributions as bars."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from daemon.printing import Column, number, say, show_pairs, show_table, words
from finetune.datasets.derived_files import Converted, Made
from finetune.datasets.examination import Examination, Findings
from finetune.datasets.flaws import ADVICE, BadLine, Flaw
from finetune.datasets.lengths import Bar, Distribution

BAR_CELLS = 40
MOST_BARS = 24


def as_json(examined: Examination, made: Made | None) -> Mapping[str, Any]:
    """An examination for scripts; bad lines with what to do about them."""
    told = {
        name: value for name, value in vars(examined).items() if name not in ("unwanted", "bad")
    }
    for name in ("duplicates", "near_duplicates", "leaks"):
        findings: Findings[Any] = told[name]
        told[name] = {"n": findings.n, "listed": [one._asdict() for one in findings.listed]}
    for name in ("characters", "tokens"):
        told[name] = {part: asdict(sizes) for part, sizes in told[name].items()}
    listed = [{**asdict(line), "advice": line.advice} for line in examined.bad.listed]
    return {
        **told,
        "bad": {"n": examined.bad.n, "listed": listed},
        "written": asdict(made) if made is not None else None,
    }


def examination(examined: Examination, made: Made | None, *, shown: int) -> None:
    """What `learnd dataset validate` found; of each kind at most `shown`."""
    _bad_lines(examined.bad.listed[:shown], examined.flaws)
    _more(examined.bad, shown)
    _findings(
        "Rows that an earlier row repeats",
        examined.duplicates,
        shown,
        [number("line"), number("is line")],
        lambda one: (one.line, one.of_line),
    )
    _findings(
        "Rows that are nearly an earlier row",
        examined.near_duplicates,
        shown,
        [number("line"), number("is like line"), number("likeness")],
        lambda one: (one.line, one.of_line, one.likeness),
    )
    _findings(
        "Rows that leak from another file",
        examined.leaks,
        shown,
        [number("line"), Column("how"), number("of line"), words("of file")],
        lambda one: (one.line, one.how, one.of_line, one.of_file),
    )
    _summary(examined)
    if made is not None:
        say(f"{made.rows:,} rows written to {made.file}")


def statistics(examined: Examination) -> None:
    """What `learnd dataset stats` counted, with histograms."""
    _summary(examined)
    say("")
    for unit, sizes in (("characters", examined.characters), ("tokens", examined.tokens)):
        for part, distribution in sizes.items():
            _histogram(f"{part}, in {unit}", distribution)
    if examined.tokens:
        say("Tokens are those of the texts; a chat template adds a few for each message.")


def converted(found: Converted, *, shown: int) -> None:
    """What `learnd dataset convert` wrote."""
    flaws: dict[str, int] = {line.flaw: 0 for line in found.bad}
    _bad_lines(found.bad[:shown], flaws)
    if found.n_bad > shown:
        say(f"and {found.n_bad - min(shown, len(found.bad)):,} more\n")
    left_out = f", {found.left_out:,} bad answers left out" if found.left_out else ""
    bad = f", {found.n_bad:,} bad lines passed over" if found.n_bad else ""
    say(
        f"{found.made.rows:,} rows of {found.to} written to {found.made.file},"
        f" from {found.format}{left_out}{bad}"
    )


def split(told: Mapping[str, Any]) -> None:
    """What `learnd dataset split` wrote."""
    if any(told["strata"]):
        show_table(
            [Column("stratum"), number("train"), number("held out")],
            [(name or "-", one["train"], one["held_out"]) for name, one in told["strata"].items()],
        )
    if told["bad_lines"]:
        say(f"{told['bad_lines']:,} bad lines passed over; `learnd dataset validate` names them")
    if told["largest_group"] > 1:
        say(f"The largest group of rows that are alike has {told['largest_group']:,} of them.")
    for side in ("train", "validation"):
        say(f"{told[side]['rows']:,} rows written to {told[side]['file']}")


def _bad_lines(lines: Sequence[BadLine], flaws: Mapping[str, int]) -> None:
    if not lines:
        return
    show_table(
        [number("line"), Column("what"), words("why it is no example")],
        [(line.line, line.flaw, line.detail) for line in lines],
        title="Bad lines",
    )
    show_pairs([(flaw, ADVICE[Flaw(flaw)]) for flaw in flaws])
    say("")


def _findings(
    title: str,
    findings: Findings[Any],
    shown: int,
    columns: Sequence[Column],
    cells: Any,
) -> None:
    if not findings.n or not shown:
        return
    show_table(columns, [cells(one) for one in findings.listed[:shown]], title=title)
    _more(findings, shown)


def _more(findings: Findings[Any], shown: int) -> None:
    told = min(shown, len(findings.listed))
    if told and findings.n > told:
        say(f"and {findings.n - told:,} more; --show lists more of them, --json up to 1,000\n")


def _summary(examined: Examination) -> None:
    show_pairs(
        [
            ("file", examined.file),
            ("format", examined.format),
            ("good rows", f"{examined.good:,}"),
            ("bad lines", f"{examined.bad.n:,}"),
            ("duplicates", f"{examined.duplicates.n:,}"),
            ("near-duplicates", f"{examined.near_duplicates.n:,}" if examined.near else None),
            ("repeated prompts", f"{examined.repeated_prompts:,}"),
            ("leaks", f"{examined.leaks.n:,}" if examined.against else None),
            ("task types", examined.task_types or None),
            ("system prompts", f"{examined.with_system_prompt:,} rows have one"),
            ("several rounds", f"{examined.answers_before:,} rows have them"),
            *(_lengths("characters", examined.characters) if examined.good else ()),
            *(_lengths("tokens", examined.tokens) if examined.good else ()),
        ]
    )


def _lengths(unit: str, sizes: Mapping[str, Distribution]) -> Sequence[tuple[str, str | None]]:
    told: list[tuple[str, str | None]] = []
    for part, one in sizes.items():
        told.append(
            (
                f"{part} {unit}",
                f"mean {one.mean:,.1f}, half up to {one.p50:,}, 95 % up to {one.p95:,},"
                f" longest {one.longest:,}",
            )
        )
        if one.limit is not None:
            told.append(
                (
                    f"longer than {one.limit:,}",
                    f"{one.above_limit:,} of {one.rows:,} rows"
                    f" ({one.above_limit / max(1, one.rows):.1%})",
                )
            )
    return told


def _histogram(title: str, distribution: Distribution) -> None:
    bars = distribution.histogram[:MOST_BARS]
    most = max((bar.rows for bar in bars), default=0)
    show_table(
        [number(title), number("rows"), Column("")],
        [(_range(bar), f"{bar.rows:,}", _drawn(bar.rows / most)) for bar in bars],
    )


def _range(bar: Bar) -> str:
    return f"{bar.low:,} - {bar.high:,}" if bar.high > bar.low else f"{bar.low:,}"


def _drawn(share: float) -> str:
    """A bar of up to BAR_CELLS cells, to an eighth of one."""
    eighths = round(share * BAR_CELLS * 8)
    if share > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
