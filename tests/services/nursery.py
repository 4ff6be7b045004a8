"""Where daemons that are to die are born: the test's side of tests/crashing.py."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[2]


class Crash(NamedTuple):
    """The failpoint at which a daemon dies, and at which of its passages."""

    failpoint: str
    nth: int = 1


class Nursery:
    """One process that forks a daemon at a time; `with` ends it and whatever it forked."""

    def __enter__(self) -> Self:
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
        """Start a daemon; the one before must have ended."""
        order = {
            "failpoint": crash.failpoint if crash is not None else None,
            "nth": crash.nth if crash is not None else 0,
            "log": str(log),
            "environment": dict(env),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return Forked(self, int(self.hear()["pid"]))

    def hear(self) -> dict[str, Any]:
        """Wait for what it says next."""
        assert self._process.stdout is not None
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said

    def speaks_within(self, seconds: float) -> bool:
        """Whether `hear` would have to wait no longer."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])


class Forked:
    """A daemon from the nursery; as tests.services.process.TiedProcess otherwise."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self._status: int | None = None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        if self._status is None and self._nursery.speaks_within(0):
            self._status = int(self._nursery.hear()["status"])
        return self._status

    def send(self, what: signal.Signals) -> None:
        """Send it a signal that it survives."""
        os.kill(self.pid, what)

    def end(self, how: signal.Signals, *, patience_seconds: float) -> int:
        """Send a signal, wait, and kill it after the patience; returns the exit status."""
        if self.exit_status is None:
            os.kill(self.pid, how)  # it is a zombie at worst until the nursery speaks
            if not self._nursery.speaks_within(patience_seconds):
                os.kill(self.pid, signal.SIGKILL)
            self._status = int(self._nursery.hear()["status"])
        assert self._status is not None
        return self._status
