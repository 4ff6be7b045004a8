"""What the daemon and its reading process say to each other, over a pipe.

A frame is a head, which may hold any plain values, and a body of bytes. Heads are packed with
`marshal`, which is safe between two processes of one program: what came from outside crosses as
bytes, and comes back as text. The texts themselves do not come back: who asked has them.
"""

import marshal
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise, repeat
from typing import Any, BinaryIO, TypeVar

from learning.ports import JudgedOutput, ReceivedFeedback

A = TypeVar("A", JudgedOutput, ReceivedFeedback)

_LENGTHS = struct.Struct("<QQ")
_LONGEST = 2**31
_KNOWN = ("text", "source", "topic", "partition", "offset", "received_at", "state_since")
"""What an arrival has of its record, and need not cross again."""


def send(pipe: BinaryIO | Any, head: Any, body: bytes = b"") -> None:
    """Write one frame."""
    packed = marshal.dumps(head)
    pipe.write(_LENGTHS.pack(len(packed), len(body)))
    pipe.write(packed)
    pipe.write(body)
    pipe.flush()


def receive(pipe: BinaryIO | Any) -> tuple[Any, bytes]:
    """The next frame. Raises EOFError when the other end is gone, ValueError for what is none."""
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError("the other process has ended")
    n_head, n_body = _LENGTHS.unpack(lengths)
    if n_head + n_body > _LONGEST:
        raise ValueError(f"a frame of {n_head + n_body:,} bytes")
    head = marshal.loads(pipe.read(n_head))  # noqa: S302  # from our own process
    return head, pipe.read(n_body)


def cut(body: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    """The parts of a body, one for each length."""
    for start, end in pairwise(accumulate(lengths, initial=0)):
        yield body[start:end]


def pack_arrivals(arrivals: Sequence[JudgedOutput | ReceivedFeedback]) -> bytes:
    """Arrivals of one kind without what their records say already, column by column."""
    if not arrivals:
        return marshal.dumps([])
    columns = zip(arrivals[0]._fields, zip(*arrivals, strict=True), strict=True)
    return marshal.dumps([column for name, column in columns if name not in _KNOWN])


class PackedArrivals(Sequence[A]):
    """Arrivals as the other process packed them, unpacked anew by each thread that walks them.

    So the objects are made where they are used: a processor that walks over what another one
    made waits for each of them.
    """

    def __init__(
        self,
        form: type[A],
        packed: bytes,
        values: Sequence[bytes],
        place: tuple[str, str, int],
        offsets: Sequence[int],
        received_at: int,
    ) -> None:
        self._make: Callable[[Any], A] = partial(tuple.__new__, form)
        self._fields: Sequence[str] = form._fields
        self._packed = packed
        self._values = values
        self._place = place
        self._offsets = offsets
        self._received_at = received_at

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[A]:
        """Raises ValueError on the way when there is not one row for each value."""
        n = len(self._values)
        if not n:
            return iter(())
        source, topic, partition = self._place
        known: dict[str, Any] = {
            "text": map(bytes.decode, self._values),
            "source": repeat(source, n),
            "topic": repeat(topic, n),
            "partition": repeat(partition, n),
            "offset": self._offsets,
            "received_at": repeat(self._received_at, n),
            "state_since": repeat(self._received_at, n),
        }
        packed = iter(marshal.loads(self._packed))  # noqa: S302  # from our own process
        columns = [known[name] if name in known else next(packed, ()) for name in self._fields]
        return map(self._make, zip(*columns, strict=True))

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]
