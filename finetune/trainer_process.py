"""The trainer as a child process: started, asked, watched and always reaped.

`TrainerProcess` is one child; `TrainerHost` keeps at most one of them warm, because
importing the training libraries takes longer than many a request: within bounds of time and
memory, and only one that is well. What is asked for is the business of the callers
(finetune/local_provider.py); what crosses the pipes is described in
finetune/trainer/protocol.py. Neither starts anything until it is entered.
"""

import asyncio
import contextlib
import math
import os
import resource
import signal
import sys
import sysconfig
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, overload

import structlog
from pydantic import ValidationError

from finetune.artifacts import ArtifactError, ArtifactStore
from finetune.trainer.protocol import (
    HEARTBEAT_SECONDS,
    MEMORY_ADVICE,
    ChatMessage,
    Done,
    EvaluateRequest,
    EvaluateResult,
    Failed,
    FailureCode,
    GenerateRequest,
    GenerateResult,
    Heartbeat,
    MakeTinyModelRequest,
    MakeTinyModelResult,
    Message,
    ModelRef,
    PingRequest,
    PreflightRequest,
    PreflightResult,
    PrepareRequest,
    PrepareResult,
    Ready,
    Request,
    Result,
    Token,
    TrainingSettings,
    TrainRequest,
    TrainResult,
    encode_line,
    parse_message,
)
from learning.ports import Answer, JobFailedError, ModelReference, TrainerCondition, TrainerState

log = structlog.get_logger(__name__)

TRAINER: Final = (sys.executable, "-P", "-m", "finetune.trainer")
"""-P: a folder named `learning` where the daemon was started is not ours to import."""


def launched(processes: int) -> Sequence[str]:
    """The command that starts so many trainers on this machine, of which the first one serves.

    torchrun ends all of them when one dies, and passes SIGTERM on to each.
    """
    launcher = (sys.executable, "-P", "-m", "torch.distributed.run", "--standalone")
    return (*launcher, "--nproc-per-node", str(processes), "-m", "finetune.trainer")


MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""The longest message: an evaluation of half a million examples."""
MAX_LOG_BYTES: Final = 10 * 1024 * 1024
"""A log that is longer when a trainer starts becomes LOG.1."""
MAX_JUNK_LINES: Final = 1_000
"""So many lines that mean nothing within one request, and it is not waited for any longer."""
REPEAT_SECONDS: Final = 0.5
"""How often a child is told again that its request is called off: it may not have begun it."""
LAST_WORDS: Final = 6
"""Lines of its log that are quoted when a trainer died."""

KERNEL_COUNTS: Final = Path("/proc/vmstat")
"""Where Linux counts, as `oom_kill`, the processes that it killed for want of memory."""

_RETRYABLE: Final[frozenset[FailureCode]] = frozenset(
    {"internal", "interrupted", "disk_full", "out_of_memory", "process_died"}
)
_LIVES_ON: Final[frozenset[str]] = frozenset(
    {"bad_request", "bad_model", "bad_dataset", "bad_output", "unsupported", "disk_full"}
)
"""Failures after which the same process takes the next request; others leave doubt."""

OnMessage = Callable[[Message], None]
"""Is told of progress, notes and tokens as they come. Must not block."""


@dataclass(frozen=True)
class TrainerLimits:
    """How long to wait for a trainer before it is killed."""

    heartbeat: timedelta = timedelta(seconds=HEARTBEAT_SECONDS)
    silent_heartbeats: int = 30
    """So many heartbeats in a row without a word, and it counts as stuck."""
    no_progress: timedelta = timedelta(minutes=30)
    """So long alive and busy, but without progress, and it counts as stuck."""
    checkpoint: timedelta = timedelta(seconds=15)
    """From SIGTERM to SIGKILL when it is busy."""
    close: timedelta = timedelta(seconds=5)
    """From the end of its input to SIGKILL when it is idle."""
    ping: timedelta = timedelta(seconds=5)
    """How long one that was kept warm may take to say that it is well."""


class TrainerProcess:
    """One trainer in a process group of its own; `async with` starts and ends it.

    One request at a time; others wait. With `outlives_requests` false a request that is
    cancelled ends it, too. After a failure that leaves the child in an unknown
    state it is killed, and `alive` is false. Its stderr is appended to `log_file`.
    """

    def __init__(
        self,
        log_file: Path,
        *,
        command: Sequence[str] = TRAINER,
        limits: TrainerLimits | None = None,
        outlives_requests: bool = True,
    ) -> None:
        self._log_file = log_file
        self._command = command
        self._limits = limits or TrainerLimits()
        self._outlives_requests = outlives_requests
        self._lock = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None
        self._reason = ""
        self.spoke_junk = False
        """Whether it ever said something that is no message: then it should not be kept."""

    async def __aenter__(self) -> Self:
        self._log_start = await asyncio.to_thread(_ready_log, self._log_file)
        self._memory_kills = await asyncio.to_thread(memory_kills)
        with self._log_file.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                limit=MAX_LINE_BYTES,
                env=_environment(),
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        log.info("trainer started", pid=self.pid)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        """The child's process id, which is also its group's."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._ending is None and self._process.returncode is None

    @property
    def reason(self) -> str:
        """Why it ended, as a metric's label; empty while it lives."""
        if self._reason or self.alive:
            return self._reason
        return "ended" if self._process.returncode == 0 else "trainer_died"

    @property
    def resident_bytes(self) -> int | None:
        """The main memory that the child holds now; None where the system does not say."""
        return _resident_bytes(self.pid) if self.alive else None

    async def wait(self) -> int:
        """Wait for the child's end, whoever brings it about; its status as in `subprocess`."""
        return await self._process.wait()

    async def close(self, reason: str = "closed") -> None:
        """End the child, with a checkpoint when it trains, and reap it. May be repeated."""
        if self._lock.locked():
            await self._end(self._limits.checkpoint, reason, terminate=True)
        else:
            await self._end(self._limits.close, reason)

    async def is_well(self) -> bool:
        """Whether it answers within `limits.ping`. One that does not is killed."""
        ping = PingRequest(id=f"ping:{uuid.uuid4().hex[:12]}")
        async with self._lock:
            try:
                async with asyncio.timeout(self._limits.ping.total_seconds()):
                    await self._say(ping)
                    while not isinstance(await self._hear(ping.id), Done):
                        pass
            except TimeoutError:
                log.warning("trainer does not answer and is killed", pid=self.pid)
                await self._end(timedelta(0), "trainer_silent")
            except JobFailedError:
                await self._end(timedelta(0), "trainer_died")
        return self.alive

    @overload
    async def request(self, message: TrainRequest, on_message: OnMessage) -> TrainResult: ...
    @overload
    async def request(self, message: EvaluateRequest, on_message: OnMessage) -> EvaluateResult: ...
    @overload
    async def request(self, message: GenerateRequest, on_message: OnMessage) -> GenerateResult: ...
    @overload
    async def request(
        self, message: MakeTinyModelRequest, on_message: OnMessage
    ) -> MakeTinyModelResult: ...
    @overload
    async def request(self, message: PrepareRequest, on_message: OnMessage) -> PrepareResult: ...
    @overload
    async def request(
        self, message: PreflightRequest, on_message: OnMessage
    ) -> PreflightResult: ...
    async def request(self, message: Request, on_message: OnMessage) -> Result:
        """Ask, and wait for the answer. Raises JobFailedError.

        Beside the codes of the protocol: `trainer_died`, `trainer_silent`, `trainer_stuck`
        and `trainer_unintelligible`. Cancelled, it has the child end this request (a training
        writes its checkpoint) and raises CancelledError. The child itself is ended only when it
        does not answer in time, or when it is cancelled twice.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(self._silence):
                    await self._say(message)
                idle_heartbeats = 0
                while True:
                    answer = await self._hear(message.id)
                    idle_heartbeats = idle_heartbeats + 1 if isinstance(answer, Heartbeat) else 0
                    match answer:
                        case Heartbeat():
                            self._require_progress(idle_heartbeats)
                        case Done(result=result):
                            if result.do == message.do:
                                return result
                            raise _unintelligible(f"it answered {message.do} with {result.do}")
                        case Failed(error=code, message=text):
                            raise JobFailedError(code, text, retryable=code in _RETRYABLE)
                        case _:
                            on_message(answer)
            except JobFailedError as error:
                if error.code not in _LIVES_ON:
                    await self._end(timedelta(0), error.code)
                raise
            except TimeoutError:
                await self._end(timedelta(0), "trainer_silent")
                raise self._silent() from None
            except asyncio.CancelledError:
                await self._call_off(message.id)
                raise
            except BaseException:  # on_message failed: the child is still busy with the request
                await self._end(timedelta(0), "internal")
                raise

    async def _call_off(self, request_id: str) -> None:
        """Have the child end its request. One that does not, or is not waited for, is killed."""
        if not self._outlives_requests:
            await self._end(self._limits.checkpoint, "cancelled", terminate=True)
            return
        try:
            async with asyncio.timeout(self._limits.checkpoint.total_seconds()):
                while self.alive:
                    # Not the group: what the child has started would die of this signal.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGUSR1)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(REPEAT_SECONDS):
                            while not isinstance(await self._hear(request_id), Done | Failed):
                                pass
                            return
        except (JobFailedError, TimeoutError):
            log.warning("trainer did not stop its request and is killed", pid=self.pid)
        except asyncio.CancelledError:
            await self._end(timedelta(0), "cancelled")
            raise
        await self._end(timedelta(0), "cancelled")

    @property
    def _silence(self) -> float:
        return self._limits.heartbeat.total_seconds() * self._limits.silent_heartbeats

    async def _say(self, message: Request) -> None:
        try:
            self._stdin.write(encode_line(message))
            await self._stdin.drain()
        except ConnectionError as error:  # nobody reads any more
            raise await self._died() from error

    async def _hear(self, request_id: str) -> Message:
        """The next message that means something to the request."""
        junk_lines = 0
        while True:
            line = await self._read_line()
            try:
                message = parse_message(line)
            except ValidationError:
                log.warning("trainer said something unintelligible", pid=self.pid, line=line[:200])
                self.spoke_junk, junk_lines = True, junk_lines + 1
                if junk_lines > MAX_JUNK_LINES:
                    raise _unintelligible(
                        f"it said {junk_lines} lines that mean nothing", retryable=True
                    ) from None
                continue
            match message:
                case Ready():
                    continue
                case Failed(id=None):
                    return message
                case _ if message.id == request_id:
                    return message
            log.warning("trainer answered another request", pid=self.pid, id=message.id)

    async def _read_line(self) -> bytes:
        # Counted in heartbeats, not measured: a daemon that was itself stopped for an hour
        # (a laptop's lid, SIGSTOP) finds the words that came in the meantime.
        for _ in range(self._limits.silent_heartbeats):
            try:
                async with asyncio.timeout(self._limits.heartbeat.total_seconds()):
                    line = await self._stdout.readline()
            except TimeoutError:
                continue
            except ValueError as error:
                raise _unintelligible(f"a line is longer than {MAX_LINE_BYTES} bytes") from error
            if line.endswith(b"\n"):
                return line
            raise await self._died()
        raise self._silent()

    def _require_progress(self, idle_heartbeats: int) -> None:
        # Counted for the same reason as in `_read_line`.
        if idle_heartbeats * self._limits.heartbeat > self._limits.no_progress:
            raise JobFailedError(
                "trainer_stuck",
                f"the trainer (pid {self.pid}) made no progress for"
                f" {self._limits.no_progress.total_seconds():g} s and was killed; where loading"
                " the model takes that long, raise finetune.no_progress_seconds",
                retryable=True,
            )

    def _silent(self) -> JobFailedError:
        return JobFailedError(
            "trainer_silent",
            f"the trainer (pid {self.pid}) said nothing for {self._silence:g} s and was killed",
            retryable=True,
        )

    async def _died(self) -> JobFailedError:
        closed_by_us = self._ending is not None
        await self._end(self._limits.close, "trainer_died")
        if closed_by_us:
            return JobFailedError("interrupted", "the trainer was closed", retryable=True)
        status = await self._process.wait()
        words = await asyncio.to_thread(_last_words, self._log_file, self._log_start)
        if status == -signal.SIGKILL:
            before, after = self._memory_kills, await asyncio.to_thread(memory_kills)
            if before is None or after is None or after > before:
                self._reason = "out_of_memory"
                sure = "" if before is not None and after is not None else "probably "
                return JobFailedError(
                    "out_of_memory",
                    f"the trainer was {sure}killed by the kernel, because memory ran out;"
                    f" {MEMORY_ADVICE}; {words}",
                    retryable=True,
                )
        return JobFailedError(
            "trainer_died", f"the trainer {_cause_of_death(status)}; {words}", retryable=True
        )

    async def _end(self, grace: timedelta, reason: str, *, terminate: bool = False) -> None:
        """End the child and wait until it is reaped, also when this is cancelled meanwhile."""
        if self._ending is None:
            self._reason = self.reason or reason
            self._ending = asyncio.create_task(
                self._shut_down(grace, terminate), name=f"end of trainer {self.pid}"
            )
        elif not grace and not self._ending.done():
            self._signal(signal.SIGKILL)
        cancelled = False
        while not self._ending.done():
            try:
                await asyncio.shield(self._ending)
            except asyncio.CancelledError:
                cancelled = True
                self._signal(signal.SIGKILL)  # whoever waits does not want to wait
        if cancelled:
            raise asyncio.CancelledError
        self._ending.result()

    async def _shut_down(self, grace: timedelta, terminate: bool) -> None:
        if terminate:
            self._signal(signal.SIGTERM)
        else:
            self._stdin.close()  # not on a busy one: it would take it for our death, and die too
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace.total_seconds()):
                await self._process.wait()
        # Also when it went by itself: processes of its own may have stayed in the group. Their
        # group keeps its number from being given away; if none stayed, the few milliseconds
        # since it was reaped are too short for all other numbers to be used up.
        self._signal(signal.SIGKILL)
        # asyncio waits for the end of the pipes too, which does not come while more is unread
        # than a buffer holds, or while somebody else has them open. So they are closed here.
        transport = self._process._transport  # type: ignore[attr-defined]
        self._stdin.close()
        transport.get_pipe_transport(1).close()
        status = await self._process.wait()
        transport.close()
        await asyncio.sleep(0)  # what these three have put off happens now
        log.info("trainer ended", pid=self.pid, status=status)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class TrainerHost:
    """Keeps at most one trainer warm, and lends it to one user at a time.

    Started by its first user, or by who says that one is near (`expect`). Ended after `idle`
    without a user, when it holds more than `memory_bytes`, when it was unwell, and with `warm`
    false after each use; the next user then gets a new one, which has the same answers. Every
    model that a user wants loaded goes through `reference`, which verifies it.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        log_file: Path,
        *,
        idle: timedelta = timedelta(seconds=30),
        warm: bool = True,
        memory_bytes: int | None = None,
        command: Sequence[str] = TRAINER,
        limits: TrainerLimits | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._log_file = log_file
        self._idle = idle
        self._warm = warm
        self._memory_bytes = memory_bytes
        self._command = command
        self._limits = limits
        self._lock = asyncio.Lock()
        self._trainer: TrainerProcess | None = None
        self._idling: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._closed = False
        self._uses: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the trainer, also one that is in use, and lend no other. May be repeated."""
        self._closed = True
        if self._trainer is not None:
            await self._trainer.close()
        if self._preparing is not None:
            await self._preparing
        async with self._lock:
            await self._stop_idling()
            await self._dismiss("closed")

    def condition(self) -> TrainerCondition:
        """What it holds now, and what became of the trainers so far."""
        trainer = self._trainer
        alive = trainer is not None and trainer.alive
        state = TrainerState.COLD
        if alive:
            state = TrainerState.BUSY if self._lock.locked() else TrainerState.WARM
        return TrainerCondition(
            state=state,
            pid=trainer.pid if trainer is not None and alive else None,
            resident_bytes=trainer.resident_bytes if trainer is not None else None,
            warm_uses=self._uses["warm"],
            cold_uses=self._uses["cold"],
            ends=dict(self._ends),
        )

    def expect(self, base_model: str, settings: TrainingSettings) -> None:
        """A training of this base is near: have a trainer ready for it, in the background.

        Does nothing while one is in use or on its way, and nothing where none is kept warm.
        What goes wrong is only logged: who comes to train will hear of it.
        """
        if not self._warm or self._closed or self._lock.locked():
            return
        if self._preparing is None or self._preparing.done():
            request = PrepareRequest(
                id=f"prepare:{uuid.uuid4().hex[:12]}", base_model=base_model, settings=settings
            )
            self._preparing = asyncio.create_task(self._prepare(request), name="warm-up")

    @contextlib.asynccontextmanager
    async def use(self, command: Sequence[str] | None = None) -> AsyncIterator[TrainerProcess]:
        """Lend the trainer; the next user waits until it is given back.

        With a `command` of its own the user gets a new one that is started so, and ended after
        it; one that is warm is ended before, because it would hold memory beside it.
        """
        async with self._borrowed(command) as (trainer, found):
            self._uses[found] += 1
            yield trainer

    async def reference(self, model: ModelReference) -> ModelRef:
        """A model as the trainer is told of it, after its published parts were verified.

        Raises JobFailedError `bad_model`, naming the file that is not as it was published.
        """
        return await asyncio.to_thread(self._verified, model)

    def _verified(self, model: ModelReference) -> ModelRef:
        try:
            self._artifacts.verify_model(model)
        except ArtifactError as error:
            raise JobFailedError("bad_model", str(error), retryable=False) from error
        adapter = None if model.adapter is None else str(model.adapter)
        return ModelRef(base_model=model.base_model, adapter=adapter)

    async def generate(
        self,
        model: ModelReference,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        on_token: Callable[[str], None] = lambda text: None,
    ) -> Answer:
        """The model's answer to a conversation, told piece by piece too. Raises JobFailedError."""
        request = GenerateRequest(
            id=f"generate:{uuid.uuid4().hex[:12]}",
            model=await self.reference(model),
            messages=tuple(ChatMessage(**message) for message in messages),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )

        def hear(message: Message) -> None:
            if isinstance(message, Token):
                on_token(message.text)

        async with self.use() as trainer:
            result = await trainer.request(request, hear)
        return Answer(result.text, math.exp(result.mean_logprob))

    async def preflight(self, base_model: str, settings: TrainingSettings) -> PreflightResult:
        """Where a training would be done, and how, as far as can be told before it.

        Raises JobFailedError: `unsupported` with the setting to change, `not_installed`, and
        those of a trainer that could not be asked.
        """
        request = PreflightRequest(
            id=f"preflight:{uuid.uuid4().hex[:12]}", base_model=base_model, settings=settings
        )
        async with self._borrowed() as (trainer, _):
            return await trainer.request(request, lambda message: None)

    async def _prepare(self, request: PrepareRequest) -> None:
        try:
            async with self._borrowed() as (trainer, _):
                result = await trainer.request(request, lambda message: None)
        except (JobFailedError, OSError) as error:
            log.info("no trainer could be made ready ahead", error=str(error))
        else:
            log.info("trainer is ready ahead of its batch", seconds=round(result.seconds, 3))

    @contextlib.asynccontextmanager
    async def _borrowed(
        self, command: Sequence[str] | None = None
    ) -> AsyncIterator[tuple[TrainerProcess, Literal["warm", "cold"]]]:
        async with self._lock:
            await self._stop_idling()
            if command is not None:
                await self._dismiss("gives_way")
            found: Literal["warm", "cold"] = "warm" if await self._has_a_sound_one() else "cold"
            trainer = await self._ready_trainer(command)
            try:
                yield trainer, found
            finally:
                if reason := self._why_not_kept(trainer, command):
                    await self._dismiss(reason)
                elif not self._closed:
                    self._idling = asyncio.create_task(
                        self._dismiss_when_idle(), name="idle time of the trainer"
                    )

    async def _has_a_sound_one(self) -> bool:
        """Whether there is a warm one that answers and is not too large. Another one is ended."""
        if self._trainer is None:
            return False
        if not self._trainer.alive or not await self._trainer.is_well():
            await self._dismiss(self._trainer.reason)
        # Once it answers, it has given back what its last request held.
        elif self._holds_too_much(self._trainer):
            await self._dismiss("memory")
        return self._trainer is not None

    async def _ready_trainer(self, command: Sequence[str] | None) -> TrainerProcess:
        if self._trainer is None and not self._closed:
            trainer = TrainerProcess(
                self._log_file,
                command=command or self._command,
                limits=self._limits,
                outlives_requests=command is None,
            )
            self._trainer = await trainer.__aenter__()
        if self._trainer is None or self._closed:  # closed while it started: see aclose
            raise JobFailedError("interrupted", "the trainer is not lent any more", retryable=True)
        return self._trainer

    def _why_not_kept(self, trainer: TrainerProcess, command: Sequence[str] | None) -> str:
        """Why it should not serve another user, as a metric's label; empty for no reason."""
        if not trainer.alive:
            return trainer.reason
        if not self._warm or command is not None:
            return "not_kept"
        if trainer.spoke_junk:
            return "trainer_unintelligible"
        return ""

    def _holds_too_much(self, trainer: TrainerProcess) -> bool:
        held = trainer.resident_bytes
        if self._memory_bytes is None or held is None or held <= self._memory_bytes:
            return False
        log.info(
            "trainer holds more than finetune.trainer_memory_mib and is ended",
            pid=trainer.pid,
            mib=held >> 20,
            limit_mib=self._memory_bytes >> 20,
        )
        return True

    async def _dismiss(self, reason: str) -> None:
        if self._trainer is not None:
            trainer, self._trainer = self._trainer, None
            await trainer.close(reason)
            self._ends[trainer.reason] += 1

    async def _dismiss_when_idle(self) -> None:
        async with self._lock:  # whoever holds it now stops this task first
            if not await self._has_a_sound_one():
                return
        await asyncio.sleep(self._idle.total_seconds())
        async with self._lock:
            await self._dismiss("idle")

    async def _stop_idling(self) -> None:
        """Under the lock: so the task only sleeps, or waits for the lock, or is done."""
        if self._idling is not None:
            idling, self._idling = self._idling, None
            idling.cancel()
            await asyncio.wait({idling})
            if not idling.cancelled():
                idling.result()


def memory_kills() -> int | None:
    """How many processes this machine has killed for want of memory; None where nobody counts."""
    try:
        lines = KERNEL_COUNTS.read_text().splitlines()
    except OSError:
        return None
    counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None


def _resident_bytes(pid: int) -> int | None:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * resource.getpagesize()


def _unintelligible(fault: str, *, retryable: bool = False) -> JobFailedError:
    return JobFailedError(
        "trainer_unintelligible", f"the trainer was killed: {fault}", retryable=retryable
    )


def _environment() -> Mapping[str, str]:
    """The child imports the `finetune` that this process has, installed or not.

    So do the processes of its own, to which no option of Python's is passed on.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    home = Path(__file__).parents[1]
    if home != Path(sysconfig.get_path("purelib")):
        path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
        environment["PYTHONPATH"] = path
    return environment


def _ready_log(log_file: Path) -> int:
    """Make room for the log; returns the size at which the new child's lines start."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    size = log_file.stat().st_size if log_file.exists() else 0
    if size <= MAX_LOG_BYTES:
        return size
    log_file.replace(log_file.with_name(f"{log_file.name}.1"))
    return 0


def _last_words(log_file: Path, start: int) -> str:
    with log_file.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - 4_000))
        lines = file.read().decode(errors="replace").split("\n")
    words = [line.strip() for line in lines if line.strip()][-LAST_WORDS:]
    return "its last words: " + " | ".join(words) if words else "it left no word in its log"


def _cause_of_death(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status == signal.SIGKILL:
        return f"was killed by {name}, and not by the kernel for want of memory"
    return f"was killed by {name}"
