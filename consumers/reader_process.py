"""Read large blocks in a process of their own, so that reading and storing use two processors.

Decoding and judging hold the interpreter's lock, and so does much of storing: in one process
they take turns, on two processors they do not. The process is started by the first large
block, ends when there were none for a while, and keeps nothing: whatever goes wrong with it,
the block is read in the daemon as if there were no process.

It is spoken to over its stdin and stdout, in frames of `marshal`, which is safe between two
processes of one program: what came from outside crosses as bytes, and comes back as text.
`python -m consumers.reader_process` is the other end.
"""

import asyncio
import contextlib
import marshal
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from typing import Any, BinaryIO, TypeVar

import structlog

from consumers.reading import Reader, Reading, Record, Stretch, dead
from consumers.wire import Limits, Reason, Undecodable
from learning.judge import Judge
from learning.policy import Policy
from learning.ports import DeadLetter, EventKind, JudgedOutput, Origin, ReceivedFeedback
from learning.validators import installed

log = structlog.get_logger(__name__)

A = TypeVar("A", JudgedOutput, ReceivedFeedback)

IDLE_SECONDS = 60.0
"""So long after its last block it is ended, and its memory is free."""
ANSWER_SECONDS = 30.0
"""A block takes some tens of milliseconds; an answer that takes longer is not coming."""
AGAIN_SECONDS = 300.0
"""After it failed it is not started for so long."""
_PIPE_BYTES = 2**20
_LENGTH = struct.Struct("<Q")
_LONGEST = 2**31
_FAILURES = (OSError, EOFError, ValueError, TypeError, TimeoutError)
_TASK_TYPE = JudgedOutput._fields.index("task_type")
_NOTHING = Stretch(EventKind.OUTPUT, "", "", 0, [], [])
_new_output: Callable[[Any], JudgedOutput] = partial(tuple.__new__, JudgedOutput)
_new_feedback: Callable[[Any], ReceivedFeedback] = partial(tuple.__new__, ReceivedFeedback)


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
                [sys.executable, "-m", "consumers.reader_process", *map(str, self._rules)],
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
        bars = (policy.min_confidence, policy.enable_auto_approval, policy.feedback_threshold)
        asking = asyncio.get_running_loop().run_in_executor(
            self._thread, _exchange, process, bars, stretch, received_at
        )
        try:
            return await asyncio.shield(asking)
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
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None, "it was opened with pipes"
                    pipe.close()


def _exchange(
    process: subprocess.Popen[bytes],
    bars: tuple[float, bool, float],
    stretch: Stretch,
    received_at: int,
) -> Reading:
    """Ask and wait for the answer, in a thread."""
    assert process.stdin is not None, "it was opened with pipes"
    assert process.stdout is not None, "it was opened with pipes"
    place = (stretch.source, stretch.topic, stretch.partition)
    offsets, values = stretch.offsets, stretch.values
    at_fault: list[DeadLetter] = []
    if stretch.faults:
        at_fault = [dead(one, one.fault, received_at) for one in stretch if one.fault is not None]
        sound = [offset not in stretch.faults for offset in offsets]
        offsets, values = list(compress(offsets, sound)), list(compress(values, sound))
    is_output = stretch.kind is EventKind.OUTPUT
    _send(process.stdin, (bars, received_at, is_output, place, offsets, values))
    packed, task_types, faults = _receive(process.stdout)
    refused = [
        dead(
            Record(stretch.kind, values[at], Origin(*place, offsets[at])),
            Undecodable(Reason(reason), detail),
            received_at,
        )
        for at, reason, detail in faults
    ]
    reading = Reading(dead_letters=at_fault + refused)
    reading.task_types.update(task_types)
    n = len(offsets) - len(faults)
    if is_output:
        reading.outputs = _Packed(packed, _new_output, n)
    else:
        reading.feedback = _Packed(packed, _new_feedback, n)
    return reading


class _Packed(Sequence[A]):
    """Arrivals as the other process packed them, unpacked anew by each thread that walks them.

    So the objects are made where they are used: a processor that walks over what another one
    made waits for each of them.
    """

    def __init__(self, packed: bytes, make: Callable[[tuple[Any, ...]], A], n: int) -> None:
        self._packed = packed
        self._make: Callable[[tuple[Any, ...]], A] = make
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[A]:
        return map(self._make, marshal.loads(self._packed))  # noqa: S302  # from our own process

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def _send(pipe: BinaryIO | Any, message: Any) -> None:
    frame = marshal.dumps(message)
    pipe.write(_LENGTH.pack(len(frame)))
    pipe.write(frame)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> Any:
    """The next message. Raises EOFError when the other end is gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError("the other process has ended")
    (n_bytes,) = _LENGTH.unpack(head)
    if n_bytes > _LONGEST:
        raise ValueError(f"a message of {n_bytes:,} bytes")
    return marshal.loads(pipe.read(n_bytes))  # noqa: S302  # from our own process


def main() -> None:
    """Read blocks until stdin ends: with the daemon, however that ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    max_output_characters, max_bytes, max_depth = map(int, sys.argv[1:])
    validators = installed(max_output_characters)
    limits = Limits(max_bytes, max_depth)
    stdin, stdout = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a validator from outside may print
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            bars, received_at, is_output, place, offsets, values = _receive(stdin)
            source, topic, partition = place
            reader = Reader(Judge(partial(Policy, *bars), validators), limits)
            kind = EventKind.OUTPUT if is_output else EventKind.FEEDBACK
            arrivals, faults = [], []
            for at, (offset, value) in enumerate(zip(offsets, values, strict=True)):
                arrival = reader.arrival(
                    kind, value, Origin(source, topic, partition, offset), received_at
                )
                if isinstance(arrival, Undecodable):
                    faults.append((at, arrival.reason.value, arrival.detail))
                else:
                    arrivals.append(tuple(arrival))
            task_types = {arrival[_TASK_TYPE] for arrival in arrivals}
            _send(stdout, (marshal.dumps(arrivals), list(task_types), faults))


if __name__ == "__main__":
    main()
