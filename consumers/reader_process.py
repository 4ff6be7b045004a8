"""Read large blocks in a process of their own, so that reading and storing use two processors.

Decoding and judging hold the interpreter's lock, and so does much of storing: in one process
they take turns, on two processors they do not. The process is started by the first large
block, ends when there were none for a while, and keeps nothing: whatever goes wrong with it,
the block is read in the daemon as if there were no process.

It is spoken to over its stdin and stdout (consumers/reader_frames.py); the other end is
consumers/reader_worker.py.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Any, cast

import structlog

from consumers.reader_frames import PackedArrivals, receive, send
from consumers.reading import Reading, Record, Stretch, dead
from consumers.wire import TOMBSTONE, Limits, Reason, Undecodable
from learning.policy import Policy
from learning.ports import DeadLetter, EventKind, JudgedOutput, Origin, ReceivedFeedback

log = structlog.get_logger(__name__)

IDLE_SECONDS = 60.0
"""So long after its last block it is ended, and its memory is free."""
ANSWER_SECONDS = 30.0
"""A block takes some tens of milliseconds; an answer that takes longer is not coming."""
AGAIN_SECONDS = 300.0
"""After it failed it is not started for so long."""
_PIPE_BYTES = 2**20
_FAILURES = (OSError, EOFError, ValueError, TypeError, TimeoutError)
_NOTHING = Stretch(EventKind.OUTPUT, "", "", 0, [], [])


class ReaderProcess:
    """The daemon's end. Used by one block at a time; others are read in the daemon meanwhile."""

    def __init__(
        self, policy: Callable[[], Policy], max_output_characters: int, limits: Limits
    ) -> None:
        self._policy = policy
        self._rules = (max_output_characters, limits.max_bytes, limits.max_depth)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader-process")
        self._process: subprocess.Popen[bytes] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._busy = False
        self._told: Policy | None = None
        """What the process knows; it is told again when that has changed."""
        self._not_before = 0.0
        self._end_when_idle: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Of the process while there is one."""
        return self._process.pid if self._process is not None else None

    async def read(self, stretch: Stretch, received_at: int) -> Reading | None:
        """What a stretch became, as `Reader.read` says; None: read it otherwise."""
        if self._process is None or self._starting is not None:
            self._start()
            return None
        if self._busy:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._ask(self._process, stretch, received_at)
        except _FAILURES as error:
            log.warning("records are read in the daemon itself for now", error=repr(error))
            self._not_before = asyncio.get_running_loop().time() + AGAIN_SECONDS
            self._end()
            return None

    async def close(self) -> None:
        """End the process, and wait for it."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        self._end()
        await asyncio.to_thread(self._thread.shutdown)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._starting is None and loop.time() >= self._not_before:
            self._starting = loop.create_task(self._become_ready(), name="reader process")

    async def _become_ready(self) -> None:
        """Importing takes it half a second, in which nobody waits for it."""
        try:
            self._process = process = subprocess.Popen(  # noqa: ASYNC220  # it waits for nothing
                [sys.executable, "-m", "consumers.reader_worker", *map(str, self._rules)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=_PIPE_BYTES,
            )
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._ask(process, _NOTHING, 0)
        except _FAILURES as error:
            log.warning("the process that reads records did not start", error=repr(error))
            self._not_before = asyncio.get_running_loop().time() + AGAIN_SECONDS
            self._end()
        else:
            log.info("large blocks are read in a process of their own", pid=process.pid)
        finally:
            self._starting = None

    async def _ask(
        self, process: subprocess.Popen[bytes], stretch: Stretch, received_at: int
    ) -> Reading:
        self._busy = True
        self._end_later()
        policy = self._policy()
        bars = None if policy is self._told else _plain(policy)
        asking = asyncio.get_running_loop().run_in_executor(
            self._thread, _exchange, process, bars, stretch, received_at
        )
        try:
            reading = await asyncio.shield(asking)
            self._told = policy
            return reading
        except asyncio.CancelledError:
            # Otherwise the answer would be taken for the next one's.
            process.kill()
            await asyncio.wait([asking])
            asking.exception()
            self._end()
            raise
        finally:
            self._busy = False

    def _end_later(self) -> None:
        if self._end_when_idle is not None:
            self._end_when_idle.cancel()
        self._end_when_idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        if self._busy:
            self._end_later()
        else:
            self._end()

    def _end(self) -> None:
        if self._end_when_idle is not None:
            self._end_when_idle.cancel()
        process, self._process, self._told = self._process, None, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None, "it was opened with pipes"
                    pipe.close()


def _plain(policy: Policy) -> tuple[Any, ...]:
    """What verdicts depend on, in plain values, as reader_worker.py takes it."""
    return (
        policy.min_confidence,
        policy.enable_auto_approval,
        policy.feedback_threshold,
        dict(policy.offsets),
        {task_type: dict(trusts) for task_type, trusts in policy.distrusted.items()},
    )


def _exchange(
    process: subprocess.Popen[bytes],
    bars: tuple[Any, ...] | None,
    stretch: Stretch,
    received_at: int,
) -> Reading:
    """Ask and wait for the answer, in a thread."""
    assert process.stdin is not None, "it was opened with pipes"
    assert process.stdout is not None, "it was opened with pipes"
    kind, place = stretch.kind, (stretch.source, stretch.topic, stretch.partition)
    offsets, values, dead_letters = _readable(stretch, received_at)
    lengths = list(map(len, values))
    send(
        process.stdin,
        (bars, received_at, kind.value, place, offsets, lengths),
        b"".join(values),
    )
    (task_types, faults), packed = receive(process.stdout)
    if faults:
        for at, reason, detail in faults:
            record = Record(kind, values[at], Origin(*place, offsets[at]))
            dead_letters.append(dead(record, Undecodable(Reason(reason), detail), received_at))
        at_fault = {at for at, *_ in faults}
        sound = [at not in at_fault for at in range(len(values))]
        offsets, values = list(compress(offsets, sound)), list(compress(values, sound))
    reading = Reading(dead_letters=dead_letters, task_types=set(task_types))
    if kind is EventKind.OUTPUT:
        reading.outputs = PackedArrivals(JudgedOutput, packed, values, place, offsets, received_at)
    else:
        reading.feedback = PackedArrivals(
            ReceivedFeedback, packed, values, place, offsets, received_at
        )
    return reading


def _readable(
    stretch: Stretch, received_at: int
) -> tuple[Sequence[int], Sequence[bytes], list[DeadLetter]]:
    """Offsets and values of the records that have one and no fault, and the others' letters."""
    if not stretch.faults and None not in stretch.values:
        return stretch.offsets, cast("Sequence[bytes]", stretch.values), []
    offsets, values, dead_letters = [], [], []
    for record in stretch:
        fault = record.fault or (TOMBSTONE if record.value is None else None)
        if fault is not None:
            dead_letters.append(dead(record, fault, received_at))
        elif record.value is not None:
            offsets.append(record.origin.offset)
            values.append(record.value)
    return offsets, values, dead_letters
