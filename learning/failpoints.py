"""Named moments between one durable state and the next, at which a test may end the process.

In operation nobody listens, and `reached` does nothing. What a crash at each of them leaves
behind is tested by walking them all: tests/acceptance/test_crash_points.py.
"""

from collections.abc import Callable


def _ignore(name: str) -> None:
    pass


_listener: Callable[[str], None] = _ignore


def reached(name: str) -> None:
    """The process is at this moment. The name is unique, and a literal where it can be."""
    _listener(name)


def listen(listener: Callable[[str], None]) -> None:
    """Tell a test's process of each moment, in whatever thread comes to it."""
    global _listener
    _listener = listener
