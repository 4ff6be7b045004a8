"""How much of a followed file is not stored yet, and how long that has waited.

Keeps what the file was like each time that it had grown; opens nothing.
"""

from collections import deque
from dataclasses import dataclass

MOST_GROWTHS = 1_000
"""So many are told apart; what comes then counts as old as the last of them."""


@dataclass(frozen=True)
class FileLag:
    """What waits in the followed files of one kind."""

    n_bytes: int = 0
    oldest_seconds: float = 0.0
    """How long the first of these bytes has been there; 0 when there are none."""


class Backlog:
    """The bytes behind a position in one file."""

    def __init__(self) -> None:
        self._growths: deque[tuple[int, float]] = deque()
        self._size = 0
        self._cut_before: int | None = None

    def see(self, size: int, changed_at: float, offset: int) -> None:
        """The file has so many bytes since then, in seconds of any one clock.

        `offset` is how far it is stored. When it is shorter, it will be read from its start.
        """
        self._cut_before = offset if size < offset else None
        if size < self._size:
            self._growths.clear()  # truncated, or another file
        if not self._growths or size > self._growths[-1][0]:
            if len(self._growths) >= MOST_GROWTHS:
                changed_at = self._growths.pop()[1]
            self._growths.append((size, changed_at))
        self._size = size

    def behind(self, offset: int) -> tuple[int, float | None]:
        """Bytes from an offset on, and since when the first of them has been there."""
        if offset == self._cut_before:
            offset = 0
        while self._growths and self._growths[0][0] <= offset:
            self._growths.popleft()
        n_bytes = max(0, self._size - offset)  # it may have grown, and been read, since
        return n_bytes, self._growths[0][1] if n_bytes and self._growths else None
