"""What the daemon and its screening process say to each other: JSON, its length before it.

Nothing that a validator from outside could answer is more than JSON here.
"""

import json
import struct
from typing import Any, BinaryIO

LENGTH = struct.Struct("<I")
LONGEST = 16 * 2**20
"""An event has a megabyte or two; a longer answer is none."""


def packed(said: Any) -> bytes:
    """One frame."""
    body = json.dumps(said).encode()
    return LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """How long the frame is that begins so. Raises ValueError for what cannot be one."""
    (length,) = LENGTH.unpack(head)
    if length > LONGEST:
        raise ValueError(f"a frame of {length:,} bytes")
    return int(length)


def receive(pipe: BinaryIO) -> Any:
    """The next frame. Raises EOFError when the other end is gone."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError("the other process has ended")
    return json.loads(pipe.read(length_of(head)))


def send(pipe: BinaryIO, said: Any) -> None:
    """Write one frame."""
    pipe.write(packed(said))
    pipe.flush()
