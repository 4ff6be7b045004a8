"""Look at the running daemon over its HTTP API until it has done something.

The same calls as the command line makes, with the same token. Shows progress meanwhile;
decides nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from daemon.client import Client, DaemonUnavailableError, DaemonUnreachableError
from daemon.demo.ledger import Totals, totals
from daemon.demo.screen import Board, Screen
from learning.errors import LearningError
from learning.lifecycle import RunState

Json = Mapping[str, Any]
T = TypeVar("T")

POLL_SECONDS: Final = 0.25
READY_SECONDS: Final = 60.0
INTAKE_SECONDS: Final = 60.0
RUNS_SECONDS: Final = 600.0

OVER: Final = frozenset({RunState.DECIDED, RunState.FAILED, RunState.CANCELLED, RunState.WAITING})


class TookTooLongError(LearningError):
    """The daemon did not do in time what the story waits for."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"waited {seconds:.0f} s for {what}")


class Watch:
    """Looks at one daemon."""

    def __init__(self, daemon: Client, screen: Screen) -> None:
        self._daemon = daemon
        self._screen = screen

    async def ask(self, path: str, **query: Any) -> Any:
        """A GET, off the event loop: the daemon that answers runs in it."""
        return await asyncio.to_thread(self._daemon.get, path, **query)

    async def tell(self, path: str, body: Json) -> Any:
        """A POST, off the event loop."""
        return await asyncio.to_thread(self._daemon.post, path, body)

    async def import_held_out(self, file: Path, task_type: str) -> Any:
        """Import labelled rows."""
        post = self._daemon.post_file
        return await asyncio.to_thread(post, "/v1/held-out", file, task_type=task_type)

    async def all_of(self, path: str, **query: Any) -> list[Any]:
        """The items of a long list."""
        pages = self._daemon.pages
        return await asyncio.to_thread(lambda: list(pages(path, most=100_000, **query)))

    async def totals(self) -> Totals:
        """What the daemon says it has taken in."""
        page = await asyncio.to_thread(httpx.get, f"{self._daemon.url}/metrics", trust_env=False)
        return totals(await self.ask("/v1/status"), page.text)

    async def until_ready(self) -> None:
        """Until it takes events in. Raises TookTooLongError."""

        async def ready() -> bool | None:
            try:
                await self.ask("/readyz")
            except (DaemonUnreachableError, DaemonUnavailableError):
                return None
            return True

        await _until(ready, "the daemon to be ready", READY_SECONDS)

    async def until_stored(self, n_sent: int) -> Totals:
        """Until as many records are accounted for as were sent. Raises TookTooLongError."""

        async def stored() -> Totals | None:
            found = await self.totals()
            return found if found.n >= n_sent else None

        return await _until(stored, f"{n_sent} records to be stored", INTAKE_SECONDS)

    async def until_decided(self, lines: Collection[str], known: Collection[str]) -> list[Json]:
        """Until each line has a run that is not among the known ones, and it is over.

        Returns these runs, in the order in which they ended. Raises TookTooLongError.
        """
        ended: dict[str, Json] = {}
        with self._screen.board() as board:

            async def decided() -> list[Json] | None:
                runs = (await self.ask("/v1/runs"))["items"]
                for run in _new(reversed(runs), lines, known):
                    if run["state"] not in OVER:
                        _show(board, run)
                    elif run["id"] not in ended:
                        ended[run["id"]] = run
                        board.end(run["id"])
                done = {run["line"] for run in ended.values()}
                return list(ended.values()) if done == set(lines) else None

            return await _until(decided, f"the runs of {', '.join(lines)}", RUNS_SECONDS)


def _new(runs: Iterable[Json], lines: Collection[str], known: Collection[str]) -> Iterable[Json]:
    return (run for run in runs if run["line"] in lines and run["id"] not in known)


def _show(board: Board, run: Json) -> None:
    trains = run["state"] == RunState.RUNNING and run["progress"] is not None
    label = {
        RunState.PLANNED: "waits for its turn",
        RunState.LAUNCHING: "starts",
        RunState.RUNNING: "trains" if trains else "waits for the trainer",
        RunState.TRAINED: "is trained",
        RunState.EVALUATING: "is compared with the champion",
    }[run["state"]]
    again = f" (attempt {run['attempt']}: {run['error']})" if run["failures"] else ""
    name = f"{run['line']} {label}{again}"
    if trains:
        progress = run["progress"]
        board.show(run["id"], name, progress["step"], progress["total_steps"], _measured(progress))
    else:
        board.show(run["id"], name, 0, 0)


def _measured(progress: Json) -> str:
    numbers = progress["numbers"]
    if not {"loss", "seconds_left"} <= numbers.keys():
        return ""
    return f"loss {numbers['loss']:.2f}, {numbers['seconds_left']:.0f} s left"


async def _until(look: Callable[[], Awaitable[T | None]], what: str, limit_seconds: float) -> T:
    deadline = time.monotonic() + limit_seconds
    while True:
        found = await look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise TookTooLongError(what, limit_seconds)
        await asyncio.sleep(POLL_SECONDS)
