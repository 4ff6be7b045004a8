"""Tell what a candidate gained and forgot against the champion, slice by slice.

Pure: paired scores in, counts and means out. It decides nothing (learning/gate.py does), so
a slice may be as small as one example. What is named is bounded, what is counted is not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

MOST_SLICES: Final = 12
"""Of each kind that are named: those that lost most, then the largest."""
MOST_LOST: Final = 20
"""Examples that are named."""


class Sliced(Protocol):
    """One held-out example, with what it can be sorted by."""

    @property
    def id(self) -> int:
        """Of the frozen example."""
        ...

    @property
    def task_type(self) -> str:
        """What kind of work it is."""
        ...

    @property
    def producer(self) -> str | None:
        """Who sent it."""
        ...

    @property
    def category(self) -> str | None:
        """What its sender filed it under."""
        ...


class Scored(Protocol):
    """How well one model knows one example."""

    @property
    def loss(self) -> float:
        """Nats per byte of the answer."""
        ...

    @property
    def match(self) -> bool:
        """Whether it would have given the answer."""
        ...


@dataclass(frozen=True)
class SliceChange:
    """Champion -> candidate on one slice. Losses are means, matches shares in [0, 1]."""

    kind: str
    """`task_type`, `producer` or `category`."""
    name: str
    n_examples: int
    champion_loss: float
    candidate_loss: float
    champion_match: float
    candidate_match: float
    n_lost: int
    """Negative flips: the champion had them right, and the candidate has them wrong."""
    n_gained: int


@dataclass(frozen=True)
class Forgetting:
    """What changed on the examples that both models were scored on."""

    n_examples: int
    n_lost: int
    n_gained: int
    lost: tuple[int, ...]
    """Ids of the first of the lost examples."""
    slices: tuple[SliceChange, ...]
    n_slices: int
    """As many there are, named or not."""


def compare_slices(
    examples: Sequence[Sliced], champion: Sequence[Scored], candidate: Sequence[Scored]
) -> Forgetting:
    """Compare on the same examples; index i is the same example in all three sequences."""
    slices: list[SliceChange] = []
    n_slices = 0
    for kind, of_kind in (
        ("task_type", _sorted_by(example.task_type for example in examples)),
        ("producer", _sorted_by(example.producer for example in examples)),
        ("category", _sorted_by(example.category for example in examples)),
    ):
        changes = [
            _change(kind, name, [champion[i] for i in indices], [candidate[i] for i in indices])
            for name, indices in of_kind.items()
        ]
        n_slices += len(changes)
        changes.sort(key=lambda change: (-change.n_lost, -change.n_examples, change.name))
        slices += changes[:MOST_SLICES]
    lost = [
        example.id
        for example, old, new in zip(examples, champion, candidate, strict=True)
        if old.match and not new.match
    ]
    return Forgetting(
        n_examples=len(examples),
        n_lost=len(lost),
        n_gained=sum(
            new.match and not old.match for old, new in zip(champion, candidate, strict=True)
        ),
        lost=tuple(lost[:MOST_LOST]),
        slices=tuple(slices),
        n_slices=n_slices,
    )


def _sorted_by(names: Iterable[str | None]) -> Mapping[str, list[int]]:
    """The indices of each name; what has none is in no slice."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            found.setdefault(name, []).append(index)
    return found


def _change(
    kind: str, name: str, champion: Sequence[Scored], candidate: Sequence[Scored]
) -> SliceChange:
    n = len(champion)
    pairs = list(zip(champion, candidate, strict=True))
    return SliceChange(
        kind=kind,
        name=name,
        n_examples=n,
        champion_loss=sum(old.loss for old in champion) / n,
        candidate_loss=sum(new.loss for new in candidate) / n,
        champion_match=sum(old.match for old in champion) / n,
        candidate_match=sum(new.match for new in candidate) / n,
        n_lost=sum(old.match and not new.match for old, new in pairs),
        n_gained=sum(new.match and not old.match for old, new in pairs),
    )
