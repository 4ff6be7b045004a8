"""How good an answer is, held against the approved one: a number from 0 to 1.

Answers come from a service and may be anything, so a scorer takes time that grows with
their length and no faster. A package outside registers its own under `learnd.scorers`.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final, Protocol

from learning.errors import LearningError

GROUP: Final = "learnd.scorers"

MOST_CHARACTERS: Final = 65_536
"""Of an answer that are looked at."""
LONGEST_NGRAM: Final = 6
RECALL_WEIGHT: Final = 2.0


class Scorer(Protocol):
    """Compares one answer with the approved one. Pure; called in a thread."""

    def __call__(self, approved: str, answer: str) -> float:
        """From 0, nothing in common, to 1, as good as the approved one."""
        ...


class UnknownScorerError(LearningError):
    """No scorer goes by that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        super().__init__(f"no scorer {name!r}{hint} (known: {', '.join(known)})")
        self.name, self.known = name, known


class BrokenScorerError(LearningError):
    """A scorer from another package is registered, but cannot be imported."""

    def __init__(self, name: str, place: str, cause: Exception) -> None:
        super().__init__(f"scorer {name!r} cannot be loaded from {place}: {cause!r}")
        self.name = name


def scorer_of(name: str) -> Scorer:
    """The scorer of that name; a built-in one cannot be replaced from outside.

    Raises UnknownScorerError and BrokenScorerError.
    """
    if (built_in := _BUILT_IN.get(name)) is not None:
        return built_in
    for entry in entry_points(group=GROUP, name=name):
        try:
            scorer: Scorer = entry.load()
        except Exception as error:
            raise BrokenScorerError(name, entry.value, error) from error
        return scorer
    raise UnknownScorerError(name, sorted({*_BUILT_IN, *entry_points(group=GROUP).names}))


def exact(approved: str, answer: str) -> float:
    """1 when the answer is the approved one but for white space around it, otherwise 0."""
    return float(approved.strip() == answer.strip())


def chrf(approved: str, answer: str) -> float:
    """Character n-gram F-score (Popovic, 2015): n from 1 to 6, recall twice as weighty.

    White space does not count. It needs no words, so it is fit for code and any language.
    """
    wanted = "".join(approved.split())[:MOST_CHARACTERS]
    given = "".join(answer.split())[:MOST_CHARACTERS]
    if not wanted or not given:
        return float(wanted == given)
    precisions, recalls = [], []
    for n in range(1, min(LONGEST_NGRAM, len(wanted), len(given)) + 1):
        in_wanted, in_given = _ngrams(wanted, n), _ngrams(given, n)
        common = (in_wanted & in_given).total()
        precisions.append(common / in_given.total())
        recalls.append(common / in_wanted.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if precision == recall == 0:
        return 0.0
    weight = RECALL_WEIGHT**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[start : start + n] for start in range(len(text) - n + 1))


_BUILT_IN: Final[Mapping[str, Scorer]] = {"chrf": chrf, "exact": exact}
