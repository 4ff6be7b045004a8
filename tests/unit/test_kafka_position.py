"""Where a partition is read from, and how a topic that was made anew is noticed."""

from dataclasses import dataclass

import pytest

from consumers.kafka_position import Recreated, Start, fingerprint, start_of
from learning.ports import Position


@dataclass(frozen=True)
class Record:
    timestamp: int = 1
    key: bytes | None = b"k"
    value: bytes | None = b"v"


def stored(next_offset: int | None, mark: bytes | None = b"mark") -> Position:
    return Position("outputs", 0, 1, next_offset, mark)


@pytest.mark.parametrize(
    ("position", "first", "end", "start"),
    [
        pytest.param(stored(None, None), 0, 9, Start(0), id="never read"),
        pytest.param(stored(None, None), 4, 9, Start(4), id="never read, its first are expired"),
        pytest.param(stored(5), 0, 9, Start(4, has_witness=True), id="in the middle"),
        pytest.param(stored(5), 0, 5, Start(4, has_witness=True), id="at the end"),
        pytest.param(stored(5), 4, 9, Start(4, has_witness=True), id="the witness is the first"),
        pytest.param(stored(5), 5, 9, Start(5), id="only the witness is expired"),
        pytest.param(stored(5), 7, 9, Start(7, n_expired=2), id="two are expired unread"),
        pytest.param(stored(5), 9, 9, Start(9, n_expired=4), id="all are expired unread"),
        pytest.param(stored(5), 0, 4, Recreated(0), id="it ends before the position"),
        pytest.param(stored(5), 0, 0, Recreated(0), id="it is empty"),
        pytest.param(stored(0, b""), 0, 3, Start(0), id="rewound to its start"),
        pytest.param(stored(3, b""), 3, 3, Start(3), id="rewound, and nothing stored since"),
    ],
)
def test_where_reading_starts(
    position: Position, first: int, end: int, start: Start | Recreated
) -> None:
    assert start_of(position, first, end, distrusted=False) == start


def test_a_distrusted_partition_is_read_from_its_first_record() -> None:
    assert start_of(stored(5), 2, 9, distrusted=True) == Recreated(2)


def test_a_fingerprint_has_16_bytes_and_is_the_same_for_the_same_record() -> None:
    assert len(fingerprint(Record())) == 16
    assert fingerprint(Record()) == fingerprint(Record())


def test_every_part_of_a_record_shows_in_its_fingerprint() -> None:
    different = [
        Record(),
        Record(timestamp=2),
        Record(key=b"kv", value=b""),
        Record(key=b"", value=b"kv"),
        Record(key=None),
        Record(key=b""),
        Record(value=None),
        Record(value=b""),
        Record(timestamp=11, key=b"", value=b""),
        Record(timestamp=1, key=b"1", value=b""),
    ]
    assert len({fingerprint(record) for record in different}) == len(different)
