"""What a replay finds in a dead letter that is a whole batch."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.kafka_salvage import records_of
from consumers.wire import Reason
from learning.ports import DeadLetter, EventKind, Origin
from tests.unit.test_kafka_batches import CODECS, LIMIT, batch, claiming

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def letter(raw: bytes, reason: str = Reason.DAMAGED_BATCH, last: int = 12) -> DeadLetter:
    return DeadLetter(EventKind.OUTPUT, reason, "", raw, Origin("kafka", "t", 3, last), NOON)


@pytest.mark.parametrize("codec_name", CODECS)
def test_every_record_that_can_be_read_comes_back_under_its_own_offset(codec_name: str) -> None:
    raw = bytearray(batch([b"one", None, b"three"], codec_name, 10))
    raw[17] ^= 1  # the checksum itself
    found = records_of(letter(bytes(raw)), LIMIT)
    assert [record.value for record in found] == [b"one", None, b"three"]
    assert [record.origin for record in found] == [
        Origin("kafka", "t", 3, offset) for offset in (10, 11, 12)
    ]
    assert {record.fault for record in found} == {None}


def test_what_follows_a_record_that_cannot_be_told_apart_is_lost() -> None:
    raw = bytearray(batch([b"one", b"two", b"three"], base=10))
    raw[raw.index(b"two") - 1] = 99  # its length
    assert [record.value for record in records_of(letter(bytes(raw)), LIMIT)] == [b"one"]


@pytest.mark.parametrize("part", ["key", "value", "header"])
@pytest.mark.parametrize("n_bytes", [2**63 - 1, 2**63 - 100, 2**62, 2**40])
def test_nothing_is_read_from_beyond_the_end(n_bytes: int, part: str) -> None:
    raw = claiming(n_bytes, part)
    (refused,) = records_of(letter(raw), LIMIT)
    assert refused.value == raw


def test_a_bomb_is_read_once_the_limit_allows_it() -> None:
    bomb = letter(batch([bytes(3 * LIMIT)], "zstd", 12), Reason.BATCH_TOO_LARGE)
    (refused,) = records_of(bomb, LIMIT)
    assert refused.value == bomb.raw
    assert refused.fault is not None
    assert refused.fault.reason == Reason.BATCH_TOO_LARGE
    assert "kafka.max_batch_bytes" in refused.fault.detail
    (record,) = records_of(bomb, 4 * LIMIT)
    assert record.value == bytes(3 * LIMIT)


def test_any_other_dead_letter_is_one_record() -> None:
    other = letter(b"{", Reason.NOT_JSON)
    (record,) = records_of(other, LIMIT)
    assert (record.value, record.origin, record.fault) == (b"{", other.origin, None)


@settings(max_examples=300)
@given(st.data(), st.sampled_from(sorted(CODECS)))
def test_whatever_became_of_the_bytes_there_is_an_answer(
    data: st.DataObject, codec_name: str
) -> None:
    raw = bytearray(batch([b"one" * 20, b"two", b"three"], codec_name, 10))
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    found = records_of(letter(bytes(raw[:cut])), LIMIT)
    assert found
    assert all(0 <= record.origin.offset <= 12 for record in found)
