"""Draw curves as SVG: one picture of lines over steps, as a text.

Pure, and without a plotting library: a daemon that does not train draws the pictures of its
runs too. The same numbers make the same text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 640
HEIGHT: Final = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 44, 44
_COLOURS: Final = ("#1f6feb", "#d9480f", "#2b8a3e")
"""Told apart by those who see no red or green too, in this order."""
_TICKS: Final = 5
_MARKED_POINTS: Final = 40
"""A line of so few points shows each of them."""


@dataclass(frozen=True)
class Line:
    """One line: y over x, of equal lengths. A y of None, or one that is not finite, is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]

    @property
    def points(self) -> Sequence[tuple[float, float]]:
        """Those that can be drawn."""
        return [p for run in self.unbroken for p in run]

    @property
    def unbroken(self) -> Sequence[Sequence[tuple[float, float]]]:
        """The stretches between the gaps."""
        stretches: list[list[tuple[float, float]]] = [[]]
        for x, y in zip(self.x, self.y, strict=True):
            if y is not None and math.isfinite(y):
                stretches[-1].append((x, y))
            elif stretches[-1]:
                stretches.append([])
        return [stretch for stretch in stretches if stretch]


@dataclass(frozen=True)
class _Scale:
    """From a number to a place on the picture, and the round numbers in between."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def draw(title: str, unit: str, lines: Sequence[Line], x_name: str = "optimizer step") -> str:
    """An SVG of WIDTH x HEIGHT; `unit` is of the y axis. Says so when there is nothing to draw."""
    drawn = [line for line in lines if line.points]
    body = "".join(_chart(unit, drawn, x_name)) if drawn else _text(WIDTH / 2, 150, "no numbers")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" font-family="sans-serif" font-size="12" fill="#333">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>'
        f"{body}</svg>\n"
    )


def _chart(unit: str, lines: Sequence[Line], x_name: str) -> Iterator[str]:
    points = [point for line in lines for point in line.points]
    right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    x = _scale([x for x, _ in points], _LEFT, right, snug=True)
    y = _scale([y for _, y in points], floor, _TOP, snug=False)
    for tick in y.ticks:
        yield f'<path d="M{_LEFT} {y(tick):.1f}H{right}" stroke="#e3e3e3"/>'
        yield _text(_LEFT - 6, y(tick) + 4, _number(tick), anchor="end")
    for tick in x.ticks:
        yield f'<path d="M{x(tick):.1f} {floor}v4" stroke="#888"/>'
        yield _text(x(tick), floor + 18, _number(tick))
    yield f'<path d="M{_LEFT} {floor}H{right}" stroke="#888"/>'
    yield _text((_LEFT + right) / 2, HEIGHT - 8, x_name)
    yield _text(_LEFT, 36, unit, anchor="start")
    for place, (line, colour) in enumerate(zip(lines, _COLOURS, strict=False)):
        yield from _stroke(line, x, y, colour)
        if len(lines) > 1:
            yield from _legend(place, len(lines), line.name, colour)


def _stroke(line: Line, x: _Scale, y: _Scale, colour: str) -> Iterator[str]:
    for stretch in line.unbroken:
        places = [f"{x(one):.1f},{y(other):.1f}" for one, other in stretch]
        yield (
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}"'
            ' stroke-width="1.8" stroke-linejoin="round"/>'
        )
    if len(line.points) <= _MARKED_POINTS:
        for one, other in line.points:
            yield f'<circle cx="{x(one):.1f}" cy="{y(other):.1f}" r="2.6" fill="{colour}"/>'


def _legend(place: int, of: int, name: str, colour: str) -> Iterator[str]:
    start = WIDTH - _RIGHT - 110 * (of - place)
    yield f'<path d="M{start} 16h18" stroke="{colour}" stroke-width="3"/>'
    yield _text(start + 24, 20, name, anchor="start")


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _scale(values: Sequence[float], start: float, end: float, *, snug: bool) -> _Scale:
    """`snug` is of counts: it ends at the values themselves, and its ticks are whole numbers.
    Otherwise it ends at the round numbers around the values."""
    low, high = min(values), max(values)
    if low == high:
        # One value alone has no extent: some room on both sides, in its own order of magnitude.
        margin = abs(low) * 0.5 or 0.5
        low, high = low - margin, high + margin
    step = _round_step((high - low) / _TICKS)
    if snug:
        step = max(1.0, step)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * count for count in range(first, last + 1)]
    if snug:
        return _Scale(low, high, start, end, [tick for tick in ticks if low <= tick <= high])
    return _Scale(ticks[0], ticks[-1], start, end, ticks)


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _number(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,.6g}"
