"""What the daemon and its reading process say to each other, over a pipe.

A frame is a head, which may hold any plain values, and a body of bytes. Heads are packed with
`marshal`, which is safe between two processes of one program: what came from outside crosses as
bytes, and comes back as text. The texts themselves do not come back: who asked has them.
"""

import marshal
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, BinaryIO, TypeVar

from learning.ports import ArrivalColumns, EventKind, JudgedOutput, ReceivedFeedback
from learning.short_names import of_events, of_tasks

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
    """Arrivals of one kind without what their records say already, field by field, and what
    they are found by."""
    if not arrivals:
        return marshal.dumps(([], [], []))
    form = type(arrivals[0])
    fields = dict(zip(form._fields, zip(*arrivals, strict=True), strict=True))
    kind = EventKind.OUTPUT if form is JudgedOutput else EventKind.FEEDBACK
    event_names = of_events(kind, fields["producer"], fields["event_id"])
    task_names = of_tasks(fields["task_type"], fields["task_id"])
    unknown = [column for name, column in fields.items() if name not in _KNOWN]
    return marshal.dumps((unknown, event_names, task_names))


class PackedArrivals(Sequence[A]):
    """Arrivals as the other process packed them, unpacked anew by each thread that asks.

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
        """Raises ValueError when there is not one row for each value."""
        columns: ArrivalColumns = self.columns()
        return map(self._make, zip(*columns.fields, strict=True))

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def columns(self) -> ArrivalColumns:
        """All of them. Raises ValueError when there is not one row for each value."""
        n = len(self._values)
        source, topic, partition = self._place
        known: dict[str, Sequence[Any]] = {
            "text": list(map(bytes.decode, self._values)),
            "source": [source] * n,
            "topic": [topic] * n,
            "partition": [partition] * n,
            "offset": self._offsets,
            "received_at": [self._received_at] * n,
            "state_since": [self._received_at] * n,
        }
        unknown, event_names, task_names = marshal.loads(self._packed)  # noqa: S302  # from our own process
        packed = iter(unknown)
        fields: list[Sequence[Any]] = [
            known[name] if name in known else next(packed, ()) for name in self._fields
        ]
        for column in (*fields, event_names, task_names):
            if len(column) != n:
                raise ValueError(f"{len(column)} rows came back for {n} records")
        return ArrivalColumns(fields, event_names, task_names)
