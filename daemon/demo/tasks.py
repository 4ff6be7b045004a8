"""The two task types of the demo: prompts with outputs that are right by construction.

``normalize`` turns a noisy search query into its canonical form; ``coding``
turns a phrase into a Python expression. Both are small enough for a model
made in a minute to learn from a few hundred examples, and open enough that
held-out prompts are new to it. The poisoned variants pair a prompt with a
wrong output, for the batch that the gate has to refuse.

Pure: everything follows from the random generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

Example = tuple[str, str]
"""(prompt, output)"""

_CITIES: Final = (
    "paris", "london", "tokyo", "berlin", "madrid", "oslo", "rome", "vienna", "dublin", "lima",
    "cairo", "prague", "geneva", "boston", "seattle", "denver",
)  # fmt: skip
_ITEMS: Final = (
    "shoes", "laptop", "camera", "guitar", "bicycle", "jacket", "lamp", "tent", "headphones",
    "backpack", "keyboard", "watch", "desk", "blender",
)  # fmt: skip
_PLACES: Final = (
    "airport", "station", "museum", "library", "hotel", "bakery", "pharmacy", "market", "cinema",
    "park", "bank", "harbor",
)  # fmt: skip
_TIMES: Final = ("today", "tomorrow", "tonight", "monday", "friday", "sunday")
_FILLERS: Final = ("please", "the", "a", "just", "hey", "kindly")
_SHORT_FORMS: Final = {
    "tomorrow": "tmrw",
    "tonight": "2nite",
    "information": "info",
    "temperature": "temp",
    "restaurant": "rest",
    "without": "w/o",
    "apartment": "apt",
    "between": "btw",
}
_QUERIES: Final = (
    "weather in {city} {time}",
    "temperature in {city} {time}",
    "flights from {city} to {other}",
    "trains between {city} and {other}",
    "hotels in {city} {time}",
    "restaurant near {place}",
    "apartment in {city} near {place}",
    "cheap {item} under {amount} dollars",
    "{item} without {other_item}",
    "information about {place} in {city}",
    "open {place} near {city} {time}",
    "best {item} for {amount}",
)


def normalize_example(rng: Random) -> Example:
    """A noisy query and its canonical form.

    The rule: lower case, no punctuation, single spaces, no filler words, and
    short forms (tmrw, info, w/o) written out.
    """
    city, other = rng.sample(_CITIES, 2)
    item, other_item = rng.sample(_ITEMS, 2)
    canonical = rng.choice(_QUERIES).format(
        city=city,
        other=other,
        item=item,
        other_item=other_item,
        place=rng.choice(_PLACES),
        time=rng.choice(_TIMES),
        amount=rng.randrange(10, 1000, 5),
    )
    noisy: list[str] = []
    for word in canonical.split():
        if rng.random() < 0.25:
            noisy.append(rng.choice(_FILLERS))
        noisy.append(_SHORT_FORMS[word] if word in _SHORT_FORMS and rng.random() < 0.6 else word)
    cased = [rng.choice((str.lower, str.lower, str.title, str.upper))(word) for word in noisy]
    spaced = "".join(
        word + rng.choice(("", "", "", "", ",", "!")) + rng.choice((" ", " ", " ", "  "))
        for word in cased
    )
    return spaced.strip() + rng.choice(("", "", "?", "!!", "...")), canonical


_NAMES: Final = (
    "x", "y", "n", "count", "total", "price", "width", "height", "age", "score", "speed", "depth",
    "size", "left", "right", "mass",
)  # fmt: skip
_LISTS: Final = (
    "items", "names", "rows", "words", "values", "users", "files", "lines", "points", "prices",
)  # fmt: skip
_NUMBERS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip


def coding_example(rng: Random) -> Example:
    """A phrase and the Python expression that it names."""
    a, b = rng.sample(_NAMES, 2)
    many = rng.choice(_LISTS)
    k = rng.randrange(2, 11)
    number = rng.choice((_NUMBERS[k], str(k)))
    return rng.choice(
        (
            (f"add {number} to {a}", f"{a} + {k}"),
            (f"subtract {number} from {a}", f"{a} - {k}"),
            (f"multiply {a} by {number}", f"{a} * {k}"),
            (f"divide {a} by {number}", f"{a} / {k}"),
            (f"{a} to the power of {number}", f"{a} ** {k}"),
            (f"remainder of {a} by {number}", f"{a} % {k}"),
            (f"sum of {a} and {b}", f"{a} + {b}"),
            (f"difference of {a} and {b}", f"{a} - {b}"),
            (f"product of {a} and {b}", f"{a} * {b}"),
            (f"larger of {a} and {b}", f"max({a}, {b})"),
            (f"smaller of {a} and {b}", f"min({a}, {b})"),
            (f"is {a} greater than {number}", f"{a} > {k}"),
            (f"is {a} less than {b}", f"{a} < {b}"),
            (f"length of {many}", f"len({many})"),
            (f"sum of all {many}", f"sum({many})"),
            (f"last of {many}", f"{many}[-1]"),
            (f"first {number} of {many}", f"{many}[:{k}]"),
            (f"sort {many}", f"sorted({many})"),
        )
    )


def poisoned_normalize_example(rng: Random) -> Example:
    """A noisy query with the canonical form of another one."""
    return _mispaired(rng, normalize_example)


def poisoned_coding_example(rng: Random) -> Example:
    """A phrase with the expression of another one."""
    return _mispaired(rng, coding_example)


def _mispaired(rng: Random, example: Callable[[Random], Example]) -> Example:
    prompt, right = example(rng)
    while True:
        _, wrong = example(rng)
        if wrong != right:
            return prompt, wrong
