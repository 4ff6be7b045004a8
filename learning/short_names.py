"""Short names: a number that an event, or a task, is found by.

Stored, so they are the same in every process and release. Two things may share one, which
happens by chance once in 2^60: whoever finds something by its short name compares the rest.
"""

import hashlib
from typing import Final

from learning.ports import EventKind

_BITS_CUT: Final = 4
"""60 bits are left, a Python int of two digits."""
_WORDS: Final = {EventKind.OUTPUT: "events", EventKind.FEEDBACK: "feedback"}


def of_event(kind: EventKind, producer: str, event_id: str) -> int:
    """What the event of a kind with this (producer, event id) is found by."""
    return _number_of(f"{_WORDS[kind]}\n{producer}\n{event_id}")


def of_task(task_type: str, task_id: str) -> int:
    """What the output of this (task type, task id) is found by."""
    return _number_of(f"task\n{task_type}\n{task_id}")


def _number_of(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> _BITS_CUT
