"""Which task types may learn from each other's accepted outputs.

The map is an operator's: what a producer sends cannot extend it. How much is mixed in is for
learning/sampling.py to say, and where the events come from for the store.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

RelatedTaskTypes = Mapping[str, Sequence[str]]
"""For a task type those that it learns from; the other way round is an entry of its own."""

RELATED: Final[RelatedTaskTypes] = {
    "audio": ("game", "moderation"),
    "game": ("audio", "coding"),
    "coding": ("website", "game"),
    "website": ("coding", "graphics"),
    "graphics": ("website", "game"),
    "moderation": ("audio", "trust"),
    "memory": ("persona", "trust"),
    "trust": ("moderation", "memory"),
    "persona": ("memory", "audio"),
}
"""The map as shipped (features.md, LP6)."""


def related_to(task_types: Iterable[str], related: RelatedTaskTypes = RELATED) -> list[str]:
    """The task types that these may learn from, themselves left out, sorted."""
    own = set(task_types)
    return sorted({other for one in own for other in related.get(one, ())} - own)
