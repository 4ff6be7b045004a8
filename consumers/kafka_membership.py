"""One membership of a consumer group: claim, seek, read, store, commit, give back.

The store's positions are the truth; what is committed to Kafka is for lag tools. Nothing
here knows what is in a record. It loses nothing by forgetting: whatever goes wrong, what
is not stored is dropped from memory and read again from the stored position.

What it knows of aiokafka 0.14, read in its source:
- Exceptions in rebalance callbacks are logged and swallowed. So the callbacks only note
  what happened, and the poll loop does the work and raises the errors.
- Records can come before `on_partitions_assigned` is called, read from the position that
  was committed to Kafka. So what comes for a partition without a claim is dropped.
- A batch is inflated in the event loop without a limit, and stops its partition when that
  fails. So the consumer is bounded (consumers/kafka_batches.py) before it gets here. What is
  left to be isolated below is a wrong checksum the first time, and what nobody foresaw.
- A paused partition is not fetched, and what was fetched of it is thrown away.
- `getmany` throws away what it took from other partitions when one of them raises. So
  after an error every partition is sought again.
- `getmany` waits for the end of a rebalance whatever its timeout says.
- With `auto_offset_reset="earliest"` a lost or recreated topic is a silent jump. So it is
  "none", and the error says what to look into.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    UnsupportedCodecError,
)

from consumers.ingest import Ingest
from consumers.kafka_batches import Bounds, UnreadableBatch
from consumers.kafka_connection import KafkaConnection
from consumers.kafka_contact import Contact
from consumers.kafka_headers import fault_in_headers
from consumers.kafka_position import Recreated, fingerprint, start_of
from consumers.reading import Stretch
from consumers.wire import Undecodable
from learning.errors import LearningError
from learning.facts import Announce, PartitionFenced, TopicRecreated
from learning.failpoints import reached
from learning.ports import (
    Block,
    EventKind,
    IntakeStore,
    Position,
    PositionFencedError,
    PositionMove,
    StoreUnavailableError,
)

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2
REBALANCE_GRACE_SECONDS = 1.0
ISOLATE_SECONDS = 2.0
COMMIT_EVERY_SECONDS = 1.0
COMMIT_AGAIN_SECONDS = 10.0
COMMIT_SECONDS = 2.0
REVOKE_SECONDS = 5.0
LOOK_UP_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 30.0
LAST_STORE_PAUSE_SECONDS = 5.0
REJOIN_SECONDS = 60.0
STUCK_SECONDS = 60.0
MOST_UNDER_WAY = 3
"""Fetches that were handed on: stored, read, or waiting for that. Each takes some megabytes."""


class Pauses:
    """How long to wait before each further attempt: doubled each time, up to a bound."""

    def __init__(self, last_seconds: float = LAST_PAUSE_SECONDS) -> None:
        self._seconds = 0.0
        self._last_seconds = last_seconds

    def next(self) -> float:
        """The next pause in seconds."""
        self._seconds = min(self._last_seconds, max(FIRST_PAUSE_SECONDS, 2 * self._seconds))
        return self._seconds

    def reset(self) -> None:
        """Begin again: an attempt succeeded."""
        self._seconds = 0.0


class SkippedRecordsError(LearningError):
    """Records between two blocks of a partition are missing: storing the second would lose them."""

    def __init__(self, tp: TopicPartition, end: int, start: int) -> None:
        super().__init__(f"{tp.topic}[{tp.partition}]: {end} is stored next, not {start}")
        self.tp, self.end, self.start = tp, end, start


@dataclass
class _Claim:
    """One partition that this member owns, and how far it is."""

    position: Position
    placed: bool = False
    """Whether the consumer reads from where it should."""
    passed: int = 0
    """Where to read on: what is below is stored, or holds nothing to store."""
    handed_on: int | None = None
    """Where to read on once all that is on its way is stored; None while nothing is."""
    witness_due: bool = False
    """The next record should be the last one that was stored."""
    distrusted: bool = False
    """It was not."""
    committed: int | None = None
    stuck_until: float | None = None
    held_back: bool = False
    """Too many events wait already."""


@dataclass(frozen=True)
class _Part:
    """Records of one partition that are on their way into the store."""

    tp: TopicPartition
    claim: _Claim
    stretch: Stretch
    last: Any
    start: int
    """Where the part before it ended."""
    end: int


@dataclass(frozen=True)
class _Passage:
    """What was handed on together."""

    task: asyncio.Task[None]
    """Done when it is stored, and all before it; fails when anything of that does."""
    is_read: asyncio.Event
    """Or something went wrong with it."""


class Membership:
    """Reads with one started consumer, from joining the group until it is told to stop."""

    def __init__(
        self,
        consumer: Any,
        bounds: Bounds,
        connection: KafkaConnection,
        ingest: Ingest,
        store: IntakeStore,
        announce: Announce,
        *,
        name: str,
        monotonic: Callable[[], float],
    ) -> None:
        self._consumer = consumer
        self._bounds = bounds
        self._kinds = connection.kinds
        self._max_records = connection.max_records
        self._ingest = ingest
        self._store = store
        self._announce = announce
        self._name = name
        self._monotonic = monotonic
        self._joined = False
        self._unclaimed: Sequence[TopicPartition] = ()
        self._claims: dict[TopicPartition, _Claim] = {}
        self._latest: _Passage | None = None
        """What was handed on last, while the next records are fetched."""
        self._under_way: list[asyncio.Task[None]] = []
        self._read: list[tuple[_Part, Block]] = []
        """What waits for the transaction before it to end."""
        self._pauses = Pauses()
        self._callback_error: Exception | None = None
        self._fenced_at: float | None = None
        self._commit_due_at = 0.0
        self._missing_topics: frozenset[str] = frozenset()
        self._store_pauses = Pauses(LAST_STORE_PAUSE_SECONDS)
        self._contact = Contact(consumer, monotonic)

    # --- what health and metrics ask ----------------------------------------------------

    @property
    def trouble(self) -> str:
        """See KafkaSource."""
        if self._contact.is_away:
            return f"the broker has not answered for {self._contact.silent_seconds:.0f} s"
        if not self._joined:
            return "waiting for the consumer group to assign partitions"
        if self._fenced_at is not None:
            return "a partition has another owner now; the group is joined again soon"
        if self._unclaimed or not all(claim.placed for claim in self._claims.values()):
            return "the assigned partitions are not read yet: do the store and the broker answer?"
        return ""

    @property
    def assigned(self) -> frozenset[tuple[str, int]]:
        """See KafkaSource."""
        return frozenset((tp.topic, tp.partition) for tp, _ in self._placed())

    @property
    def stuck(self) -> Mapping[tuple[str, int], int]:
        """See KafkaSource."""
        return {
            (tp.topic, tp.partition): claim.passed
            for tp, claim in self._placed()
            if claim.stuck_until is not None
        }

    def lag(self) -> Mapping[tuple[str, int], int]:
        """See KafkaSource."""
        return {
            (tp.topic, tp.partition): max(0, end - claim.passed)
            for tp, claim in self._placed()
            if (end := self._contact.end(tp)) is not None
        }

    # --- the poll loop ------------------------------------------------------------------

    async def consume(self, stopping: asyncio.Event) -> None:
        """Join, and read until `stopping` is set, or until it is better to join anew.

        Raises KafkaError when the client cannot go on.
        """
        self._consumer.subscribe(list(self._kinds), listener=_Listener(self))
        try:
            while not stopping.is_set() and not self._fenced_for_long():
                try:
                    await self._step(stopping)
                except StoreUnavailableError as error:
                    pause = self._store_pauses.next()
                    log.warning(
                        "the store is not available: reading is paused",
                        error=str(error),
                        retry_in_seconds=pause,
                    )
                    await self._idle(pause, stopping)
        finally:
            with contextlib.suppress(StoreUnavailableError):
                await self._finish_storing()
        await self._commit(self._claims)

    async def _step(self, stopping: asyncio.Event) -> None:
        if self._callback_error is not None:
            raise self._callback_error
        await self._claim_assigned()
        if not await self._place_claimed():
            await self._idle(self._pauses.next(), stopping)
            return
        await self._hold_back()
        fetched = await self._fetch()
        if fetched:
            await self._hand_on(fetched)
        else:
            await self._finish_storing()
            await self._measure()
        await self._keep_in_touch()
        self._retry_stuck()
        self._say_missing_topics()
        if self._monotonic() >= self._commit_due_at:
            await self._commit(self._claims)

    async def _idle(self, seconds: float, stopping: asyncio.Event) -> None:
        """Stay in the group and read nothing."""
        with contextlib.suppress(StoreUnavailableError):
            await self._finish_storing()
        deadline = self._monotonic() + seconds
        while not stopping.is_set() and self._monotonic() < deadline:
            self._consumer.pause(*self._consumer.assignment())
            with contextlib.suppress(NoOffsetForPartitionError, OffsetOutOfRangeError):
                await self._getmany(max_records=1)
            await self._keep_in_touch()
        for tp, claim in self._placed():
            claim.held_back = False
            if claim.stuck_until is None:
                self._consumer.resume(tp)
        self._seek_all()

    # --- pressure, and whether the broker is there ----------------------------------------

    async def _hold_back(self) -> None:
        """Leave outputs in Kafka while too many events wait; feedback goes on."""
        is_full = self._ingest.pressure.is_full
        changed = [
            (tp, claim)
            for tp, claim in self._placed()
            if self._kinds[tp.topic] is EventKind.OUTPUT
            and claim.stuck_until is None
            and claim.held_back != is_full
        ]
        if changed:
            await self._finish_storing()
        for tp, claim in changed:
            claim.held_back = is_full
            if is_full:
                self._consumer.pause(tp)
            else:
                self._consumer.resume(tp)
                self._consumer.seek(tp, claim.passed)
        if changed and is_full:
            why = self._ingest.pressure.refusal(EventKind.OUTPUT)
            log.warning("outputs stay in kafka for now", why=why)
        elif changed:
            log.info("outputs are read again")

    async def _keep_in_touch(self) -> None:
        held_back = any(claim.held_back for claim in self._claims.values())
        await self._contact.keep(self._claims, fetching=not held_back)

    # --- rebalances ---------------------------------------------------------------------

    async def revoke(self) -> None:
        """The group is rebalanced: let what is being stored be stored, then commit."""
        claims, self._claims = self._claims, {}
        self._unclaimed, self._joined = (), False
        if self._latest is not None:
            _, pending = await asyncio.wait([self._latest.task], timeout=REVOKE_SECONDS)
            if pending:
                # The next owner's claim fences the write, or comes after it: both are right.
                log.warning("partitions are given back while a block is being stored")
        await self._commit(claims)

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        """The group was rebalanced: the poll loop claims these."""
        self._unclaimed, self._joined = partitions, True
        self._fenced_at = None

    def fail(self, error: Exception) -> None:
        """A rebalance callback failed: the poll loop raises it."""
        self._callback_error = error

    async def _claim_assigned(self) -> None:
        wanted = self._unclaimed
        if not wanted:
            return
        positions = await self._store.claim(self._name, [(tp.topic, tp.partition) for tp in wanted])
        if self._unclaimed is not wanted:
            return  # another rebalance was quicker; what it assigned comes next
        self._claims = {TopicPartition(p.topic, p.partition): _Claim(p) for p in positions}
        self._unclaimed = ()
        log.info("partitions claimed", partitions=[f"{p.topic}[{p.partition}]" for p in positions])

    async def _place_claimed(self) -> bool:
        """Seek what is claimed and not yet read from the right place. False: try again."""
        unplaced = {tp: claim for tp, claim in self._claims.items() if not claim.placed}
        if not unplaced:
            return True
        await self._finish_storing()
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                first = await self._consumer.beginning_offsets(list(unplaced))
                end = await self._consumer.end_offsets(list(unplaced))
        except (KafkaError, TimeoutError) as error:
            log.warning("the broker does not say which offsets it has", error=repr(error))
            return False
        for tp, claim in unplaced.items():
            if self._claims.get(tp) is claim:
                with self._fencing({tp: claim}):
                    await self._place(tp, claim, first[tp], end[tp])
        return True

    async def _place(self, tp: TopicPartition, claim: _Claim, first: int, end: int) -> None:
        where = {"topic": tp.topic, "partition": tp.partition}
        start = start_of(claim.position, first, end, distrusted=claim.distrusted)
        if isinstance(start, Recreated):
            stored = claim.position.next_offset or 0
            claim.position = await self._store.rewind(self._name, claim.position, start.offset)
            log.warning("the topic was made anew: it is read from its start", **where)
            self._announce(TopicRecreated(tp.topic, tp.partition, stored, start.offset))
        elif start.n_expired:
            log.error(
                "records were deleted before they were read: the topic's retention is too short",
                n_offsets=start.n_expired,
                first_offset=first,
                **where,
            )
        if self._claims.get(tp) is not claim:
            return  # revoked meanwhile
        claim.placed, claim.distrusted, claim.stuck_until = True, False, None
        claim.passed = start.offset
        claim.witness_due = not isinstance(start, Recreated) and start.has_witness
        self._consumer.resume(tp)
        self._consumer.seek(tp, start.offset)

    @contextlib.contextmanager
    def _fencing(self, claims: Mapping[TopicPartition, _Claim]) -> Iterator[None]:
        """Let go of a partition that turns out to have another owner."""
        try:
            yield
        except PositionFencedError as error:
            self._announce(PartitionFenced(error.topic, error.partition, error.epoch))
            tp = TopicPartition(error.topic, error.partition)
            if self._claims.get(tp) is claims[tp]:
                del self._claims[tp]
                self._consumer.pause(tp)
                self._fenced_at = self._fenced_at or self._monotonic()

    def _fenced_for_long(self) -> bool:
        """Whether the group still counts on us for a partition that another one claimed.

        Then only a new membership tells whose it is; without one, nobody would read it.
        """
        if self._fenced_at is None or self._monotonic() < self._fenced_at + REJOIN_SECONDS:
            return False
        log.warning("joining the group again, because a partition has two owners")
        return True

    # --- reading and storing ------------------------------------------------------------

    async def _fetch(self) -> Mapping[TopicPartition, Sequence[Any]]:
        try:
            return await self._getmany(max_records=self._max_records)
        except NoOffsetForPartitionError:
            await self._finish_storing()
            self._seek_all()  # it has no claim yet
        except OffsetOutOfRangeError:
            for claim in self._claims.values():
                claim.placed = False
        except Exception as error:
            if not _is_undecodable(error):
                raise
            log.error("a batch cannot be decoded: looking for its partition", error=repr(error))
            await self._isolate()
        return {}

    async def _getmany(
        self, *partitions: TopicPartition, max_records: int, seconds: float = POLL_SECONDS
    ) -> Mapping[TopicPartition, Sequence[Any]]:
        self._bounds.renew()
        try:
            # Nothing is lost: it takes records only after the last point where it waits.
            async with asyncio.timeout(seconds + REBALANCE_GRACE_SECONDS):
                fetched: Mapping[TopicPartition, Sequence[Any]] = await self._consumer.getmany(
                    *partitions, timeout_ms=round(seconds * 1000), max_records=max_records
                )
        except TimeoutError:
            return {}
        return fetched

    async def _hand_on(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Have records read and stored, behind all that came before.

        While they are read, what was handed on before is stored, all that waits for it in one
        transaction; who comes with more waits until something is done. Raises what went wrong
        with something before: then these are dropped.
        """
        before = self._latest
        if before is not None:
            await before.is_read.wait()
            if len(self._under_way) == MOST_UNDER_WAY:
                await asyncio.wait(self._under_way[:1])
            self._under_way = [task for task in self._under_way if not task.done()]
            if before.task.done():
                await self._finish_storing()
                before = None
        parts = []
        for tp, records in fetched.items():
            claim = self._claims.get(tp)
            if claim is not None and claim.placed:
                new = self._after_witness(claim, records)
                if new:
                    start, end = claim.handed_on or claim.passed, self._end_of(tp, new[-1])
                    parts.append(_Part(tp, claim, self._stretch(tp, new), new[-1], start, end))
                    claim.handed_on = end
        if parts:
            is_read = asyncio.Event()
            way = self._read_and_store(parts, before, is_read)
            self._latest = _Passage(asyncio.create_task(way, name="store block"), is_read)
            self._under_way.append(self._latest.task)

    async def _read_and_store(
        self, parts: Sequence[_Part], before: _Passage | None, is_read: asyncio.Event
    ) -> None:
        try:
            for part in parts:
                block = await self._ingest.prepare(self._name, part.stretch)
                self._read.append((part, block))
        finally:
            is_read.set()
        if before is not None:
            await before.task
        read, self._read = self._read, []
        # Again without a partition that is lost, for those behind it are on their way.
        while wanted := [each for each in read if self._owns(each[0])]:
            with self._fencing({part.tp: part.claim for part, _ in wanted}):
                await self._store_parts(wanted)
                return

    def _owns(self, part: _Part) -> bool:
        """Whether its partition was neither revoked nor fenced since."""
        return self._claims.get(part.tp) is part.claim

    async def _store_parts(self, wanted: Sequence[tuple[_Part, Block]]) -> None:
        moves: dict[TopicPartition, PositionMove] = {}  # of each partition the last
        for part, _ in wanted:
            before = moves[part.tp].next_offset if part.tp in moves else part.claim.passed
            if part.start != before:
                raise SkippedRecordsError(part.tp, before, part.start)
            moves[part.tp] = PositionMove(part.claim.position, part.end, _mark(part.last))
        await self._ingest.store(
            *(block for _, block in wanted),
            *(Block(self._name, move=move) for move in moves.values()),
        )
        for part, _ in wanted:
            move = moves[part.tp]
            part.claim.position = replace(
                move.claimed, next_offset=move.next_offset, fingerprint=move.fingerprint
            )
            part.claim.passed = move.next_offset
        self._pauses.reset()
        self._store_pauses.reset()

    def _end_of(self, tp: TopicPartition, last: Any) -> int:
        """The offset behind a record; a damaged batch may claim to reach past the log's end."""
        end = int(last.offset) + 1
        stable = self._consumer.last_stable_offset(tp)
        if isinstance(last.value, UnreadableBatch) and stable is not None:
            end = min(end, int(stable))
        return end

    async def _finish_storing(self) -> None:
        """Wait until all that was handed on is stored, and raise what went wrong with it.

        Before this only what is below it is stored, so nothing may be sought or measured.
        """
        latest, self._latest = self._latest, None
        try:
            if latest is not None:
                await latest.task
        finally:
            self._under_way, self._read = [], []
            for claim in self._claims.values():
                claim.handed_on = None

    def _after_witness(self, claim: _Claim, records: Sequence[Any]) -> Sequence[Any]:
        """The records that are new; none when the witness proves to be another record."""
        if not claim.witness_due:
            return records
        witness, claim.witness_due = claim.passed, False
        if records[0].offset == witness:
            if fingerprint(records[0]) != claim.position.fingerprint:
                claim.placed, claim.distrusted = False, True
                return ()
            records = records[1:]
        claim.passed = witness + 1
        return records

    def _stretch(self, tp: TopicPartition, records: Sequence[Any]) -> Stretch:
        faults = {
            record.offset: fault
            for record in records
            if (record.headers or isinstance(record.value, UnreadableBatch))
            and (fault := _fault_in(record)) is not None
        }
        return Stretch(
            self._kinds[tp.topic],
            self._name,
            tp.topic,
            tp.partition,
            [record.offset for record in records],
            [record.value for record in records],
            faults,
        )

    async def _measure(self) -> None:
        """What was delivered is stored, so what the consumer passed is passed for good.

        It also passes what it does not deliver: aborted records, and transaction markers.
        """
        for tp, claim in self._placed():
            if not claim.witness_due:
                claim.passed = max(claim.passed, await self._consumer.position(tp))

    def _placed(self) -> Sequence[tuple[TopicPartition, _Claim]]:
        return [(tp, claim) for tp, claim in self._claims.items() if claim.placed]

    def _seek_all(self) -> None:
        """Forget what was fetched and not stored."""
        for tp, claim in self._placed():
            self._consumer.seek(tp, claim.passed)

    async def _commit(self, claims: Mapping[TopicPartition, _Claim]) -> None:
        """Tell Kafka how far the store is, for tools that show a group's lag."""
        self._commit_due_at = self._monotonic() + COMMIT_EVERY_SECONDS
        behind = [
            (tp, claim, claim.passed)
            for tp, claim in claims.items()
            if claim.placed and not claim.witness_due and claim.passed != claim.committed
        ]
        if not behind:
            return
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._consumer.commit({tp: offset for tp, _, offset in behind})
        except (KafkaError, TimeoutError) as error:
            self._commit_due_at = self._monotonic() + COMMIT_AGAIN_SECONDS
            log.warning(
                "offsets were not committed to kafka; the store has them", error=repr(error)
            )
            return
        reached("kafka offsets committed")
        for _, claim, offset in behind:  # what is stored meanwhile may have lost a partition
            claim.committed = offset

    def _say_missing_topics(self) -> None:
        if not self._joined:
            return
        missing = frozenset(t for t in self._kinds if not self._consumer.partitions_for_topic(t))
        for topic in missing - self._missing_topics:
            log.warning("the topic does not exist yet: waiting for it", topic=topic)
        for topic in self._missing_topics - missing:
            log.info("the topic exists now", topic=topic)
        self._missing_topics = missing

    # --- batches that cannot be decoded -------------------------------------------------

    async def _isolate(self) -> None:
        """Find the partition with a batch that aiokafka cannot decode, and leave it aside.

        The error does not name it, so each partition is read alone.
        """
        await self._finish_storing()
        self._seek_all()
        for tp, claim in self._placed():
            if claim.stuck_until is not None or self._claims.get(tp) is not claim:
                continue
            if claim.passed == self._consumer.highwater(tp):
                continue  # it has nothing to read
            try:
                fetched = await self._read_alone(tp, self._max_records)
            except Exception as error:
                if not _is_undecodable(error):
                    raise
                await self._read_up_to(tp, claim, error)
            else:
                await self._hand_on({tp: fetched})
                await self._finish_storing()

    async def _read_up_to(self, tp: TopicPartition, claim: _Claim, error: Exception) -> None:
        """Store the good records before the bad batch, read one by one, and wait there."""
        if self._claims.get(tp) is not claim:
            return  # revoked meanwhile
        self._consumer.seek(tp, claim.passed)
        good: list[Any] = []
        reached = False
        while not reached and len(good) < self._max_records:
            try:
                fetched = await self._read_alone(tp, 1)
            except Exception as again:
                if not _is_undecodable(again):
                    raise
                error, reached = again, True
            else:
                if not fetched:
                    break
                good.extend(fetched)
        if good:
            await self._hand_on({tp: good})
            await self._finish_storing()
        if not reached or self._claims.get(tp) is not claim:
            return
        claim.stuck_until = self._monotonic() + STUCK_SECONDS
        self._consumer.pause(tp)
        log.error(
            "a batch cannot be decoded: its partition waits, the others go on",
            topic=tp.topic,
            partition=tp.partition,
            offset=claim.passed,
            error=repr(error),
            retry_in_seconds=STUCK_SECONDS,
        )

    async def _read_alone(self, tp: TopicPartition, max_records: int) -> Sequence[Any]:
        fetched = await self._getmany(tp, max_records=max_records, seconds=ISOLATE_SECONDS)
        return fetched.get(tp, ())

    def _retry_stuck(self) -> None:
        for tp, claim in self._placed():
            if claim.stuck_until is not None and self._monotonic() >= claim.stuck_until:
                claim.stuck_until = None
                self._consumer.resume(tp)
                self._consumer.seek(tp, claim.passed)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Hands the callbacks on, and keeps their errors, which aiokafka would swallow."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        try:
            await self._membership.revoke()
        except Exception as error:
            self._membership.fail(error)

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._membership.assign(sorted(assigned))


def _fault_in(record: Any) -> Undecodable | None:
    """What is wrong with a record before its value is read."""
    if isinstance(record.value, UnreadableBatch):
        return record.value.fault
    return fault_in_headers(record.headers)


def _mark(record: Any) -> bytes:
    """What the last record that was stored is recognised by: nothing, if it is none itself.

    A batch that is too large today may be read after a change of the settings.
    """
    return b"" if isinstance(record.value, UnreadableBatch) else fingerprint(record)


def _is_undecodable(error: Exception) -> bool:
    """Whether a batch is to blame. The codecs raise anything; Kafka's own errors are others."""
    named = (CorruptRecordException, UnsupportedCodecError, RecordTooLargeError)
    return isinstance(error, named) or not isinstance(error, KafkaError)
