"""Daemons that die where a test says, and others, forked from one that has imported everything.

    python -m tests.crashing FAILPOINT NTH run

is one `learnd run` that dies when it comes there for the nth time. Without arguments it reads
orders from stdin, one JSON object a line, and says on stdout `{"pid": 7}` when the daemon is
there, and later `{"pid": 7, "status": -9}` when that one has ended; the next order may come once
the last one was answered. An order names the daemon's environment and log, and if it is to die,
the failpoint and which of its passages is the last. Forking saves two seconds of imports a life.
"""

import ctypes
import importlib
import itertools
import json
import os
import select
import signal
import sys
from typing import Any

HEAVY = (
    "daemon.app",
    "daemon.cli",
    "numpy",
    "pydantic.v1",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.h11_impl",
)
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Be one daemon, or serve until stdin ends."""
    if len(sys.argv) > 1:
        name, nth, *arguments = sys.argv[1:]
        die_at(name, int(nth))
        _be_learnd(arguments)
        return
    _die_with_parent()
    for name in HEAVY:
        importlib.import_module(name)
    waiting = select.poll()
    waiting.register(sys.stdin, select.POLLIN)
    living: dict[int, int] = {}
    while True:
        for fd, _ in waiting.poll():
            if fd in living:
                waiting.unregister(fd)
                os.close(fd)
                pid, status = os.waitpid(living.pop(fd), 0)
                _say(pid=pid, status=os.waitstatus_to_exitcode(status))
            elif not (line := sys.stdin.readline()):
                return
            else:
                pid = _fork(json.loads(line))
                ending = os.pidfd_open(pid)
                living[ending] = pid
                waiting.register(ending, select.POLLIN)
                _say(pid=pid)


def _fork(order: dict[str, Any]) -> int:
    if (pid := os.fork()) == 0:
        _live(order)
    return pid


def _live(order: dict[str, Any]) -> None:
    """Be `learnd run` from here on, until the end of this process."""
    _die_with_parent()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(stream, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    if order["failpoint"] is not None:
        die_at(order["failpoint"], order["nth"])
    _be_learnd(["run"])


def _be_learnd(arguments: list[str]) -> None:
    sys.argv = ["learnd", *arguments]
    from daemon.cli import main as learnd

    learnd()


def die_at(name: str, nth: int = 1) -> None:
    """End this process by SIGKILL when it comes to a failpoint for the nth time."""
    from learning import failpoints

    passages = itertools.count(1)

    def listener(reached: str) -> None:
        if reached == name and next(passages) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.listen(listener)


def _die_with_parent() -> None:
    # Linux: the parent's thread that forked is its main thread, which lives as long as it does.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _say(**words: int) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    main()
