"""Batches are read as aiokafka reads them, up to a limit; behind it there is a stand-in."""

import gzip
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import cramjam
import pytest
from aiokafka import TopicPartition, codec
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c_py, encode_varint_py
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.kafka_batches import (
    KEPT_BYTES,
    MAX_RECORDS_IN_BATCH,
    BoundedRecords,
    Bounds,
    InflatedTooLargeError,
    RecordsAsTheyAre,
    SeamChangedError,
    UnreadableBatch,
    bound_batches,
    inflate,
)
from consumers.wire import Reason

LIMIT = 100_000
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
COMPRESSED = [name for name in CODECS if name != "none"]
TEXT = b"a line of text that repeats itself, "
ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": codec.gzip_encode,
    "snappy": codec.snappy_encode,
    "lz4": codec.lz4_encode,
    "zstd": codec.zstd_encode,
}


def batch(values: Sequence[bytes | None], codec_name: str = "none", base: int = 0) -> bytes:
    """A batch as a producer sends it, at an offset that a broker would give it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=CODECS[codec_name],
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=2**30,
    )
    for number, value in enumerate(values):
        builder.append(number, 1_700_000_000_000, b"key", value, [("name", b"value")])
    return base.to_bytes(8, "big") + bytes(builder.build())[8:]


def read(data: bytes, bounds: Bounds | None = None, start: int = 0) -> list[Any]:
    """What aiokafka hands to a consumer of a response."""
    records = BoundedRecords(data, bounds or Bounds(LIMIT))
    assert records.has_next()
    return list(
        RecordsAsTheyAre(
            TopicPartition("t", 0), records, [], start, None, None, True, READ_COMMITTED
        )
    )


def unreadable(record: Any) -> UnreadableBatch:
    assert isinstance(record.value, UnreadableBatch)
    return record.value


@pytest.mark.parametrize("codec_name", CODECS)
def test_a_batch_within_the_limit_is_read_as_it_was_sent(codec_name: str) -> None:
    values = [b"one", None, b"", TEXT * 2_000]
    data = batch(values, codec_name, 7) + batch([b"next"], codec_name, 11)
    found = read(data)
    assert [record.value for record in found] == [*values, b"next"]
    assert [record.offset for record in found] == [7, 8, 9, 10, 11]
    assert {record.key for record in found} == {b"key"}
    assert {tuple(record.headers) for record in found} == {(("name", b"value"),)}


@pytest.mark.parametrize("codec_name", COMPRESSED)
def test_a_bomb_is_one_record_and_what_stands_beside_it_is_read(codec_name: str) -> None:
    bomb = batch([b"x", bytes(40 * LIMIT), b"y"], codec_name, 1)
    found = [
        record
        for data in (batch([b"a"], codec_name), bomb, batch([b"b"], codec_name, 4))
        for record in read(data)
    ]
    assert [record.offset for record in found] == [0, 3, 4]
    assert [found[0].value, found[2].value] == [b"a", b"b"]
    value = unreadable(found[1])
    assert value == bomb
    assert value.fault.reason == Reason.BATCH_TOO_LARGE
    assert "the batch of 1 to 3" in value.fault.detail
    assert "100,000" in value.fault.detail


@pytest.mark.parametrize("codec_name", COMPRESSED)
def test_the_limit_is_exact(codec_name: str) -> None:
    payload = memoryview(ENCODE[codec_name](bytes(LIMIT)))
    assert bytes(inflate(CODECS[codec_name], payload, LIMIT)) == bytes(LIMIT)
    with pytest.raises(InflatedTooLargeError):
        inflate(CODECS[codec_name], payload, LIMIT - 1)


@pytest.mark.parametrize("codec_name", COMPRESSED)
@pytest.mark.parametrize("size", [0, 1, 17, 60_000, 99_999])
def test_what_was_deflated_is_inflated(codec_name: str, size: int) -> None:
    text = (TEXT * 3_000)[:size]
    payload = memoryview(ENCODE[codec_name](text))
    assert bytes(inflate(CODECS[codec_name], payload, LIMIT)) == text


def test_the_other_forms_of_the_codecs_are_read_and_bounded() -> None:
    members = gzip.compress(TEXT * 10) + gzip.compress(b"and a second member")
    assert inflate(1, memoryview(members), LIMIT) == TEXT * 10 + b"and a second member"
    with pytest.raises(InflatedTooLargeError):
        inflate(1, memoryview(gzip.compress(bytes(LIMIT)) + gzip.compress(b"x")), LIMIT)
    plain = bytes(cramjam.snappy.compress_raw(TEXT * 10))
    assert inflate(2, memoryview(plain), LIMIT) == TEXT * 10
    with pytest.raises(InflatedTooLargeError):  # it only claims to be so large
        inflate(2, memoryview(b"\xff\xff\xff\xff\x0f" + plain), LIMIT)


@pytest.mark.parametrize("codec_name", COMPRESSED)
@pytest.mark.parametrize("cut", [1, 10])
def test_a_batch_that_cannot_be_inflated_is_one_record(codec_name: str, cut: int) -> None:
    whole = batch([TEXT * 100, b"x"], codec_name, 5)
    broken = bytearray(whole[:-cut])
    broken[8:12] = (len(broken) - 12).to_bytes(4, "big")
    records = BoundedRecords(bytes(broken), Bounds(LIMIT))
    assert records.has_next()
    one = records.next_batch()
    assert one is not None
    assert not one.validate_crc()
    (stand_in,) = one
    assert stand_in.offset == 6
    assert unreadable(stand_in).fault.reason == Reason.UNREADABLE_BATCH


def test_the_good_records_before_a_broken_one_are_read() -> None:
    whole = bytearray(batch([b"good", b"good too", b"broken"]))
    whole[whole.index(b"broken") - 1] = 99  # its length
    one = BoundedRecords(bytes(whole), Bounds(LIMIT)).next_batch()
    assert one is not None
    first, second, stand_in = one
    assert [first.value, second.value] == [b"good", b"good too"]
    assert stand_in.offset == 2
    assert unreadable(stand_in).fault.reason == Reason.UNREADABLE_BATCH


def claiming(n_bytes: int, part: str) -> bytes:
    """A batch with a right checksum, whose one record claims to have a part of `n_bytes`."""
    numbers = {"key": [n_bytes], "value": [-1, n_bytes], "header": [-1, -1, 1, n_bytes]}[part]
    record = bytearray(1)  # its attributes
    for number in (0, 0, *numbers):
        encode_varint_py(number, record.append)
    whole = bytearray(batch([bytes(len(record))], base=7))
    whole[61:] = bytes([2 * len(record)]) + record
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    whole[17:21] = calc_crc32c_py(whole[21:]).to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize("part", ["key", "value", "header"])
@pytest.mark.parametrize("n_bytes", [2**63 - 1, 2**63 - 40, 2**63 - 100, 2**62, 2**31])
def test_a_record_that_claims_more_than_any_memory_holds_is_one_record(
    n_bytes: int, part: str
) -> None:
    found = read(claiming(n_bytes, part) + batch([b"next"], base=8))
    assert unreadable(found[0]).fault.reason == Reason.UNREADABLE_BATCH
    assert found[1].value == b"next"


def test_memory_that_is_really_short_is_no_fault_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def starved(data: bytes) -> Any:
        raise MemoryError

    monkeypatch.setattr("consumers.kafka_batches.DefaultRecordBatch", starved)
    with pytest.raises(MemoryError):
        read(batch([b"one"], "gzip"))


def test_who_is_in_the_middle_of_a_bomb_still_gets_its_dead_letter() -> None:
    (stand_in,) = read(batch([b"x", bytes(2 * LIMIT), b"y"], "zstd", 10), start=11)
    assert stand_in.offset == 12


def test_too_many_records_are_a_bomb_too() -> None:
    (stand_in,) = read(batch([b""] * (MAX_RECORDS_IN_BATCH + 1), "gzip"), Bounds(10**8))
    assert unreadable(stand_in).fault.reason == Reason.BATCH_TOO_LARGE


def test_of_a_large_batch_the_beginning_is_kept() -> None:
    large = batch([b"x" * (KEPT_BYTES + 1)] * 2, "none")
    large_bomb = bytearray(large)
    large_bomb[57:61] = (MAX_RECORDS_IN_BATCH + 1).to_bytes(4, "big")
    one = BoundedRecords(bytes(large_bomb), Bounds(10**8)).next_batch()
    assert one is not None
    (stand_in,) = one
    assert len(stand_in.value) == KEPT_BYTES
    assert "the first 1,000,000 are kept" in stand_in.value.fault.detail


def test_when_the_bounds_are_spent_the_rest_is_left_for_the_next_turn() -> None:
    batches = [batch([bytes(LIMIT // 2)], "zstd", base) for base in range(5)]
    bounds = Bounds(LIMIT)
    assert [record.offset for record in read(b"".join(batches), bounds)] == [0, 1]
    assert read(batches[4], bounds) == [], "another partition has to wait as well"
    bounds.renew()
    assert [record.offset for record in read(b"".join(batches[2:]), bounds)] == [2, 3]


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec_name", ["none", "gzip", "snappy"])
def test_the_old_formats_are_read_and_bounded(magic: int, codec_name: str) -> None:
    def legacy(value: bytes) -> bytes:
        builder = LegacyRecordBatchBuilder(magic, CODECS[codec_name], 2**30)
        builder.append(0, 1_700_000_000_000, b"key", value)
        return bytes(builder.build())

    assert [record.value for record in read(legacy(b"good"))] == [b"good"]
    (record,) = read(legacy(bytes(3 * LIMIT)))
    assert isinstance(record.value, UnreadableBatch) == (codec_name != "none")


def damaged(whole: bytes, at: int = 70) -> bytes:
    """A batch of which one bit was flipped, where its checksum tells."""
    broken = bytearray(whole)
    broken[at] ^= 1
    return bytes(broken)


def test_a_damaged_batch_is_fetched_again_before_it_is_believed() -> None:
    bounds = Bounds(LIMIT)
    response = batch([b"good"]) + damaged(batch([b"a", b"b", b"c"], base=1))
    found = []
    with pytest.raises(CorruptRecordException):
        found.extend(read(response, bounds))
    (good, stand_in) = read(response, bounds)
    assert good.value == b"good"
    assert stand_in.offset == 3
    assert unreadable(stand_in).fault.reason == Reason.DAMAGED_BATCH
    assert "the batch of 1 to 3" in unreadable(stand_in).fault.detail
    assert stand_in.value == response[-len(stand_in.value) :]


def test_what_is_behind_a_damaged_batch_is_fetched_anew_and_read() -> None:
    bounds = Bounds(LIMIT)
    response = damaged(batch([b"a", b"b"])) + batch([b"behind"], base=2)
    bounds.times_seen(damaged(batch([b"a", b"b"])))
    assert [record.offset for record in read(response, bounds)] == [1]
    assert [record.value for record in read(batch([b"behind"], base=2), bounds, 2)] == [b"behind"]


@pytest.mark.parametrize("claimed", [0, 1, 3, 200, 2**31 - 1])
def test_what_a_damaged_batch_says_of_its_length_is_not_believed(claimed: int) -> None:
    bounds = Bounds(LIMIT)
    broken = bytearray(batch([b"a", b"b", b"c"]))
    broken[23:27] = claimed.to_bytes(4, "big")
    response = bytes(broken) + batch([b"behind"], base=3)
    bounds.times_seen(bytes(broken))
    (stand_in,) = read(response, bounds, start=1)
    assert stand_in.offset == 2, "whoever is in the middle of it gets its dead letter"
    # A broker believes what the batch says, and sends it again to who asks for what is behind.
    (behind,) = read(response, bounds, start=3)
    assert behind.value == b"behind"


@settings(max_examples=300)
@given(st.data(), st.sampled_from(sorted(CODECS)))
def test_wherever_a_batch_is_damaged_what_is_behind_it_is_read(
    data: st.DataObject, codec_name: str
) -> None:
    whole = batch([TEXT, b"x", None], codec_name, 4)
    broken = damaged(whole, data.draw(st.integers(17, len(whole) - 1)))
    bounds = Bounds(LIMIT)
    response = broken + batch([b"behind"], codec_name, 7)
    with pytest.raises(CorruptRecordException):
        read(response, bounds, start=4)
    (stand_in,) = read(response, bounds, start=4)
    assert (stand_in.offset, stand_in.value) == (6, broken)
    assert [record.value for record in read(response, bounds, start=7)] == [b"behind"]


async def test_an_aiokafka_without_the_seam_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = SimpleNamespace(_fetcher=Fetcher.__new__(Fetcher))
    bound_batches(consumer, LIMIT)
    with pytest.raises(SeamChangedError, match="no _proc_fetch_request"):
        bound_batches(SimpleNamespace(), LIMIT)
    for seam in ("MemoryRecords", "PartitionRecords"):
        with monkeypatch.context() as patched:
            patched.setattr(fetcher, seam, object)
            with pytest.raises(SeamChangedError, match=f"{seam} is another class"):
                bound_batches(consumer, LIMIT)

    async def otherwise(self: Fetcher) -> None: ...

    monkeypatch.setattr(Fetcher, "_proc_fetch_request", otherwise)
    with pytest.raises(SeamChangedError, match="does not use MemoryRecords"):
        bound_batches(consumer, LIMIT)
