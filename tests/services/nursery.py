"""Where daemons are born ready to start: the test's side of tests/crashing.py."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[2]


class Crash(NamedTuple):
    """The failpoint at which a daemon dies, and at which of its passages."""

    failpoint: str
    nth: int = 1


class Nursery:
    """One process that forks daemons; `with` ends it and whatever it forked.

    Not for two threads at once.
    """

    def __enter__(self) -> Self:
        self._statuses: dict[int, int] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashing"],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def bear(self, crash: Crash | None, *, log: Path, env: Mapping[str, str]) -> "Forked":
        """Start a daemon, which is to die at `crash` if that is given."""
        order = {
            "failpoint": crash.failpoint if crash is not None else None,
            "nth": crash.nth if crash is not None else 0,
            "log": str(log),
            "environment": dict(env),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        while "status" in (said := self._hear()):
            self._statuses[said["pid"]] = said["status"]
        self._statuses.pop(said["pid"], None)  # of an earlier one with this number
        return Forked(self, said["pid"])

    def status_of(self, pid: int, *, seconds: float | None = 0.0) -> int | None:
        """How a daemon ended; None when it has not after so long. Without `seconds`: wait."""
        assert self._process.stdout is not None
        deadline = None if seconds is None else time.monotonic() + seconds
        while pid not in self._statuses:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            said = self._hear()
            self._statuses[said["pid"]] = said["status"]
        return self._statuses[pid]

    def _hear(self) -> dict[str, int]:
        assert self._process.stdout is not None
        said: dict[str, int] = json.loads(self._process.stdout.readline())
        return said


class Forked:
    """A daemon from the nursery; as tests.services.process.TiedProcess otherwise."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._nursery.status_of(self.pid)

    def send(self, what: signal.Signals) -> None:
        """Send it a signal that it survives."""
        os.kill(self.pid, what)

    def end(self, how: signal.Signals, *, patience_seconds: float) -> int:
        """Send a signal, wait, and kill it after the patience; returns the exit status."""
        if self.exit_status is None:
            os.kill(self.pid, how)  # it is a zombie at worst until the nursery speaks
            if self._nursery.status_of(self.pid, seconds=patience_seconds) is None:
                os.kill(self.pid, signal.SIGKILL)
        status = self._nursery.status_of(self.pid, seconds=None)
        assert status is not None
        return status
