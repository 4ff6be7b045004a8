"""How many events each client may send: token buckets, in bounded memory.

Pure but for the clock that it is given. It only counts; who is refused, and who is made
to wait, is for the source to say.
"""

from collections import OrderedDict
from collections.abc import Callable

MOST_CLIENTS = 10_000
"""So many are remembered; whoever sent nothing for the longest time is forgotten first."""


class RateLimit:
    """Each client may send `per_second` events, and `burst` at once after a rest."""

    def __init__(self, per_second: float, burst: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = burst
        self._monotonic = monotonic
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By client: how many events it may send, as of which time."""

    def take(self, client: str, n_events: int) -> float:
        """Count events of a client: 0.0, or the seconds that it has to wait; then none counted.

        It takes one allowed event to begin; a block may be larger than what is left, and is
        paid for by the wait of the next.
        """
        now = self._monotonic()
        level, since = self._levels.pop(client, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._per_second)
        wait = max(0.0, (1.0 - level) / self._per_second)
        self._levels[client] = (level if wait else level - n_events, now)
        if len(self._levels) > MOST_CLIENTS:
            self._levels.popitem(last=False)
        return wait
