"""Read Kafka's batches within bounds: a compression bomb becomes one dead letter.

aiokafka inflates a batch in the event loop, without a limit, and stops its partition when
that fails. Here a batch is inflated up to a limit; one that is larger, or cannot be read, or is
damaged (its checksum is wrong), is handed on as a single record that stands for it, so that the
partition goes on behind it.
Knows the layout of a batch (Kafka protocol, magic 0 to 2), and nothing of what is in one.

The seam are two classes that aiokafka's fetcher reads a response with, `MemoryRecords` and
`PartitionRecords`, global names of its module. They are replaced for one consumer only;
`bound_batches` refuses an aiokafka that has no such seam.
"""

import struct
import types
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import cramjam
from aiokafka import __version__ as aiokafka_version
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint_py

from consumers.wire import Reason, Undecodable
from learning.errors import LearningError

MAX_RECORDS_IN_BATCH = 100_000
"""Going on in the middle of a batch means to skip its first records, without a pause."""
KEPT_BYTES = 1_000_000
"""Of a batch that cannot be read so much is kept as it came: all of it, by Kafka's defaults."""

_LENGTH = struct.Struct(">qi")  # base offset, bytes that follow
_BASE_OFFSET = struct.Struct(">q")
_MAGIC_AT = 16
_LEGACY_ATTRIBUTES_AT = 17
_LEGACY_KEY_AT = {0: 18, 1: 26}
_SIZE = struct.Struct(">i")
_HEADER = struct.Struct(">qiibIhiqqqhii")  # see aiokafka.record.default_records
_CODEC_AT = 22
_CODEC_BITS = 0b111
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16
_FIRST_GUESS = 16
"""Text shrinks to a tenth; who guesses less reads twice."""
_NO_ROOM = "failed to write whole buffer"


class Codec(IntEnum):
    """Kafka's numbers for them; 0 is none."""

    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


class SeamChangedError(LearningError):
    """The installed aiokafka does not read batches where learnd bounds them."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"aiokafka {aiokafka_version} reads batches in another way than learnd can bound"
            f" ({missing}); install the version that learnd was tested with"
        )


class InflatedTooLargeError(LearningError):
    """A batch is larger than the limit when it is inflated; nobody knows how large."""


class UnreadableBatch(bytes):
    """The value of a record that stands for a batch, or for its end: its first bytes."""

    fault: Undecodable


@dataclass(frozen=True)
class _StandIn:
    """What aiokafka wants to know of a record."""

    offset: int
    timestamp: int
    value: UnreadableBatch
    timestamp_type: int = 0
    key: bytes | None = None
    checksum: None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Bounds:
    """How much one consumer may inflate: of one batch, and between two turns of the loop.

    Remembers which damaged batches it came across.
    """

    def __init__(self, max_batch_bytes: int) -> None:
        self.max_batch_bytes = max_batch_bytes
        self._left = max_batch_bytes
        self._damaged: Counter[tuple[bytes, int]] = Counter()

    @property
    def is_spent(self) -> bool:
        """Whether no more batches should be begun before `renew`."""
        return self._left <= 0

    def spend(self, n_bytes: int) -> None:
        """Count what was inflated."""
        self._left -= n_bytes

    def renew(self) -> None:
        """Allow as much as at first: the event loop had its turn."""
        self._left = self.max_batch_bytes

    def times_seen(self, damaged: bytes) -> int:
        """How often these very bytes came, this time included."""
        key = (damaged[: _LENGTH.size], hash(damaged))
        self._damaged[key] += 1
        return self._damaged[key]


def bound_batches(consumer: Any, max_batch_bytes: int) -> Bounds:
    """Make a started consumer read its batches within bounds. Raises SeamChangedError.

    Call it before the first subscription, and `renew` before each `getmany`.
    """
    fetcher = getattr(consumer, "_fetcher", None)
    read = getattr(type(fetcher), "_proc_fetch_request", None)
    if not isinstance(read, types.FunctionType):
        raise SeamChangedError("its fetcher has no _proc_fetch_request")
    for seam in (MemoryRecords, PartitionRecords):
        name = seam.__name__
        if read.__closure__ or name not in read.__code__.co_names:
            raise SeamChangedError(f"_proc_fetch_request does not use {name}")
        if read.__globals__.get(name) is not seam:
            raise SeamChangedError(f"its fetcher's {name} is another class")
    if not callable(getattr(PartitionRecords, "_consumer_record", None)):
        raise SeamChangedError("its PartitionRecords has no _consumer_record")
    bounds = Bounds(max_batch_bytes)

    def bounded(data: bytes) -> BoundedRecords:
        return BoundedRecords(data, bounds)

    # The same code with two global names of its own, so that other consumers keep theirs.
    own = {MemoryRecords.__name__: bounded, PartitionRecords.__name__: RecordsAsTheyAre}
    rebound = types.FunctionType(
        read.__code__, read.__globals__ | own, read.__name__, read.__defaults__
    )
    consumer._fetcher._proc_fetch_request = types.MethodType(rebound, fetcher)
    return bounds


class RecordsAsTheyAre(PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """Hands records on as they are read from a batch: a `ConsumerRecord` of each takes longer."""

    def _consumer_record(self, _tp: Any, record: Any) -> Any:
        return record


class BoundedRecords:
    """The batches of one partition in one response; stands in for aiokafka's MemoryRecords."""

    def __init__(self, data: bytes, bounds: Bounds) -> None:
        self._data = data
        self._bounds = bounds
        self._start = 0
        self._was_asked = False
        self._latest: _BoundedBatch | None = None

    def size_in_bytes(self) -> int:
        """Of the response."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether `next_batch` has one; False too when the bounds are spent.

        Then, and behind a damaged batch, the rest of the response is dropped, and fetched
        again from the first batch that was not read.
        """
        if self._latest is not None and self._latest.ends_response:
            return False
        # The first question is the fetcher's, when the response comes: whether it holds any.
        is_first, self._was_asked = not self._was_asked, True
        return self._end() is not None and (is_first or not self._bounds.is_spent)

    def next_batch(self) -> "_BoundedBatch | None":
        """The next batch, not inflated yet."""
        end = self._end()
        if end is None:
            return None
        data, self._start = bytes(self._data[self._start : end]), end
        self._latest = _BoundedBatch(
            MemoryRecords(data).next_batch(), data, self._bounds, self._next_base_offset()
        )
        return self._latest

    def _next_base_offset(self) -> int | None:
        """That of the batch which starts here, of which there need not be more."""
        if len(self._data) - self._start < _BASE_OFFSET.size:
            return None
        return int(_BASE_OFFSET.unpack_from(self._data, self._start)[0])

    def _end(self) -> int | None:
        """Where the batch ends that starts here; None when it is not there as a whole."""
        if len(self._data) - self._start < _LENGTH.size:
            return None
        _, n_bytes = _LENGTH.unpack_from(self._data, self._start)
        end = self._start + _LENGTH.size + int(n_bytes)
        return end if end <= len(self._data) else None


class _BoundedBatch:
    """One batch, which is inflated when its records are asked for."""

    def __init__(self, batch: Any, data: bytes, bounds: Bounds, following: int | None) -> None:
        self._batch = batch
        self._data = data
        self._bounds = bounds
        self._following = following
        self._is_damaged = False
        self.ends_response = False
        self.base_offset: int = _LENGTH.unpack_from(data)[0]
        self.next_offset: int = batch.next_offset
        self.producer_id: int | None = batch.producer_id
        self.is_control_batch: bool = batch.is_control_batch
        self.is_transactional: bool = batch.is_transactional

    def validate_crc(self) -> bool:
        """Whether it is what was sent, or is to be handed on as what it is: damaged.

        The first time it is refused, and fetched again: it may have happened on the way.
        When the same bytes come again, it happened to the log.
        """
        if self._batch.validate_crc():
            return True
        times = self._bounds.times_seen(self._data)
        if times == 1:
            return False
        self._is_damaged = True
        # Nothing in it can be trusted, nor what it may have said about transactions. So what
        # is behind it is fetched anew, with the broker's word about those that were aborted;
        # once only, for where its length in records is wrong, the broker sends it each time.
        self.producer_id, self.is_control_batch, self.is_transactional = None, False, False
        self.ends_response = times == 2
        if self._following is not None:
            self.next_offset = self._following
        self.next_offset = max(self.next_offset, self.base_offset + 1)
        return True

    def __next__(self) -> Any:
        """Of a control batch the marker, which is never compressed."""
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        if self._is_damaged:
            yield self._stand_in(Reason.DAMAGED_BATCH, "its checksum is wrong")
            return
        try:
            yield from self._readable()
        except MemoryError:
            claim = self._impossible_claim()
            if claim is None:
                raise
            yield self._stand_in(Reason.UNREADABLE_BATCH, claim)
        except InflatedTooLargeError as error:
            yield self._stand_in(Reason.BATCH_TOO_LARGE, str(error))
        except Exception as error:  # the codecs raise anything
            yield self._stand_in(Reason.UNREADABLE_BATCH, f"{type(error).__name__}: {error}")

    def _readable(self) -> Any:
        """The batch for aiokafka to read, not compressed any more."""
        limit = self._bounds.max_batch_bytes
        if self._data[_MAGIC_AT] < 2:
            codec, payload = _legacy_payload(self._data)
            # A message of the old format is inflated twice: here for its size only.
            self._bounds.spend(len(inflate(codec, payload, limit)) if codec else len(payload))
            return self._batch
        _require_few_records(self._data)
        codec = self._data[_CODEC_AT] & _CODEC_BITS
        if not codec:
            self._bounds.spend(len(self._data))
            return self._batch
        # Spent even when it fails: it took the time.
        self._bounds.spend(len(self._data))
        try:
            inflated = inflate(codec, memoryview(self._data)[_HEADER.size :], limit)
        except InflatedTooLargeError:
            self._bounds.spend(limit)
            raise
        self._bounds.spend(len(inflated))
        return DefaultRecordBatch(_plain(self._data, inflated))

    def _impossible_claim(self) -> str | None:
        """What is wrong with it, if memory was short because a record claims a length that no
        memory holds."""
        if self._data[_MAGIC_AT] < 2:
            return None
        try:
            for _ in records_left_in(self._data, self._bounds.max_batch_bytes):
                pass
        except CorruptRecordException as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _stand_in(self, reason: Reason, what: str) -> _StandIn:
        last = self.next_offset - 1
        where = f"offset {last}" if last == self.base_offset else f"{self.base_offset} to {last}"
        kept = UnreadableBatch(self._data[:KEPT_BYTES])
        size = f"{len(self._data):,} bytes as Kafka stores it"
        if len(kept) < len(self._data):
            size += f", of which the first {len(kept):,} are kept"
        kept.fault = Undecodable(reason, f"the batch of {where} ({size}): {what[:200]}")
        # At the batch's last offset, so that it is not skipped by who is in the middle of it.
        return _StandIn(last, _timestamp(self._data), kept)


def _require_few_records(data: bytes) -> None:
    if _HEADER.unpack_from(data)[-1] > MAX_RECORDS_IN_BATCH:
        raise InflatedTooLargeError(f"more than {MAX_RECORDS_IN_BATCH:,} records")


def _plain(data: bytes, inflated: bytes | bytearray | memoryview) -> bytes:
    """A batch as it would have been without compression."""
    header = bytearray(data[: _HEADER.size])
    header[_CODEC_AT] &= ~_CODEC_BITS
    return b"".join((header, inflated))


class _BatchOfAnything(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka has no types
    """A batch whose lengths may be anything: it believes none of them.

    aiokafka's compiled reader asks for as much memory as a record claims to have, and even the
    other one takes its numbers from compiled code, which reads beyond the end of the bytes.
    """

    def _read_msg(self) -> Any:
        return super()._read_msg(decode_varint_py)


def records_left_in(data: bytes, max_batch_bytes: int) -> Iterator[Any]:
    """The records of a kept batch, in aiokafka's form, up to the first that cannot be read.

    Its checksum is not looked at. Raises InflatedTooLargeError, and whatever the codecs and
    aiokafka raise, at the place where nothing more can be read.
    """
    if len(data) < _HEADER.size or data[_MAGIC_AT] < 2:
        raise ValueError("it is cut off, or in Kafka's old format")
    _require_few_records(data)
    codec = data[_CODEC_AT] & _CODEC_BITS
    if codec:
        data = _plain(data, inflate(codec, memoryview(data)[_HEADER.size :], max_batch_bytes))
    yield from _BatchOfAnything(data)


def inflate(codec: int, payload: memoryview, limit: int) -> bytes | bytearray | memoryview:
    """What Kafka's codec `codec` made `payload` of, if it has at most `limit` bytes.

    Raises InflatedTooLargeError, and whatever the codec raises when it cannot read it. Never
    takes more memory than a small multiple of `limit`.
    """
    match codec:
        case Codec.GZIP:
            return _gunzip(payload, limit)
        case Codec.SNAPPY:
            return _unsnap(payload, limit)
        case Codec.LZ4:
            return _fill(cramjam.lz4.decompress_into, payload, limit)
        case Codec.ZSTD:
            return _fill(cramjam.zstd.decompress_into, payload, limit)
        case _:
            raise ValueError(f"no codec has the number {codec}")


def _too_large(limit: int) -> InflatedTooLargeError:
    return InflatedTooLargeError(f"more than {limit:,} bytes when inflated (kafka.max_batch_bytes)")


def _gunzip(payload: memoryview, limit: int) -> bytes:
    members: list[bytes] = []
    room = limit
    rest = bytes(payload)
    while rest:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        members.append(member.decompress(rest, room + 1))
        room -= len(members[-1])
        if room < 0:
            raise _too_large(limit)
        if not member.eof:
            raise EOFError("the gzip stream is cut off")
        rest = member.unused_data
    return b"".join(members)


def _unsnap(payload: memoryview, limit: int) -> bytes:
    if bytes(payload[: len(_XERIAL)]) != _XERIAL:
        return _unsnap_block(payload, limit, limit)
    blocks: list[bytes] = []
    room, start = limit, _XERIAL_HEADER_BYTES
    while start < len(payload):
        (n_bytes,) = _SIZE.unpack_from(payload, start)
        start += _SIZE.size
        if not 0 < n_bytes <= len(payload) - start:
            raise ValueError("a snappy block is cut off")
        blocks.append(_unsnap_block(payload[start : start + n_bytes], room, limit))
        room -= len(blocks[-1])
        start += n_bytes
    return b"".join(blocks)


def _unsnap_block(block: memoryview, room: int, limit: int) -> bytes:
    data = bytes(block)
    if cramjam.snappy.decompress_raw_len(data) > room:
        raise _too_large(limit)
    return bytes(cramjam.snappy.decompress_raw(data))


def _fill(decompress_into: Any, payload: memoryview, limit: int) -> memoryview:
    """Inflate into a buffer: of a likely size at first, then of the limit."""
    data = bytes(payload)
    guess = min(limit, max(65_536, _FIRST_GUESS * len(data)))
    for room in (guess, limit):
        buffer = bytearray(room)
        try:
            return memoryview(buffer)[: decompress_into(data, buffer)]
        except cramjam.DecompressionError as error:
            if _NO_ROOM not in str(error):
                raise
    raise _too_large(limit)


def _legacy_payload(data: bytes) -> tuple[int, memoryview]:
    """The codec and the value of a message of magic 0 or 1."""
    start = _LEGACY_KEY_AT[data[_MAGIC_AT]]
    (key_size,) = _SIZE.unpack_from(data, start)
    start += _SIZE.size + max(0, key_size)
    (value_size,) = _SIZE.unpack_from(data, start)
    start += _SIZE.size
    codec = data[_LEGACY_ATTRIBUTES_AT] & _CODEC_BITS
    return codec, memoryview(data)[start : start + max(0, value_size)]


def _timestamp(data: bytes) -> int:
    """The largest of a batch, in milliseconds since 1970; -1 in the oldest format."""
    if data[_MAGIC_AT] < 2:
        return -1
    return int(_HEADER.unpack_from(data)[8])
