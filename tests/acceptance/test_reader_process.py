"""Blocks that a process of its own reads: the same result, and none lost whatever becomes of it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from consumers import reader_process
from consumers.ingest import Ingest
from consumers.reader_process import ReaderProcess
from consumers.reading import Reader, Reading, Stretch
from consumers.wire import STANDARD_LIMITS, Reason, Undecodable
from learning.clock import microseconds
from learning.judge import Judge
from learning.lines import ModelLine, ModelLines
from learning.policy import Policy
from learning.ports import EventKind
from learning.validators import built_in
from tests.bad_input import ARRIVED, BAD_BYTES, feedback, output
from tests.recording_store import RecordingStore

LONGEST_OUTPUT = 1_000
AT = microseconds(ARRIVED)
PATIENCE_SECONDS = 60.0
LINES = ModelLines([ModelLine("coding", frozenset({"coding"}), None, "scripted")])


class Bars:
    """The policy of the moment."""

    policy = Policy()

    def __call__(self) -> Policy:
        return self.policy


@pytest.fixture
def bars() -> Bars:
    return Bars()


@pytest.fixture
async def process(bars: Bars) -> AsyncIterator[ReaderProcess]:
    process = ReaderProcess(bars, LONGEST_OUTPUT, STANDARD_LIMITS)
    yield process
    await process.close()


def outputs(*values: bytes | None, **faults: Undecodable) -> Stretch:
    """A stretch of outputs; `faults` by `at_OFFSET`."""
    offsets = list(range(100, 100 + len(values)))
    by_offset = {int(name.removeprefix("at_")): fault for name, fault in faults.items()}
    return Stretch(EventKind.OUTPUT, "kafka", "outputs", 3, offsets, values, by_offset)


def in_this_process(stretch: Stretch, policy: Policy | None = None) -> Reading:
    judge = Judge(lambda: policy or Policy(), built_in(LONGEST_OUTPUT))
    return Reader(judge, STANDARD_LIMITS).read(stretch, AT)


async def read(process: ReaderProcess, stretch: Stretch) -> Reading:
    """What the process says, once it answers."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (reading := await process.read(stretch, AT)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return reading


def listed(reading: Reading) -> tuple[object, ...]:
    return (
        list(reading.outputs),
        list(reading.feedback),
        sorted(reading.dead_letters, key=lambda letter: letter.origin),
        reading.task_types,
    )


async def test_it_reads_as_the_daemon_itself_does(process: ReaderProcess) -> None:
    stretch = outputs(
        *(value for value, _ in BAD_BYTES.values()),
        output(event_id="e-1", approved=True, confidence=0.91, timestamp=ARRIVED.isoformat()),
        output(subject="somebody", output="long" * LONGEST_OUTPUT, approved=True),
        output(prompt="Grüße \U0001f600"),
        b"found wrong by the source",
        at_100=Undecodable(Reason.NOT_JSON_CONTENT, "said so"),
    )

    found = await read(process, stretch)

    assert listed(found) == listed(in_this_process(stretch))
    assert len(found.outputs) == 3
    assert len(found.dead_letters) == len(BAD_BYTES) + 1


async def test_feedback_is_read_as_feedback(process: ReaderProcess) -> None:
    values = [feedback(approved=False, event_id="f-1"), feedback()]
    stretch = Stretch(EventKind.FEEDBACK, "kafka", "feedback", 0, [7, 9], values)

    found = await read(process, stretch)

    assert listed(found) == listed(in_this_process(stretch))
    assert [one.offset for one in found.feedback] == [7, 9]


async def test_a_change_of_policy_holds_from_the_next_block_on(
    process: ReaderProcess, bars: Bars
) -> None:
    unsure = outputs(output(approved=True, confidence=0.6))
    assert [one.state for one in (await read(process, unsure)).outputs] == ["held"]

    bars.policy = Policy(min_confidence=0.5)

    assert [one.state for one in (await read(process, unsure)).outputs] == ["queued"]


async def test_what_feedback_has_moved_holds_there_too_until_it_changes(
    process: ReaderProcess, bars: Bars
) -> None:
    stretch = outputs(output(approved=True, confidence=0.72, task_type="coding", producer="studio"))
    bars.policy = Policy(offsets={"coding": 0.05})
    for _ in range(2):  # the second time it is not told again
        (held,) = (await read(process, stretch)).outputs
        assert held.state == "held"
        assert "0.72 < 0.75 after feedback" in held.reason

    bars.policy = Policy(distrusted={"coding": {"studio": 0.2}})
    assert "a trust of 0.2" in (await read(process, stretch)).outputs[0].reason

    bars.policy = Policy()
    assert [one.state for one in (await read(process, stretch)).outputs] == ["queued"]


async def test_nobody_waits_for_it_to_start(process: ReaderProcess) -> None:
    assert await process.read(outputs(output()), AT) is None


def is_gone(pid: int) -> bool:
    """Whether a child has ended and was waited for."""
    return not Path(f"/proc/{pid}").exists()


def pid_of(process: ReaderProcess) -> int:
    assert process.pid is not None
    return process.pid


@pytest.mark.parametrize(
    "harm",
    [
        lambda pid: os.kill(pid, signal.SIGKILL),
        lambda pid: os.kill(pid, signal.SIGSTOP),
    ],
    ids=["killed", "hanging"],
)
async def test_a_block_that_it_cannot_read_is_left_to_the_daemon(
    process: ReaderProcess, harm: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    await read(process, outputs(output()))
    pid = pid_of(process)
    monkeypatch.setattr(reader_process, "ANSWER_SECONDS", 1.0)
    harm(pid)

    assert await process.read(outputs(output()), AT) is None
    assert is_gone(pid)
    assert await process.read(outputs(output()), AT) is None
    assert process.pid is None  # it is not started again and again


async def test_it_is_started_again_after_a_while(
    process: ReaderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_process, "AGAIN_SECONDS", 0.0)
    await read(process, outputs(output()))
    first = pid_of(process)
    os.kill(first, signal.SIGKILL)

    assert len((await read(process, outputs(output()))).outputs) == 1
    assert pid_of(process) != first


async def test_a_block_that_is_given_up_does_not_spoil_the_next(
    process: ReaderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read(process, outputs(output()))
    pid = pid_of(process)
    os.kill(pid, signal.SIGSTOP)
    reading = asyncio.create_task(process.read(outputs(output(task_id="given up")), AT))
    await asyncio.sleep(0)  # it has asked
    reading.cancel()
    await asyncio.wait([reading])

    found = await read(process, outputs(output(task_id="next")))

    assert [one.task_id for one in found.outputs] == ["next"]


async def test_it_ends_when_it_is_not_needed_any_more(
    process: ReaderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_process, "IDLE_SECONDS", 0.05)
    await read(process, outputs(output()))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while process.pid is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_signal_that_is_meant_for_the_daemon_does_not_end_it(
    process: ReaderProcess,
) -> None:
    await read(process, outputs(output()))
    pid = pid_of(process)
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the daemon, which stops in order
        os.kill(pid, number)

    assert len((await read(process, outputs(output()))).outputs) == 1
    assert pid_of(process) == pid


def unasked() -> Policy:
    raise AssertionError("nothing is judged in this process")


def test_it_ends_with_its_daemon() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "consumers.reader_worker", "1000", "1000", "10"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == (b"", b"")


async def test_large_blocks_go_through_it_into_the_store(process: ReaderProcess) -> None:
    await read(process, outputs(output()))
    ingest = Ingest(
        RecordingStore(), LINES, Judge(unasked, ()), print, lambda: ARRIVED, process=process
    )
    values = [output(task_id=f"t-{n}") for n in range(500)]

    block = await ingest.prepare("kafka", outputs(*values, output(task_type="chess")))

    assert [one.task_id for one in block.outputs] == [f"t-{n}" for n in range(500)]
    assert [letter.reason for letter in block.dead_letters] == [Reason.UNKNOWN_TASK_TYPE]
