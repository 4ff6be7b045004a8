"""The trainer process: one request after the other, until its stdin ends.

The standard streams are put out of every library's reach first, and ``ready``
is said before anything heavy is imported. Nothing that a request does ends
the process, except SIGTERM (with exit status 0) and the end of its daemon.
Started several times by torchrun or accelerate, the first one serves, and the
others help it with one training.
What one request leaves for the next is a loaded base (finetune/trainer/bases.py)
and the imported libraries, and nothing that would change a result.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from finetune.trainer.channel import Channel
from finetune.trainer.cores import limit_threads
from finetune.trainer.errors import RequestFailed, failure_code
from finetune.trainer.interruption import Interrupted, Interruption
from finetune.trainer.libraries import import_libraries
from finetune.trainer.protocol import (
    MEMORY_ADVICE,
    Done,
    EvaluateRequest,
    Failed,
    GenerateRequest,
    MakeTinyModelRequest,
    PingRequest,
    PingResult,
    PreflightRequest,
    PrepareRequest,
    Ready,
    Request,
    Result,
    TrainRequest,
    parse_request,
)
from finetune.trainer.reporting import Reporter

if TYPE_CHECKING:
    from finetune.trainer.bases import Bases

_NAMED_PROBLEMS = 5
_PR_SET_PDEATHSIG = 1
_ENVIRONMENT = {
    # Threads that wait for each other by spinning make a training that shares
    # its cores with anything else seven times slower (measured on two cores).
    "OMP_WAIT_POLICY": "PASSIVE",
    # Nothing may be run by the tokenizers' threads after a fork.
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def main() -> None:
    """Serve the daemon on the other end of stdin and stdout."""
    interruption = Interruption()
    interruption.install()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_launcher()
    if int(os.environ.get("RANK", "0")) > 0:
        _help(interruption)
    channel = _take_streams()
    channel.wake_on_signals()
    channel.open()
    channel.send(Ready(pid=os.getpid()))
    _set_environment()
    work = _Work(interruption)
    try:
        while (line := _next_line(channel, interruption)) is not None:
            _answer(line, channel, interruption, work)
    except Interrupted:
        pass
    channel.close()
    # Not through the interpreter's end: it would wait for torch's threads.
    os._exit(0)


def _take_streams() -> Channel:
    """Keep stdin and stdout for the channel; a library that prints, prints to stderr."""
    channel = Channel(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    return channel


def _set_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    limit_threads(os.environ)


def _help(interruption: Interruption) -> NoReturn:
    """Do the first process's training with it, and end. What it can say itself is not said here."""
    _take_streams()  # and say nothing
    _set_environment()
    status = 0
    try:
        with interruption.deadly():
            import_libraries()
            from finetune.trainer.bases import Bases
            from finetune.trainer.ranks import join_others
            from finetune.trainer.train import train

            request, ranks = join_others()
        with interruption.allowed():
            train(request, Reporter(request.id, lambda _: None), interruption, Bases(), ranks)
    except (Interrupted, RequestFailed):
        pass
    except Exception:
        traceback.print_exc()
        status = 1
    os._exit(status)


def _die_with_launcher() -> None:
    """Have the kernel kill this process when its parent dies: no signal to a group reaches it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # it has died already


def _next_line(channel: Channel, interruption: Interruption) -> bytes | None:
    with interruption.allowed():
        return channel.next_line()


def _answer(line: bytes, channel: Channel, interruption: Interruption, work: _Work) -> None:
    try:
        request = parse_request(line)
    except ValidationError as error:
        channel.end(Failed(id=_id_of(line), error="bad_request", message=_complaint(error)))
        return
    answer: Done | Failed
    with interruption.request():
        channel.begin(request.id)
        try:
            with interruption.allowed():
                result = work.perform(request, Reporter(request.id, channel.send))
            answer = Done(id=request.id, result=result)
        except Interrupted:
            answer = Failed(
                id=request.id,
                error="interrupted",
                message="stopped when asked to; a training resumes when it is asked for again",
            )
        except Exception as error:
            if not isinstance(error, RequestFailed) or error.__cause__:
                traceback.print_exc()
            answer = Failed(id=request.id, error=failure_code(error), message=_describe(error))
    channel.end(answer)
    _release_memory()


class _Work:
    """Does what is asked, and keeps the loaded base from one request to the next."""

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption
        self._bases: Bases | None = None

    def perform(self, request: Request, reporter: Reporter) -> Result:
        """Do it, with the libraries imported before. Their own state is then put back."""
        if isinstance(request, PingRequest):
            return PingResult()
        if self._bases is None:
            import_libraries()
            from finetune.trainer.bases import Bases

            self._bases = Bases()
        from finetune.trainer.process_state import process_state_restored

        with process_state_restored():
            return self._perform(request, reporter, self._bases)

    def _perform(
        self,
        request: TrainRequest
        | EvaluateRequest
        | GenerateRequest
        | PrepareRequest
        | PreflightRequest
        | MakeTinyModelRequest,
        reporter: Reporter,
        bases: Bases,
    ) -> Result:
        match request:
            case TrainRequest():
                from finetune.trainer.ranks import join_first
                from finetune.trainer.train import train

                with self._interruption.deadly():
                    ranks = join_first(request)
                return train(request, reporter, self._interruption, bases, ranks)
            case EvaluateRequest():
                from finetune.trainer.evaluate import evaluate

                return evaluate(request, reporter, self._interruption, bases)
            case GenerateRequest():
                from finetune.trainer.generate import generate

                return generate(request, reporter, self._interruption, bases)
            case PrepareRequest():
                from finetune.trainer.prepare import prepare

                return prepare(request, reporter, bases)
            case PreflightRequest():
                from finetune.trainer.preflight import preflight

                return preflight(request, reporter)
            case MakeTinyModelRequest():
                from finetune.trainer.tiny_model import make_tiny_model

                return make_tiny_model(request, reporter)


def _release_memory() -> None:
    """After the request's last frame is gone, and with it the last hold on its models."""
    if "finetune.trainer.models" in sys.modules:
        from finetune.trainer.models import release_memory

        release_memory()


def _id_of(line: bytes) -> str | None:
    """The id of a request that is otherwise not understood."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = request.get("id") if isinstance(request, dict) else None
    return found if isinstance(found, str) else None


def _complaint(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    return "not a request: " + "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'line'}: {problem['msg']}"
        for problem in problems[:_NAMED_PROBLEMS]
    )


def _describe(error: Exception) -> str:
    match failure_code(error):
        case "out_of_memory":
            return f"{str(error) or 'memory ran out'}; {MEMORY_ADVICE}"
        case "disk_full":
            return f"{error}; free some space and ask again"
        case "not_installed":
            return f"{error}; install learnd with its train extra"
        case "internal":
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = type(error).__name__
            return f"{kind}: {error} ({Path(place.filename).name}, line {place.lineno})"
        case _:
            return str(error)


if __name__ == "__main__":
    main()
