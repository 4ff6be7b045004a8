"""What goes wrong at the service: by the test's word, or drawn by a seed."""

import random
from collections import deque
from enum import StrEnum
from typing import Protocol


class Fault(StrEnum):
    """What befalls one request."""

    RATE_LIMIT = "rate_limit"
    """429, and when to come back."""
    RATE_LIMIT_SILENT = "rate_limit_silent"
    """429, and not a word about when."""
    ERROR = "error"
    """500, before anything was done."""
    ERROR_AFTER = "error_after"
    """500, although it was done."""
    HTML = "html"
    """A page of some gateway, with status 200, before anything was done."""
    HTML_AFTER = "html_after"
    """The same, although it was done."""
    RESET = "reset"
    """The connection is reset before anything was done."""
    RESET_AFTER = "reset_after"
    """It was done, and the connection is reset before a word of the reply."""
    PARTIAL = "partial"
    """Half of an uploaded file is kept; any other request is answered as it should be."""
    SLOW = "slow"
    """The answer takes longer than anybody waits."""
    TWICE = "twice"
    """A gateway that repeats what it sends on: it is done twice."""
    HELD = "held"
    """It was done, and the reply waits until the test lets it go."""


class Faults(Protocol):
    """Decides what befalls a request."""

    def of(self, method: str, path: str) -> Fault | None:
        """The fault of the next request; None is none."""
        ...


class ScriptedFaults:
    """None, but for those that a test asks for: the next such request gets the next of them."""

    def __init__(self) -> None:
        self._planned: dict[tuple[str, str], deque[Fault]] = {}

    def plan(self, method: str, path: str, *faults: Fault) -> None:
        """For the next requests of a method whose path ends so."""
        self._planned.setdefault((method, path), deque()).extend(faults)

    def of(self, method: str, path: str) -> Fault | None:
        """See Faults."""
        for (planned_method, end), faults in self._planned.items():
            if faults and method == planned_method and path.endswith(end):
                return faults.popleft()
        return None


class SeededFaults:
    """The same faults for the same seed and the same requests; each with the given share."""

    def __init__(self, seed: int, *, share: float, kinds: tuple[Fault, ...]) -> None:
        self._draw = random.Random(seed)
        self._share, self._kinds = share, kinds

    def of(self, method: str, path: str) -> Fault | None:
        """See Faults."""
        if self._draw.random() >= self._share:
            return None
        return self._draw.choice(self._kinds)
