"""Daemons that die where a test says, each forked from one process that has imported everything.

    python -m tests.crashing

reads orders from stdin, one JSON object a line, and answers on stdout: `{"pid": 7}` when the
daemon is there, `{"status": -9}` when it has ended. An order names the failpoint, which of its
passages is the last, and the daemon's environment and log. Forking saves two seconds of
imports a life, and there is a life for each failpoint.
"""

import ctypes
import importlib
import itertools
import json
import os
import signal
import sys
from typing import Any

HEAVY = ("daemon.app", "daemon.cli", "scipy.stats", "uvicorn")
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until stdin ends."""
    _die_with_parent()
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        if (pid := os.fork()) == 0:
            _live(order)
        _say(pid=pid)
        _, status = os.waitpid(pid, 0)
        _say(status=os.waitstatus_to_exitcode(status))


def _live(order: dict[str, Any]) -> None:
    """Be `learnd run` from here on."""
    _die_with_parent()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(stream, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    if order["failpoint"] is not None:
        die_at(order["failpoint"], order["nth"])
    sys.argv = ["learnd", "run"]
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
