"""Where to read a partition from, given what is stored and what the broker still has.

Pure. The last stored record is the witness: it is read again first, and when another
record stands in its place, the topic was deleted and made again.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from learning.ports import Position


class KafkaRecord(Protocol):
    """What a record is recognised by."""

    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True)
class Start:
    """Read from `offset`; with a witness, the record before the stored position comes first."""

    offset: int
    has_witness: bool = False
    n_expired: int = 0
    """Offsets that the broker deleted before they were read."""


@dataclass(frozen=True)
class Recreated:
    """The partition is not the one that was read: read it again from `offset`, its first."""

    offset: int


def start_of(position: Position, first: int, end: int, *, distrusted: bool) -> Start | Recreated:
    """Where to go on with a partition that holds the offsets [first, end).

    `distrusted` says that its witness was another record.
    """
    stored = position.next_offset
    if stored is None:
        return Start(first)
    if distrusted or end < stored:
        return Recreated(first)
    if first > stored:
        return Start(first, n_expired=first - stored)
    if first == stored or not position.fingerprint:
        return Start(stored)
    return Start(stored - 1, has_witness=True)


def fingerprint(record: KafkaRecord) -> bytes:
    """16 bytes that tell one record of a partition from another at the same offset."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(record.timestamp).encode(), record.key, record.value):
        # The length first, so that a key cannot pass for the beginning of a value.
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.digest()
