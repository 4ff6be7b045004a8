"""Whether intake has to wait, and why: one answer for every source.

Pure state: those who write and those who count tell it, every source asks it. It holds no
event and drops none; a source that has to wait leaves the events where they are.
"""

import math
from collections.abc import Callable

from learning.ports import EventKind


class Pressure:
    """The store's trouble, and the number of events that wait for a batch.

    Outputs wait from the high-water mark on until fewer than the low-water mark are left.
    Feedback does not: it adds nothing that waits, and may take something away. Not for a
    full queue of one task type either: its neighbours on the partition go on.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        high_water: float = math.inf,
        low_water: float = math.inf,
    ) -> None:
        self._monotonic = monotonic
        self._high_water = high_water
        self._low_water = low_water
        self._waiting = 0
        self._is_full = False
        self._fault: str | None = None
        self._failed_at = 0.0

    @property
    def store_fault(self) -> str | None:
        """Why nothing can be stored, in words; None when the last attempt succeeded."""
        return self._fault

    @property
    def is_full(self) -> bool:
        """Whether outputs have to wait until enough events went into batches."""
        return self._is_full

    @property
    def quiet_seconds(self) -> float:
        """How long nobody has tried to store since it failed; 0 without a fault."""
        return 0.0 if self._fault is None else self._monotonic() - self._failed_at

    def refusal(self, kind: EventKind) -> str | None:
        """Why an event of this kind has to wait, in words; None: it may come."""
        if self._fault is not None:
            return f"nothing can be stored: {self._fault}"
        if self._is_full and kind is EventKind.OUTPUT:
            return (
                f"{self._waiting:,} events wait for a batch; outputs are taken again below"
                f" {self._low_water:,.0f} (queue.low_water)"
            )
        return None

    def store_failed(self, fault: str) -> None:
        """An attempt to store failed for a reason that may pass."""
        self._fault, self._failed_at = fault, self._monotonic()

    def store_answered(self) -> None:
        """An attempt to store succeeded."""
        self._fault = None

    def count(self, waiting: int) -> None:
        """So many events wait for a batch."""
        self._waiting = waiting
        self._is_full = waiting >= (self._low_water if self._is_full else self._high_water)

    def add(self, waiting: int) -> None:
        """So many more events wait, until somebody counts them again."""
        self.count(self._waiting + waiting)
