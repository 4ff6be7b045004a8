"""The trainer as a real child process: asked, stopped, stuck, killed and abandoned.

Most tests put a small script in the trainer's place, which speaks the protocol and then
misbehaves; the last ones start the real trainer.
"""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from finetune import trainer_process
from finetune.artifacts import ArtifactStore
from finetune.trainer.protocol import (
    MakeTinyModelRequest,
    MakeTinyModelResult,
    Message,
    Note,
    TrainingSettings,
)
from finetune.trainer_process import TrainerHost, TrainerLimits, TrainerProcess
from learning.ports import JobFailedError, ModelReference, TrainerState

# What it does is told by `output_dir`, because every request must have one.
SCRIPT = """
import json, os, signal, subprocess, sys

def say(**message):
    print(json.dumps(message), flush=True)

def finish(request_id):
    result = dict(do="make_tiny_model", parameters=os.getpid(), steps=0, final_loss=None, seconds=0)
    say(event="done", id=request_id, result=result)

def work_for_ever(request_id):
    say(event="note", id=request_id, text="working")
    while True:
        signal.pause()

class CalledOff(Exception):
    pass

say(event="ready", pid=os.getpid())
for line in sys.stdin:
    request = json.loads(line)
    this = request["id"]
    if request["do"] == "ping":
        say(event="done", id=this, result=dict(do="ping"))
        continue
    if request["do"] == "prepare":
        if request["base_model"] == "poison":
            sys.exit(3)
        say(event="done", id=this, result=dict(do="prepare", seconds=0))
        continue
    what, _, rest = request["output_dir"].partition(":")
    if what == "answer":
        say(event="heartbeat", id=this)
        for word in filter(None, rest.split(",")):
            say(event="note", id=this, text=word)
        finish(this)
    elif what == "fail":
        say(event="failed", id=this, error=rest, message="no")
    elif what == "fail without id":
        say(event="failed", id=None, error="bad_request", message="what?")
    elif what == "exit":
        print("an earlier line", "", "RuntimeError: the last straw", sep="\\n", file=sys.stderr)
        sys.exit(int(rest))
    elif what == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "only beat":
        for _ in range(int(rest)):
            say(event="heartbeat", id=this)
        finish(this)
    elif what == "beat and get on":
        for _ in range(int(rest)):
            say(event="heartbeat", id=this)
            say(event="note", id=this, text="a step")
        finish(this)
    elif what == "say nothing":
        signal.pause()
    elif what == "close stdout":
        os.close(1)
        signal.pause()
    elif what == "junk":
        print("Downloading shards: 100%")
        print('{"event": "done"}')
        print('{"event": "note", "id": "' + this + '", "text": 1}')
        finish("of another request")
        finish(this)
    elif what == "only junk":
        while True:
            print("Downloading shards: 100%", flush=True)
    elif what == "long line":
        say(event="note", id=this, text="x" * int(rest))
        finish(this)
    elif what == "checkpoint":
        def checkpoint(*_):
            open(rest, "w").close()
            say(event="failed", id=this, error="interrupted", message="checkpoint written")
            sys.exit(0)
        def call_off(*_):
            raise CalledOff
        signal.signal(signal.SIGTERM, checkpoint)
        signal.signal(signal.SIGUSR1, call_off)
        try:
            work_for_ever(this)
        except CalledOff:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            open(rest, "w").close()
            say(event="failed", id=this, error="interrupted", message="checkpoint written")
    elif what == "be stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        work_for_ever(this)
    elif what == "leave a child":
        sleeper = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        say(event="note", id=this, text=str(sleeper.pid))
        finish(this)
"""

NEVER = timedelta(hours=1)

StartTrainer = Callable[..., TrainerProcess]


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "trainer.log"


@pytest.fixture
def old_log(log_file: Path) -> str:
    """What another trainer left in the log."""
    log_file.parent.mkdir()
    log_file.write_text("words of a trainer before it\n")
    return log_file.read_text()


@pytest.fixture
def kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many processes the kernel has killed for want of memory; at first nobody counts."""
    path = tmp_path / "vmstat"
    monkeypatch.setattr(trainer_process, "KERNEL_COUNTS", path)

    def say(kills: int) -> None:
        path.write_text(f"nr_dirty 1\noom_kill {kills}\n")

    return say


@pytest.fixture
def fake(tmp_path: Path) -> list[str]:
    script = tmp_path / "fake_trainer.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script)]


@pytest.fixture
def trainer(fake: list[str], log_file: Path) -> StartTrainer:
    def start(**limits: object) -> TrainerProcess:
        return TrainerProcess(log_file, command=fake, limits=TrainerLimits(**limits))  # type: ignore[arg-type]

    return start


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def host(fake: list[str], log_file: Path, artifacts: ArtifactStore) -> TrainerHost:
    return TrainerHost(artifacts, log_file, idle=NEVER, command=fake)


def ignore(message: Message) -> None:
    """For who only wants the answer."""


async def ask(
    trainer: TrainerProcess,
    what: str,
    on_message: Callable[[Message], None] = ignore,
    request_id: str = "1",
) -> MakeTinyModelResult:
    request = MakeTinyModelRequest(id=request_id, output_dir=what, steps=0)
    return await trainer.request(request, on_message)


async def failure(trainer: TrainerProcess, what: str) -> JobFailedError:
    with pytest.raises(JobFailedError) as failed:
        await ask(trainer, what)
    return failed.value


class Busy:
    """A request that is under way."""

    def __init__(self, trainer: TrainerProcess, what: str) -> None:
        self._begun = asyncio.Event()
        self.task = asyncio.create_task(ask(trainer, what, lambda _: self._begun.set()))

    async def begun(self) -> None:
        await self._begun.wait()


def is_gone(pid: int) -> bool:
    """Whether our own child has ended and was reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def text_of(file: Path) -> str:
    return file.read_text()


async def end_of(pidfd: int) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        await asyncio.to_thread(select.select, [pidfd], [], [])
    finally:
        os.close(pidfd)


# --- one process ----------------------------------------------------------------------


async def test_a_request_gets_its_result(trainer: StartTrainer) -> None:
    async with trainer() as process:
        assert (await ask(process, "answer")).parameters == process.pid


async def test_messages_are_told_in_their_order_and_heartbeats_are_not(
    trainer: StartTrainer,
) -> None:
    heard: list[Message] = []
    async with trainer() as process:
        await ask(process, "answer:one,two", heard.append)
    assert heard == [
        Note(event="note", id="1", text="one"),
        Note(event="note", id="1", text="two"),
    ]


async def test_one_process_serves_several_requests_one_at_a_time(trainer: StartTrainer) -> None:
    heard: list[str] = []

    def hear(message: Message) -> None:
        assert isinstance(message, Note)
        heard.append(f"{message.id}{message.text}")

    async with trainer() as process, asyncio.TaskGroup() as tasks:
        for request_id in "abc":
            tasks.create_task(ask(process, "answer:1,2", hear, request_id))
    assert heard == ["a1", "a2", "b1", "b2", "c1", "c2"]


@pytest.mark.parametrize(
    ("code", "retryable", "lives_on"),
    [
        ("bad_request", False, True),
        ("bad_model", False, True),
        ("bad_dataset", False, True),
        ("bad_output", False, True),
        ("disk_full", True, True),
        ("out_of_memory", True, False),
        ("interrupted", True, False),
        ("internal", True, False),
    ],
)
async def test_a_failure_keeps_its_code_and_says_whether_to_try_again(
    trainer: StartTrainer, code: str, retryable: bool, lives_on: bool
) -> None:
    async with trainer() as process:
        failed = await failure(process, f"fail:{code}")
        assert (failed.code, failed.message, failed.retryable) == (code, "no", retryable)
        assert process.alive is lives_on


async def test_a_failure_without_an_id_is_that_of_the_request(trainer: StartTrainer) -> None:
    async with trainer() as process:
        assert (await failure(process, "fail without id")).code == "bad_request"


async def test_a_trainer_that_ends_is_quoted(
    trainer: StartTrainer, log_file: Path, old_log: str
) -> None:
    async with trainer() as process:
        failed = await failure(process, "exit:3")
        assert not process.alive
    assert (failed.code, failed.retryable) == ("trainer_died", True)
    assert failed.message == (
        "the trainer ended with exit status 3;"
        " its last words: an earlier line | RuntimeError: the last straw"
    )
    assert text_of(log_file).startswith(f"{old_log}an earlier line\n")


async def test_a_trainer_that_somebody_killed_did_not_lack_memory(
    trainer: StartTrainer, kernel_says: Callable[[int], None]
) -> None:
    kernel_says(3)
    async with trainer() as process:
        failed = await failure(process, "be killed")
    assert (failed.code, failed.retryable) == ("trainer_died", True)
    assert "SIGKILL, and not by the kernel for want of memory" in failed.message
    assert "no word in its log" in failed.message


async def test_a_trainer_that_the_kernel_killed_is_told_what_to_make_smaller(
    trainer: StartTrainer, kernel_says: Callable[[int], None]
) -> None:
    kernel_says(3)
    async with trainer() as process:
        kernel_says(4)
        failed = await failure(process, "be killed")
    assert (failed.code, failed.retryable) == ("out_of_memory", True)
    assert "was killed by the kernel, because memory ran out; take a smaller" in failed.message


@pytest.mark.usefixtures("kernel_says")
async def test_where_nobody_counts_a_killed_trainer_probably_lacked_memory(
    trainer: StartTrainer,
) -> None:
    async with trainer() as process:
        failed = await failure(process, "be killed")
    assert failed.code == "out_of_memory"
    assert "was probably killed by the kernel" in failed.message


async def test_a_stopped_trainer_is_killed(trainer: StartTrainer) -> None:
    """SIGSTOP: it would not hear SIGTERM either."""
    async with trainer(heartbeat=timedelta(milliseconds=100), silent_heartbeats=3) as process:
        assert (await failure(process, "stop")).code == "trainer_silent"
        assert is_gone(process.pid)


async def test_a_trainer_that_beats_and_gets_nowhere_is_killed(trainer: StartTrainer) -> None:
    async with trainer(no_progress=timedelta(seconds=20)) as process:
        failed = await failure(process, "only beat:11")
        assert is_gone(process.pid)
    assert (failed.code, failed.retryable) == ("trainer_stuck", True)
    assert "made no progress for 20 s and was killed" in failed.message


@pytest.mark.parametrize("what", ["only beat:10", "beat and get on:50"])
async def test_a_trainer_that_is_only_slow_is_waited_for(trainer: StartTrainer, what: str) -> None:
    async with trainer(no_progress=timedelta(seconds=20)) as process:
        await ask(process, what)


async def test_a_trainer_that_was_dead_before_the_request_is_noticed(
    trainer: StartTrainer,
) -> None:
    async with trainer() as process:
        os.kill(process.pid, signal.SIGTERM)
        await process.wait()
        assert (await failure(process, "answer")).code == "trainer_died"


async def test_a_trainer_without_a_voice_is_ended(trainer: StartTrainer) -> None:
    async with trainer(close=timedelta(0)) as process:
        assert (await failure(process, "close stdout")).code == "trainer_died"
        assert is_gone(process.pid)


async def test_a_silent_trainer_is_killed(trainer: StartTrainer) -> None:
    async with trainer(heartbeat=timedelta(milliseconds=100), silent_heartbeats=3) as process:
        failed = await failure(process, "say nothing")
        assert is_gone(process.pid)
    assert (failed.code, failed.retryable) == ("trainer_silent", True)
    assert "said nothing for 0.3 s and was killed" in failed.message


async def test_junk_on_stdout_is_passed_over(trainer: StartTrainer) -> None:
    heard: list[Message] = []
    async with trainer() as process:
        await ask(process, "junk", heard.append)
    assert heard == []


async def test_a_trainer_that_says_nothing_but_junk_is_killed_and_another_may_be_tried(
    trainer: StartTrainer,
) -> None:
    async with trainer() as process:
        failed = await failure(process, "only junk")
        assert is_gone(process.pid)
    assert (failed.code, failed.retryable) == ("trainer_unintelligible", True)


async def test_a_line_may_be_long(trainer: StartTrainer) -> None:
    heard: list[Message] = []
    async with trainer() as process:
        await ask(process, "long line:3000000", heard.append)
    assert [len(message.text) for message in heard if isinstance(message, Note)] == [3_000_000]


async def test_a_line_without_an_end_is_not_waited_for(
    trainer: StartTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_process, "MAX_LINE_BYTES", 1_000)
    async with trainer() as process:
        failed = await failure(process, "long line:3000000")
        assert is_gone(process.pid)
    assert (failed.code, failed.retryable) == ("trainer_unintelligible", False)


async def test_a_listener_that_fails_ends_the_trainer(trainer: StartTrainer) -> None:
    class ListenerError(Exception):
        """A defect in whoever listens."""

    def fail(message: Message) -> None:
        raise ListenerError

    async with trainer() as process:
        with pytest.raises(ListenerError):
            await ask(process, "answer:one", fail)
        assert not process.alive


async def test_closing_ends_an_idle_trainer_by_its_input(trainer: StartTrainer) -> None:
    async with trainer(close=NEVER) as process:
        await ask(process, "answer")
    assert await process.wait() == 0
    await process.close()


async def test_closing_lets_a_busy_trainer_write_its_checkpoint(
    trainer: StartTrainer, tmp_path: Path
) -> None:
    async with trainer(checkpoint=NEVER) as process:
        busy = Busy(process, f"checkpoint:{tmp_path / 'written'}")
        await busy.begun()
        await process.close()
        with pytest.raises(JobFailedError, match="interrupted"):
            await busy.task
    assert (tmp_path / "written").exists()
    assert is_gone(process.pid)


async def test_cancelling_a_request_lets_it_write_its_checkpoint_and_ends_no_more_than_it(
    trainer: StartTrainer, tmp_path: Path
) -> None:
    async with trainer(checkpoint=NEVER) as process:
        busy = Busy(process, f"checkpoint:{tmp_path / 'written'}")
        await busy.begun()
        busy.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy.task
        assert (tmp_path / "written").exists()
        assert (await ask(process, "answer")).parameters == process.pid


async def test_a_trainer_that_does_not_stop_is_killed(trainer: StartTrainer) -> None:
    async with trainer(checkpoint=timedelta(0)) as process:
        busy = Busy(process, "be stubborn")
        await busy.begun()
        busy.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy.task
        assert await process.wait() == -signal.SIGKILL


async def test_cancelling_twice_does_not_wait_for_the_checkpoint(trainer: StartTrainer) -> None:
    async with trainer(checkpoint=NEVER) as process:
        busy = Busy(process, "be stubborn")
        await busy.begun()
        busy.task.cancel()
        await asyncio.sleep(0)
        busy.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy.task
        assert is_gone(process.pid)


async def test_children_of_the_trainer_end_with_it(trainer: StartTrainer) -> None:
    heard: list[Message] = []
    async with trainer() as process:
        await ask(process, "leave a child", heard.append)
        [note] = heard
        assert isinstance(note, Note)
        child = os.pidfd_open(int(note.text))
    await end_of(child)


async def test_a_log_that_has_grown_long_makes_room(
    trainer: StartTrainer, log_file: Path, old_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_process, "MAX_LOG_BYTES", len(old_log) - 1)
    async with trainer() as process:
        await failure(process, "exit:1")
    assert text_of(log_file).startswith("an earlier line\n")
    assert text_of(log_file.with_name("trainer.log.1")) == old_log


# --- the host -------------------------------------------------------------------------


async def test_the_host_starts_nothing_before_it_is_used(host: TrainerHost, log_file: Path) -> None:
    async with host:
        assert not log_file.parent.exists()


async def test_users_one_after_the_other_get_the_same_warm_process(host: TrainerHost) -> None:
    async with host:
        async with host.use() as first:
            await ask(first, "answer")
        async with host.use() as second:
            assert second is first
            await ask(second, "answer")
    assert is_gone(first.pid)


async def test_users_at_the_same_time_take_turns(host: TrainerHost) -> None:
    turns: list[str] = []

    async def use(name: str) -> None:
        async with host.use() as trainer:
            turns.append(f"{name} in")
            await ask(trainer, "answer")
            turns.append(f"{name} out")

    async with host, asyncio.TaskGroup() as tasks:
        for name in "ab":
            tasks.create_task(use(name))
    assert turns == ["a in", "a out", "b in", "b out"]


async def test_an_idle_trainer_is_closed_and_the_next_user_gets_another(
    fake: list[str], log_file: Path, artifacts: ArtifactStore
) -> None:
    async with TrainerHost(artifacts, log_file, idle=timedelta(0), command=fake) as host:
        async with host.use() as first:
            await ask(first, "answer")
        assert await first.wait() == 0
        async with host.use() as second:
            assert second.pid != first.pid
            await ask(second, "answer")


async def test_a_trainer_that_died_is_replaced(host: TrainerHost) -> None:
    async with host:
        async with host.use() as first:
            await failure(first, "be killed")
        async with host.use() as second:
            assert (await ask(second, "answer")).parameters == second.pid


async def test_a_trainer_that_died_while_nobody_used_it_is_replaced(host: TrainerHost) -> None:
    async with host:
        async with host.use() as first:
            await ask(first, "answer")
        os.kill(first.pid, signal.SIGKILL)
        async with host.use() as second:
            assert (await ask(second, "answer")).parameters == second.pid
        assert host.condition().ends == {"trainer_died": 1}


async def test_a_trainer_that_hangs_while_nobody_uses_it_costs_its_next_user_no_failure(
    fake: list[str], log_file: Path, artifacts: ArtifactStore
) -> None:
    limits = TrainerLimits(ping=timedelta(seconds=3))
    async with TrainerHost(artifacts, log_file, idle=NEVER, command=fake, limits=limits) as host:
        async with host.use() as first:
            await ask(first, "answer")
        os.kill(first.pid, signal.SIGSTOP)
        async with host.use() as second:
            assert (await ask(second, "answer")).parameters == second.pid
        assert is_gone(first.pid)
        assert host.condition().ends == {"trainer_silent": 1}


async def test_a_trainer_that_spoke_junk_is_not_kept(host: TrainerHost) -> None:
    async with host:
        async with host.use() as first:
            await ask(first, "junk")
        async with host.use() as second:
            assert second is not first
        assert host.condition().ends == {"trainer_unintelligible": 1}


async def test_a_trainer_that_holds_too_much_memory_is_not_kept(
    fake: list[str], log_file: Path, artifacts: ArtifactStore
) -> None:
    async with TrainerHost(
        artifacts, log_file, idle=NEVER, command=fake, memory_bytes=1 << 20
    ) as host:
        async with host.use() as first:
            await ask(first, "answer")
            assert (host.condition().resident_bytes or 0) > 1 << 20
        await first.wait()  # by itself, soon after its answer
        async with host.use() as second:
            assert second is not first
        async with host.use() as third:  # who comes at once does not get it either
            assert third is not second
        assert host.condition().ends == {"memory": 2}
    assert host.condition().resident_bytes is None


async def test_a_host_that_keeps_nothing_warm_has_a_new_trainer_for_each_user(
    fake: list[str], log_file: Path, artifacts: ArtifactStore
) -> None:
    async with TrainerHost(artifacts, log_file, idle=NEVER, command=fake, warm=False) as host:
        host.expect("base", TrainingSettings())
        for _ in range(2):
            async with host.use() as trainer:
                await ask(trainer, "answer")
            assert is_gone(trainer.pid)
        condition = host.condition()
    assert (condition.warm_uses, condition.cold_uses) == (0, 2)
    assert condition.ends == {"not_kept": 2}


async def test_a_host_says_what_it_holds_and_how_it_was_found(host: TrainerHost) -> None:
    async with host:
        assert host.condition().state == TrainerState.COLD
        for _ in range(3):
            async with host.use() as trainer:
                await ask(trainer, "answer")
                assert host.condition().state == TrainerState.BUSY
            condition = host.condition()
            assert (condition.state, condition.pid) == (TrainerState.WARM, trainer.pid)
        assert (condition.warm_uses, condition.cold_uses) == (2, 1)
    assert (host.condition().state, host.condition().ends) == (TrainerState.COLD, {"closed": 1})


async def test_who_is_expected_finds_the_trainer_warm(host: TrainerHost) -> None:
    async with host:
        host.expect("base", TrainingSettings())
        host.expect("base", TrainingSettings())
        await asyncio.sleep(0)  # its task takes the lock, and users wait until it is through
        async with host.use() as trainer:
            assert (await ask(trainer, "answer")).parameters == trainer.pid
        condition = host.condition()
    assert (condition.warm_uses, condition.cold_uses, condition.ends) == (1, 0, {})


async def test_a_preparation_that_fails_is_no_concern_of_the_user(host: TrainerHost) -> None:
    async with host:
        host.expect("poison", TrainingSettings())
        await asyncio.sleep(0)
        async with host.use() as trainer:
            assert (await ask(trainer, "answer")).parameters == trainer.pid
        assert host.condition().ends == {"trainer_died": 1}


async def test_closing_the_host_ends_a_preparation(host: TrainerHost) -> None:
    host.expect("base", TrainingSettings())
    await asyncio.sleep(0)
    await host.aclose()
    assert host.condition().state == TrainerState.COLD


async def test_a_user_whose_request_is_cancelled_leaves_a_usable_host(host: TrainerHost) -> None:
    async with host:
        async with host.use() as first:
            busy = Busy(first, "say nothing")
            busy.task.cancel()
            await asyncio.wait({busy.task})
        async with host.use() as second:
            await ask(second, "answer")


async def test_closing_the_host_ends_a_trainer_in_use(host: TrainerHost, tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def use() -> None:
        async with host.use() as trainer:
            await ask(trainer, f"checkpoint:{tmp_path / 'written'}", lambda _: begun.set())

    using = asyncio.create_task(use())
    await begun.wait()
    await host.aclose()
    with pytest.raises(JobFailedError, match="interrupted"):
        await using
    assert (tmp_path / "written").exists()


async def test_a_closed_host_lends_no_trainer(host: TrainerHost) -> None:
    await host.aclose()
    await host.aclose()
    with pytest.raises(JobFailedError, match="interrupted"):
        async with host.use():
            pass


async def test_a_damaged_artifact_is_not_even_named_to_the_trainer(
    host: TrainerHost, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "adapter_config.json").write_text("{}")
    adapter = artifacts.path(artifacts.publish("r-1", output).name)
    model = ModelReference("base", adapter)
    assert (await host.reference(model)).adapter == str(adapter)

    (adapter / "planted.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(JobFailedError, match=r"planted\.bin") as refused:
        await host.generate(model, [{"role": "user", "content": "Hello"}])
    assert (refused.value.code, refused.value.retryable) == ("bad_model", False)


# --- the real trainer -----------------------------------------------------------------


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model gains nothing from more threads, and loses on a full machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("one_thread")
async def test_the_real_trainer_makes_a_model_and_answers(
    artifacts: ArtifactStore, log_file: Path, tmp_path: Path
) -> None:
    async with TrainerHost(artifacts, log_file, idle=NEVER) as host:
        async with host.use() as trainer:
            await ask(trainer, str(tmp_path / "tiny"))
        pieces: list[str] = []
        answer = await host.generate(
            ModelReference(str(tmp_path / "tiny")),
            [{"role": "user", "content": "Hello"}],
            max_new_tokens=8,
            on_token=pieces.append,
        )
    assert answer.text == "".join(pieces)
    assert answer.confidence is not None
    assert 0 < answer.confidence <= 1


ABANDON = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from finetune.artifacts import ArtifactStore
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer_process import TrainerHost

async def main(folder):
    host = TrainerHost(ArtifactStore(folder / "artifacts"), folder / "trainer.log")
    request = MakeTinyModelRequest(id="1", output_dir=str(folder / "tiny"), steps=1_000_000)
    async with host.use() as trainer:
        say = lambda message: print(trainer.pid, file=sys.stderr, flush=True)
        await trainer.request(request, say)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.usefixtures("one_thread")
async def test_the_real_trainer_dies_with_its_daemon(tmp_path: Path) -> None:
    with subprocess.Popen(  # noqa: ASYNC220 - the test has nothing else to do meanwhile
        [sys.executable, "-c", ABANDON, str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            assert daemon.stderr is not None
            trainer = os.pidfd_open(int(daemon.stderr.readline()))  # it trains now
        finally:
            daemon.kill()
    await end_of(trainer)
