"""The process that runs one simulation for a daemon: an order on stdin, its answer on stdout.

It yields to whatever else the machine has to do, and its memory is gone with it.
"""

import contextlib
import json
import os
import pickle
import sys
from typing import Any

from pydantic import TypeAdapter

from daemon.api.ports import SimulationAnswer
from daemon.simulating import Order, perform
from learning.errors import LearningError, NotFoundError
from learning.ports import StoreUnavailableError

NICE = 10


def answer(told: Order) -> dict[str, Any]:
    """What the daemon reads: the answer, or why there is none and which kind of error it is."""
    try:
        found = perform(told)
    except LearningError as error:
        kind = (
            "unavailable"
            if isinstance(error, StoreUnavailableError)
            else "not_found"
            if isinstance(error, NotFoundError)
            else "refused"
        )
        return {"error": kind, "detail": str(error)}
    return {"answer": TypeAdapter(SimulationAnswer).dump_python(found, mode="json")}


def main() -> None:
    """Serve one order."""
    with contextlib.suppress(OSError):
        os.nice(NICE)
    told = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the daemon that started it
    json.dump(answer(told), sys.stdout)


if __name__ == "__main__":
    main()
