"""Run the costly validators in a process of their own, with a time limit for each.

The process is started when first needed and ended when it was idle for a while. A validator
that hangs, dies or answers nonsense costs the process, and has something against the event;
the next event gets a new process. One that died is asked once more, because the process may
have been killed from outside.

The other end is consumers/screening/worker.py, what they say consumers/screening/frames.py.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

import structlog

from consumers.screening.frames import LENGTH, length_of, packed
from learning.events import OutputEvent
from learning.screening import CannotScreenError, Finding, Screened, ScreeningRules

log = structlog.get_logger(__name__)

WORKER: Final = (sys.executable, "-P", "-m", "consumers.screening.worker")
START_SECONDS = 60.0
"""It imports what its validators need, some of which is large."""
AGAIN_SECONDS = 15.0
"""After it did not start it is not started for so long, unless the rules are others."""
END_SECONDS = 1.0
TRIES = 2
"""Of an event in whose midst the process ends."""


@dataclass(frozen=True)
class ProcessLimits:
    """What the process may use."""

    memory_bytes: int = 1024 * 2**20
    """Of address space."""
    idle: timedelta = timedelta(minutes=2)
    """So long after its last event it is ended, and its memory is free."""


class _EndedError(Exception):
    """The process ended in the midst of an event."""


class ScreeningProcess:
    """The daemon's end. Used by one event at a time; others wait."""

    def __init__(self, limits: ProcessLimits | None = None) -> None:
        self._limits = limits or ProcessLimits()
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._ruled = ""
        """The rules that the process has, as they were told."""
        self._default: Sequence[str] = ()
        self._task_types: Mapping[str, Sequence[str]] = {}
        self._fault: tuple[str, str, float] = ("", "", 0.0)
        """Under which rules it did not start, why, and when to try again."""
        self._end_when_idle: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Of the process while there is one."""
        return self._process.pid if self._process is not None else None

    async def validators(self, rules: ScreeningRules, task_type: str) -> Sequence[str]:
        """The names of the validators of a task type, all of them loaded.

        Raises CannotScreenError.
        """
        async with self._lock:
            await self._prepare(rules)
            self._end_later()
            return self._task_types.get(task_type, self._default)

    async def screen(self, event: OutputEvent, rules: ScreeningRules) -> Screened:
        """What the validators say of an output. Raises CannotScreenError."""
        if not rules.enabled:
            return Screened()
        async with self._lock:
            try:
                for is_last in (*[False] * (TRIES - 1), True):
                    await self._prepare(rules)
                    answers = _Answers()
                    names = self._task_types.get(event.task_type, self._default)
                    try:
                        await self._ask(event, names, rules.seconds, answers)
                    except _EndedError as error:
                        log.warning(
                            "screening process ended", validator=answers.asked, how=str(error)
                        )
                        if not is_last:
                            continue
                        answers.complain(f"ended the process that it ran in ({error})")
                    break
                return answers.screened()
            except BaseException:
                # Otherwise the rest of the answer would be taken for the next one's.
                await self._end()
                raise
            finally:
                self._end_later()

    async def close(self) -> None:
        """End the process, and wait for it."""
        async with self._lock:
            await self._end()

    async def _ask(
        self, event: OutputEvent, names: Sequence[str], seconds: float, answers: "_Answers"
    ) -> None:
        """Collect the answers of the validators. Raises _EndedError."""
        if not names:
            return
        answers.asked = names[0]
        await self._say({"event": event.model_dump_json(exclude_unset=True)})
        for name in names:
            answers.asked = name
            try:
                async with asyncio.timeout(seconds):
                    answer = await self._hear()
                answers.take(name, answer)
            except TimeoutError:
                answers.seconds[name] = seconds
                answers.complain(f"did not answer within {seconds:g} s")
            except (ValueError, KeyError, TypeError):
                answers.complain("answered nonsense")
            else:
                if not answer["leaving"]:
                    continue
            log.warning("screening process is killed", validator=name, pid=self.pid)
            await self._end()
            return

    async def _prepare(self, rules: ScreeningRules) -> None:
        """See to it that there is a process that has these rules. Raises CannotScreenError."""
        told = json.dumps(
            {
                "default": asdict(rules.default),
                "task_types": {name: asdict(one) for name, one in rules.task_types.items()},
            },
            sort_keys=True,
        )
        if self._process is not None and self._process.returncode is not None:
            await self._end()
        key = f"{rules.seconds} {told}"
        if self._process is not None and self._ruled == key:
            return
        loop = asyncio.get_running_loop()
        faulty, fault, not_before = self._fault
        if faulty == key and loop.time() < not_before:
            raise CannotScreenError(fault)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._start()
                await self._say({"rules": json.loads(told), "seconds": rules.seconds})
                answer = await self._hear()
            if "fault" in answer:
                raise CannotScreenError(answer["fault"])
            self._default, self._task_types = answer["default"], answer["task_types"]
        except (_EndedError, OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
            why = f"the screening process did not start: {error or type(error).__name__}"
            await self._fail(key, why)
            raise CannotScreenError(why) from error
        except CannotScreenError as error:
            await self._fail(key, f"a validator cannot be loaded: {error}")
            raise CannotScreenError(self._fault[1]) from error
        self._ruled, self._fault = key, ("", "", 0.0)

    async def _fail(self, key: str, why: str) -> None:
        self._fault = (key, why, asyncio.get_running_loop().time() + AGAIN_SECONDS)
        await self._end()

    async def _start(self) -> None:
        if self._process is not None:
            return
        self._process = await asyncio.create_subprocess_exec(
            *WORKER,
            str(self._limits.memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        log.info("screening process started", pid=self._process.pid)

    async def _say(self, said: Mapping[str, Any]) -> None:
        assert self._process is not None, "it was started"
        assert self._process.stdin is not None, "it was opened with pipes"
        try:
            self._process.stdin.write(packed(said))
            await self._process.stdin.drain()
        except ConnectionError as error:
            raise await self._ended() from error

    async def _hear(self) -> Any:
        """The next frame. Raises _EndedError, and ValueError for what is none."""
        assert self._process is not None, "it was started"
        assert self._process.stdout is not None, "it was opened with pipes"
        try:
            head = await self._process.stdout.readexactly(LENGTH.size)
            answer = json.loads(await self._process.stdout.readexactly(length_of(head)))
        except asyncio.IncompleteReadError as error:
            raise await self._ended() from error
        if not isinstance(answer, dict):
            raise TypeError("no answer")
        return answer

    async def _ended(self) -> _EndedError:
        process = self._process
        assert process is not None, "it was started"
        with contextlib.suppress(TimeoutError):  # it has closed its end, and should go by itself
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
        await self._end()
        status = process.returncode or 0
        if status >= 0:
            return _EndedError(f"exit status {status}")
        return _EndedError(signal.Signals(-status).name)

    def _end_later(self) -> None:
        if self._end_when_idle is not None:
            self._end_when_idle.cancel()
            self._end_when_idle = None
        if self._process is not None:
            self._end_when_idle = asyncio.get_running_loop().call_later(
                self._limits.idle.total_seconds(), self._end_idle
            )

    def _end_idle(self) -> None:
        if self._lock.locked():
            self._end_later()
        elif self._process is not None:
            _kill(self._process)  # `_prepare` finds it ended, or `close` waits for it

    async def _end(self) -> None:
        if self._end_when_idle is not None:
            self._end_when_idle.cancel()
            self._end_when_idle = None
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        # asyncio waits for the end of the pipes too, which somebody else may have open.
        transport = process._transport  # type: ignore[attr-defined]
        for number in (0, 1):
            transport.get_pipe_transport(number).close()
        await process.wait()


class _Answers:
    """What the validators have said of one event."""

    def __init__(self) -> None:
        self.asked = ""
        """The one that is asked now."""
        self.seconds: dict[str, float] = {}
        self._complaints: list[Finding] = []
        self._scrubbed: list[Finding] = []
        self._event: OutputEvent | None = None

    def take(self, name: str, answer: Mapping[str, Any]) -> None:
        """Take an answer. Raises ValueError, KeyError or TypeError for what is none."""
        if answer["validator"] != name or not isinstance(answer["leaving"], bool):
            raise ValueError("another one's answer")
        self.seconds[name] = float(answer["seconds"])
        if "scrubbed" in answer:
            self._event = OutputEvent.model_validate_json(answer["event"])
            self._scrubbed.append(Finding(name, str(answer["scrubbed"])))
        if "complaint" in answer:
            self.complain(str(answer["complaint"]))

    def complain(self, message: str) -> None:
        """The one that is asked now has something against the event."""
        self._complaints.append(Finding(self.asked, message))

    def screened(self) -> Screened:
        """All of it."""
        return Screened(self._complaints, self._scrubbed, self._event, self.seconds)


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process and what it may have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
