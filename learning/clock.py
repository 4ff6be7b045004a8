"""What a clock is here: a function that gives the present, aware and in UTC."""

from collections.abc import Callable
from datetime import UTC, datetime

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Clock = Callable[[], datetime]
"""Passed in wherever time matters, so that a test can hold it still."""


def microseconds(time: datetime) -> int:
    """An aware time as whole microseconds since 1970."""
    # In integers, so exactly; dividing by a timedelta takes three times as long.
    since = time - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
