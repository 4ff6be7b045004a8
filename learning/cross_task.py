"""Which task types may learn from each other's accepted outputs.

The map is fixed: what a producer sends cannot extend it. How much is mixed in is for
learning/sampling.py to say, and where the events come from for the store.
"""

from collections.abc import Iterable, Mapping
from typing import Final

RELATED: Final[Mapping[str, tuple[str, ...]]] = {
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


def related_to(task_types: Iterable[str]) -> list[str]:
    """The task types that these may learn from, themselves left out, sorted."""
    own = set(task_types)
    return sorted({other for one in own for other in RELATED.get(one, ())} - own)
