"""The daemon as an operator runs it: the command `learnd run` in a process of its own.

Its settings lie in a learnd.yaml, its data in a folder beside it; both survive a kill.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import httpx
import yaml

from daemon.settings_sources import PLAIN_NAMES
from tests.services.nursery import Crash as Crash
from tests.services.nursery import Forked, Nursery
from tests.services.process import TiedProcess
from tests.waiting import PATIENCE_SECONDS, POLL_SECONDS, wait_until

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 25.0
"""What the daemon promises for SIGTERM."""
ANSWER_SECONDS = 30.0
COMMAND_SECONDS = 120.0


class DaemonEndedError(AssertionError):
    """The daemon ended while something was expected of it; with its last words."""


class Stopped(NamedTuple):
    """How a daemon ended."""

    status: int
    seconds: float


class Learnd:
    """One installation: started, killed and started again; what runs is killed on exit."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, nursery: Nursery | None = None
    ) -> None:
        self.folder = folder
        self._nursery = nursery
        self.data_dir = folder / "data"
        self._config = folder / "learnd.yaml"
        self._config.write_text(
            yaml.safe_dump(
                {
                    "data_dir": str(self.data_dir),
                    "http": {"port": 0},
                    "log": {"format": "json"},
                    **settings,
                }
            )
        )
        self._process: TiedProcess | Forked | None = None
        self._log = folder / "learnd-0.log"
        # Another one may have run in this folder, under other settings.
        self._starts = len(list(folder.glob("learnd-*.log")))
        self._url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.end(signal.SIGKILL, patience_seconds=STOP_SECONDS)

    @property
    def database(self) -> Path:
        """Its SQLite file."""
        return self.data_dir / "learnd.db"

    @property
    def url(self) -> str:
        """Where its API listens since it was started last."""
        return self._url

    @property
    def token(self) -> str:
        """What its API asks for."""
        return (self.data_dir / "token").read_text().strip()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running().pid

    # --- its life -------------------------------------------------------------------

    def launch(
        self, crash: Crash | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process, and do not wait for it to be up."""
        assert self._process is None, "it runs already"
        self._starts += 1
        self._log = self.folder / f"learnd-{self._starts}.log"
        env = {**self._environment(), **(environment or {})}
        if self._nursery is not None:
            self._process = self._nursery.bear(crash, log=self._log, env=env)
        else:
            program = ["-m", "daemon"]
            if crash is not None:
                program = ["-m", "tests.crashing", crash.failpoint, str(crash.nth)]
            self._process = TiedProcess([sys.executable, *program, "run"], log=self._log, env=env)

    def start(self, crash: Crash | None = None) -> None:
        """Start it, and return when it is up."""
        self.launch(crash)
        self.wait_until("learnd is up", self.is_up, seconds=START_SECONDS)

    def is_up(self) -> bool:
        """Whether it has said that it is up."""
        self._url = self._announced_url() if self._log.exists() else ""
        return bool(self._url)

    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self._running().exit_status is not None

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> Stopped:
        """End it with SIGTERM; a daemon that takes longer than it promises is killed."""
        return self._end(signal.SIGTERM)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """It is stopped as by SIGSTOP inside the block, and goes on after it."""
        process = self._running()
        process.send(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send(signal.SIGCONT)

    def wait_for_end(self) -> Stopped:
        """How it ended, without being told to."""
        process = self._running()
        wait_until("its end", lambda: process.exit_status is not None, explain=self.log_tail)
        return self._end(signal.SIGKILL)

    def wait_for_crash(self) -> None:
        """Return when the crash that `launch` was asked for has killed it."""
        process = self._running()
        wait_until(
            "the crash", lambda: process.exit_status is not None, explain=lambda: self.log_tail()
        )
        status = self._end(signal.SIGKILL).status
        if status != -signal.SIGKILL:
            raise DaemonEndedError(f"it ended with status {status}\n{self.log_tail()}")

    def wait_until(
        self,
        what: str,
        ask: Callable[[], T],
        *,
        seconds: float = PATIENCE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> T:
        """As tests.waiting.wait_until, as long as the daemon runs."""
        process = self._running()

        def ask_while_running() -> T:
            if process.exit_status is not None:
                raise DaemonEndedError(
                    f"{what}: it ended with status {process.exit_status}\n{self.log_tail()}"
                )
            return ask()

        return wait_until(
            what,
            ask_while_running,
            seconds=seconds,
            poll_seconds=poll_seconds,
            explain=self.log_tail,
        )

    def told(self, **fields: Any) -> list[Mapping[str, Any]]:
        """The lines of its log since it was started last that have these fields."""
        lines = self._log.read_text(errors="replace").splitlines()
        said = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in said if fields.items() <= line.items()]

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of its output since it was started last."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    # --- what is asked of it --------------------------------------------------------

    def get(self, path: str) -> Any:
        """The answer of its API."""
        answer = httpx.get(
            f"{self._url}{path}",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=ANSWER_SECONDS,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json()

    def probe(self, path: str) -> httpx.Response:
        """The answer of a probe, whatever its status."""
        return httpx.get(f"{self._url}{path}", timeout=ANSWER_SECONDS, trust_env=False)

    def post(self, path: str, body: Any = None, *, content: bytes | None = None) -> httpx.Response:
        """The answer of its API to a POST, also one that refuses."""
        return httpx.post(
            f"{self._url}{path}",
            headers={"Authorization": f"Bearer {(self.data_dir / 'token').read_text().strip()}"},
            json=body,
            content=content,
            timeout=ANSWER_SECONDS,
            trust_env=False,
        )

    def post_signed(self, path: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """The answer of its API to a POST without the token."""
        return httpx.post(
            f"{self._url}{path}",
            content=content,
            headers=headers,
            timeout=ANSWER_SECONDS,
            trust_env=False,
        )

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, on its own page."""
        page = httpx.get(f"{self._url}/metrics", timeout=ANSWER_SECONDS, trust_env=False).text
        return sum(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        )

    def command(
        self, *arguments: str, status: int = 0, environment: Mapping[str, str] | None = None
    ) -> str:
        """What `learnd ARGUMENTS` prints; it must end with this status."""
        done = subprocess.run(
            [sys.executable, "-m", "daemon", *arguments],
            env=self._environment() | {"LEARND_URL": self._url, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == status, (
            f"learnd {' '.join(arguments)}: {done.stdout}{done.stderr}"
        )
        return done.stdout

    # --- inside ---------------------------------------------------------------------

    def _end(self, how: signal.Signals) -> Stopped:
        process, self._process = self._running(), None
        begun = time.monotonic()
        status = process.end(how, patience_seconds=STOP_SECONDS)
        return Stopped(status, time.monotonic() - begun)

    def _running(self) -> TiedProcess | Forked:
        assert self._process is not None, "it was not started"
        return self._process

    def _announced_url(self) -> str:
        found = re.search(r'^\{.*"learnd is up".*\}$', self._log.read_text(), re.MULTILINE)
        return str(json.loads(found.group())["url"]) if found is not None else ""

    def _environment(self) -> dict[str, str]:
        """That of the tests, less whatever would configure a daemon."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("LEARND_") and name not in PLAIN_NAMES
        }
        return clean | {"LEARND_CONFIG": str(self._config), "PYTHONPATH": str(ROOT)}
