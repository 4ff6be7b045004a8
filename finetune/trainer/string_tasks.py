"""Generic string exercises that the tiny base model is pre-trained on.

A model that can copy, drop, re-case, look up and replace learns a new string
rule from a hundred examples; one with random weights does not. The exercises
name no rule of the demo. Pure standard library: text in, text out.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

Exercise = tuple[str, str]
"""(prompt, output)"""

_WORDS: Final = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part",
    "place", "case", "week", "company", "system", "program", "question", "work", "number",
    "night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact",
    "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side",
    "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line",
    "end", "member", "law", "car", "city", "community", "name", "team", "minute", "idea",
    "body", "information", "back", "parent", "face", "level", "office", "door", "health",
    "person", "art", "war", "history", "party", "result", "change", "morning", "reason",
    "research", "girl", "guy", "moment", "air", "teacher", "force", "education", "foot", "boy",
    "age", "policy", "music", "market", "sense", "nation", "plan", "college", "interest",
    "death", "experience", "effect", "use", "class", "control", "road", "table", "cost",
    "price", "value", "river", "green", "blue", "red", "small", "large", "open", "close",
    "first", "last", "second", "best", "cheap", "near", "from", "with", "without", "under",
    "between", "about", "before", "after", "sum", "product", "length", "larger", "smaller",
    "sort", "add", "train", "plane", "hotel", "shop", "street", "garden", "window", "paper",
    "letter", "north", "south", "east", "west", "summer", "winter", "sugar", "bread", "apple",
    "lemon", "orange", "silver", "golden", "quick", "brown", "quiet", "early", "late", "fresh",
    "dry", "cold", "warm", "hot", "long", "short", "high", "low", "left", "two", "three",
    "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
_CONSONANTS: Final = "bcdfghjklmnpqrstvwxyz"
_VOWELS: Final = "aeiou"
_MARKS: Final = ".,!?;:"
_DIGIT_NAMES: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip


def make_exercise(rng: Random) -> Exercise:
    """One exercise of a random kind, right by construction."""
    return rng.choice(_KINDS)(rng)


def _word(rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_WORDS)
    return "".join(
        rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 4))
    ) + rng.choice(("", "", rng.choice(_CONSONANTS), str(rng.randrange(100))))


def _words(rng: Random, low: int = 2, high: int = 6) -> list[str]:
    return [_word(rng) for _ in range(rng.randint(low, high))]


def _recased(rng: Random, word: str) -> str:
    return rng.choice((str.lower, str.title, str.upper))(word)


def _messy(rng: Random, words: list[str]) -> str:
    """The words in mixed case, with stray punctuation and double spaces."""
    return "".join(
        _recased(rng, word)
        + (rng.choice(_MARKS) if rng.random() < 0.25 else "")
        + ("  " if rng.random() < 0.2 else " ")
        for word in words
    ).strip()


def _copy(rng: Random) -> Exercise:
    text = _messy(rng, _words(rng))
    return f"copy: {text}", text


def _lower(rng: Random) -> Exercise:
    text = _messy(rng, _words(rng))
    return f"lower: {text}", text.lower()


def _upper(rng: Random) -> Exercise:
    text = " ".join(_words(rng, 1, 4))
    return f"upper: {text}", text.upper()


def _clean(rng: Random) -> Exercise:
    words = _words(rng)
    return f"clean: {_messy(rng, words)}", " ".join(words)


def _strip_marks(rng: Random) -> Exercise:
    words = [_recased(rng, word) for word in _words(rng)]
    return (
        "unmark: " + " ".join(w + rng.choice(("", rng.choice(_MARKS))) for w in words),
        " ".join(words),
    )


def _reverse_words(rng: Random) -> Exercise:
    words = _words(rng, 2, 4)
    return f"reverse: {' '.join(words)}", " ".join(reversed(words))


def _pick(rng: Random) -> Exercise:
    words = _words(rng, 2, 5)
    nth = rng.randrange(len(words))
    return f"word {nth + 1} of: {' '.join(words)}", words[nth]


def _last(rng: Random) -> Exercise:
    words = _words(rng, 2, 5)
    return f"last of: {' '.join(words)}", words[-1]


def _drop(rng: Random) -> Exercise:
    words = _words(rng, 3, 6)
    dropped = set(rng.sample(words, rng.randint(1, 2)))
    return (
        f"drop {' '.join(sorted(dropped))}: {' '.join(words)}",
        " ".join(word for word in words if word not in dropped),
    )


def _replace(rng: Random) -> Exercise:
    words = _words(rng, 2, 5)
    old, new = rng.choice(words), _word(rng)
    return (
        f"replace {old} by {new}: {' '.join(words)}",
        " ".join(new if word == old else word for word in words),
    )


def _sort(rng: Random) -> Exercise:
    words = _words(rng, 2, 3)
    return f"order: {' '.join(words)}", " ".join(sorted(words))


def _count(rng: Random) -> Exercise:
    words = _words(rng, 1, 6)
    return f"count: {' '.join(words)}", str(len(words))


def _look_up(rng: Random) -> Exercise:
    keys = list(dict.fromkeys(_words(rng, 2, 4)))
    pairs = {key: _word(rng) for key in keys}
    asked = rng.choice(keys)
    listed = " ".join(f"{key}={value}" for key, value in pairs.items())
    return f"{listed} get {asked}", pairs[asked]


def _digits(rng: Random) -> Exercise:
    digits = [rng.randrange(10) for _ in range(rng.randint(1, 4))]
    return (
        "digits: " + " ".join(_DIGIT_NAMES[d] for d in digits),
        " ".join(str(d) for d in digits),
    )


def _swap(rng: Random) -> Exercise:
    first, second = _word(rng), _word(rng)
    joint = rng.choice((" + ", ", ", " - ", " and ", "/", " * "))
    return f"swap: {first}{joint}{second}", f"{second}{joint}{first}"


def _wrap(rng: Random) -> Exercise:
    inner, outer = _word(rng), _word(rng)
    opening, closing = rng.choice(("()", "[]", "{}", "<>"))
    return f"wrap {inner} in {outer}{opening}", f"{outer}{opening}{inner}{closing}"


def _template(rng: Random) -> Exercise:
    """Fill a pattern that is shown: ``a b -> b(a): sun moon`` gives ``moon(sun)``."""
    pattern = rng.choice(("a + b", "b + a", "b(a)", "a(b)", "a[b]", "b, a", "a, b", "a = b", "b"))
    first, second = _word(rng), _word(rng)
    filled = "".join({"a": first, "b": second}.get(char, char) for char in pattern)
    return f"a b -> {pattern}: {first} {second}", filled


_KINDS: Final[tuple[Callable[[Random], Exercise], ...]] = (
    _copy,
    _lower,
    _upper,
    _clean,
    _clean,
    _strip_marks,
    _reverse_words,
    _pick,
    _last,
    _drop,
    _drop,
    _replace,
    _sort,
    _count,
    _look_up,
    _digits,
    _swap,
    _wrap,
    _template,
)
