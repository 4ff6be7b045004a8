"""A stream of six task types that drifts: what `bench.continual` learns from, and is asked.

Each task type has rules that a model of half a million parameters can learn: a phrase in, a
short notation out, right by construction. The stream drifts in two ways. One task type after
the other has its time, with soft borders; and within that time the phrases change: of a task
type's six kinds three are in use at first, and the other three at the end. Some events are
noise: low confidence and mostly wrong. And one in twenty of the others is wrong, though a
person approved it.

Pure: everything follows from the seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

Example = tuple[str, str]
"""(prompt, output)"""
Kind = Callable[[Random], Example]

NOISE_SHARE: Final = 0.2
"""Approved at low confidence, two in three of them wrong."""
NOISE_WRONG: Final = 2 / 3
WRONG_APPROVALS: Final = 0.05
"""Of the others: wrong, and approved at high confidence."""
WIDTH: Final = 0.08
"""Standard deviation of a task type's time, as a share of the stream."""

_WORDS: Final = (
    "time", "year", "way", "day", "man", "life", "child", "world", "school", "state", "family",
    "group", "country", "hand", "part", "place", "week", "company", "system", "work", "night",
    "point", "home", "water", "room", "area", "money", "story", "fact", "month", "right", "study",
    "book", "eye", "job", "word", "issue", "side", "kind", "head", "house", "friend", "power",
    "hour", "game", "line", "end", "law", "car", "city", "name", "team", "idea", "body", "back",
    "face", "level", "office", "door", "health", "art", "war", "party", "result", "morning",
)  # fmt: skip
_COLOURS: Final = ("red", "green", "blue", "black", "white", "grey", "pink", "gold")


def _pair(rng: Random) -> tuple[str, str]:
    first, second = rng.sample(_WORDS, 2)
    return first, second


def _number(rng: Random) -> int:
    return rng.randrange(2, 100)


def _coding(rng: Random) -> Sequence[Example]:
    (a, b), n = _pair(rng), _number(rng)
    return (
        (f"add {n} to {a}", f"{a} + {n}"),
        (f"multiply {a} by {n}", f"{a} * {n}"),
        (f"is {a} less than {b}", f"{a} < {b}"),
        (f"larger of {a} and {b}", f"max({a}, {b})"),
        (f"length of {a}", f"len({a})"),
        (f"first {n} of {a}", f"{a}[:{n}]"),
    )


def _website(rng: Random) -> Sequence[Example]:
    a, b = _pair(rng)
    return (
        (f"heading {a} {b}", f"<h1>{a} {b}</h1>"),
        (f"paragraph {a}", f"<p>{a}</p>"),
        (f"link {a} to {b}", f"<a {b}>{a}</a>"),
        (f"bold {a} then {b}", f"<b>{a}</b> {b}"),
        (f"list of {a} {b}", f"<li>{a}<li>{b}"),
        (f"image {a} named {b}", f"<img {a} {b}>"),
    )


def _graphics(rng: Random) -> Sequence[Example]:
    n, m = _number(rng), _number(rng)
    colour, other = rng.sample(_COLOURS, 2)
    return (
        (f"{colour} circle of size {n}", f"o {n} #{colour}"),
        (f"{colour} box {n} wide {m} high", f"[{n},{m}] #{colour}"),
        (f"line from {n} to {m}", f"{n}..{m}"),
        (f"blend {colour} and {other}", f"#{colour}#{other}"),
        (f"turn by {n} degrees", f"@{n}"),
        (f"fill with {colour} border {other}", f"[#{other} [#{colour}"),
    )


def _audio(rng: Random) -> Sequence[Example]:
    (a, b), n = _pair(rng), _number(rng)
    return (
        (f"play {a}", f"> {a}"),
        (f"play {a} at volume {n}", f"> {a} v{n}"),
        (f"mix {a} with {b}", f"{a} & {b}"),
        (f"repeat {a} {n} times", f"{a} x{n}"),
        (f"fade {a} into {b}", f"{a} ~ {b}"),
        (f"mute {a} for {n} seconds", f"!{a} {n}s"),
    )


def _game(rng: Random) -> Sequence[Example]:
    (a, b), n = _pair(rng), _number(rng)
    return (
        (f"take the {a}", f"+{a}"),
        (f"drop the {a}", f"-{a}"),
        (f"walk {n} north", f"n{n}"),
        (f"give {a} to {b}", f"{b}+{a}"),
        (f"buy {a} for {n}", f"+{a} ${n}"),
        (f"hit {b} using {a}", f"{b}!{a}"),
    )


def _moderation(rng: Random) -> Sequence[Example]:
    (a, b), n = _pair(rng), _number(rng)
    return (
        (f"ban {a}", f"no {a}"),
        (f"allow {a}", f"ok {a}"),
        (f"warn {a} about {b}", f"{a}? {b}"),
        (f"mask {a}", "*" * len(a)),
        (f"hide {a} for {n} days", f"{a}/{n}"),
        (f"report {b} by {a}", f"{a}: {b}"),
    )


TASKS: Final[Mapping[str, Callable[[Random], Sequence[Example]]]] = {
    "coding": _coding,
    "website": _website,
    "graphics": _graphics,
    "audio": _audio,
    "game": _game,
    "moderation": _moderation,
}
"""In the order in which they have their time."""


@dataclass(frozen=True)
class Event:
    """One output of the stream."""

    task_type: str
    prompt: str
    output: str
    """What was sent."""
    right: str
    confidence: float

    @property
    def clean(self) -> bool:
        """Whether it is right, and confident enough for the policy."""
        return self.output == self.right and self.confidence >= 0.7


def stream(n: int, seed: int) -> list[Event]:
    """`n` events in order. No prompt twice."""
    rng = Random(f"stream {seed}")
    seen: set[str] = set()
    events: list[Event] = []
    while len(events) < n:
        time = len(events) / n
        task_type = rng.choices(list(TASKS), [_share(time, task) for task in TASKS])[0]
        prompt, right = _example(rng, task_type, _age(time, task_type))
        if prompt in seen:
            continue
        seen.add(prompt)
        noise = rng.random() < NOISE_SHARE
        wrong = rng.random() < (NOISE_WRONG if noise else WRONG_APPROVALS)
        confidence = rng.uniform(0.2, 0.65) if noise else rng.uniform(0.75, 0.99)
        output = _wrong(rng, task_type, right) if wrong else right
        events.append(Event(task_type, prompt, output, right, round(confidence, 2)))
    return events


def exam(n_per_task: int, events: Sequence[Event], seed: int) -> list[Event]:
    """Questions about every task type at every age of it, none of which is in the stream."""
    rng = Random(f"exam {seed}")
    seen = {event.prompt for event in events}
    questions: list[Event] = []
    for task_type in TASKS:
        n = 0
        while n < n_per_task:
            prompt, right = _example(rng, task_type, rng.random())
            if prompt not in seen:
                seen.add(prompt)
                questions.append(Event(task_type, prompt, right, right, 1.0))
                n += 1
    return questions


def end_of(task_type: str) -> float:
    """When a task type's time is over, as a share of the stream."""
    return min(1.0, _centre(task_type) + 1.5 * WIDTH)


def _centre(task_type: str) -> float:
    return (list(TASKS).index(task_type) + 0.5) / len(TASKS)


def _share(time: float, task_type: str) -> float:
    return math.exp(-(((time - _centre(task_type)) / WIDTH) ** 2) / 2)


def _age(time: float, task_type: str) -> float:
    """Where in its own time a task type is, in [0, 1]."""
    return min(1.0, max(0.0, (time - _centre(task_type)) / (3 * WIDTH) + 0.5))


def _example(rng: Random, task_type: str, age: float) -> Example:
    kinds = TASKS[task_type](rng)
    half = len(kinds) // 2
    late = rng.random() < age
    return rng.choice(kinds[half:] if late else kinds[:half])


def _wrong(rng: Random, task_type: str, right: str) -> str:
    while True:
        _, other = _example(rng, task_type, rng.random())
        if other != right:
            return other
