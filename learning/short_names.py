"""Short names: a number that an event, or a task, is found by.

Stored, so they are the same in every process and release. Two things may share one, which
happens by chance once in 2^60: whoever finds something by its short name compares the rest.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

from learning.ports import EventKind

_BITS_CUT: Final = 4
"""60 bits are left, a Python int of two digits."""
_NUMBER: Final = struct.Struct(">Q")
_WORDS: Final = {EventKind.OUTPUT: "events", EventKind.FEEDBACK: "feedback"}


def of_events(kind: EventKind, producers: Iterable[str], event_ids: Iterable[str]) -> list[int]:
    """What the event of a kind with each (producer, event id) is found by."""
    word = _WORDS[kind]
    return _numbers_of(
        f"{word}\n{producer}\n{event_id}"
        for producer, event_id in zip(producers, event_ids, strict=True)
    )


def of_tasks(task_types: Iterable[str], task_ids: Iterable[str]) -> list[int]:
    """What the output of each (task type, task id) is found by."""
    return _numbers_of(
        f"task\n{task_type}\n{task_id}"
        for task_type, task_id in zip(task_types, task_ids, strict=True)
    )


def _numbers_of(texts: Iterable[str]) -> list[int]:
    blake2b = hashlib.blake2b  # looked up once: it runs twice for each event
    digests = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts])
    return [number >> _BITS_CUT for (number,) in _NUMBER.iter_unpack(digests)]
