"""Wait for what another process does: ask again and again, and give up loudly.

The only place in the tests that sleeps. For processes and servers; what runs in the
test's own event loop is awaited.
"""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 30.0


class StillWaitingError(AssertionError):
    """Something did not happen in time."""


def wait_until(
    what: str,
    ask: Callable[[], T],
    *,
    seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
    explain: Callable[[], str] = str,
) -> T:
    """The first answer that is true; `explain` is what to show when there is none.

    Raises StillWaitingError with the last answer. Whatever `ask` raises ends the waiting.
    """
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise StillWaitingError(
                f"{what}: not within {seconds:g} s; the last answer was {answer!r}\n{explain()}"
            )
        time.sleep(poll_seconds)
    return answer
