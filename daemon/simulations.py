"""Simulations that a running daemon is asked for; implements daemon.api.ports.SimulationOperations.

One at a time, in a process of its own, so that neither the event loop nor the intake waits for
it, bounded in events and in time.
"""

import asyncio
import io
import json
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter

from daemon.api.ports import SimulationAnswer
from daemon.settings import Settings
from daemon.simulating import Order, SimulationError, order
from daemon.simulation_file import simulate_file
from learning.clock import Clock
from learning.errors import ConflictError, LearningError, NotFoundError
from learning.ports import StoreUnavailableError

DEFAULT_SINCE: Final = "7d"
MOST_EVENTS: Final = 2_000_000
MOST_SECONDS: Final = 120.0


class SimulationRunsError(ConflictError):
    """One simulation runs already."""

    def __init__(self) -> None:
        super().__init__("another simulation runs: try again when it has ended")


class SimulationTooLongError(ConflictError):
    """A simulation was ended because it took too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"it was ended after {seconds:.0f} s: take a shorter stretch, or one line, or run"
            " `learnd simulate --offline` beside the daemon"
        )


class SimulationFailedError(LearningError):
    """The process that simulates broke down; its words are in the message."""


_ERRORS: Final[Mapping[str, type[LearningError]]] = {
    "unavailable": StoreUnavailableError,
    "not_found": NotFoundError,
    "refused": SimulationError,
}


class Simulations:
    """Those of one daemon, under the settings that hold when they are asked for."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        clock: Clock,
        *,
        most_events: int = MOST_EVENTS,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._most_events = most_events
        self._most_seconds = most_seconds
        self._turn = asyncio.Lock()

    async def simulate(
        self,
        values: Mapping[str, Any],
        *,
        events: Sequence[Mapping[str, Any]] | None = None,
        since: str | None,
        until: str | None,
        line: str | None,
        task_type: str | None,
        run_seconds: float,
    ) -> SimulationAnswer:
        """See daemon.api.ports.SimulationOperations."""
        settings, now = self._settings(), self._clock()
        if events is not None:
            # They are few: a request is short.
            return await asyncio.to_thread(
                simulate_file,
                io.BytesIO(b"\n".join(json.dumps(event).encode() for event in events)),
                settings,
                values,
                now=now,
                since=since,
                until=until,
                line=line,
                task_type=task_type,
                run_seconds=run_seconds,
            )
        told = order(
            settings,
            values,
            now=now,
            since=DEFAULT_SINCE if since is None else since,
            until=until,
            line=line,
            task_type=task_type,
            run_seconds=run_seconds,
            most_events=self._most_events,
        )
        if self._turn.locked():
            raise SimulationRunsError
        async with self._turn:
            return await self._performed(told)

    async def _performed(self, told: Order) -> SimulationAnswer:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "daemon.simulation_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._most_seconds):
                said, complained = await process.communicate(pickle.dumps(told))
        except TimeoutError:
            raise SimulationTooLongError(self._most_seconds) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            last = complained.decode(errors="replace").strip().splitlines()[-1:]
            raise SimulationFailedError(f"the simulation failed: {''.join(last)}")
        found = json.loads(said)
        if "answer" not in found:
            raise _ERRORS[found["error"]](found["detail"])
        return TypeAdapter(SimulationAnswer).validate_python(found["answer"])
