"""When a queue becomes a batch, and of what size."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.batching import BatchRules, Due, LineQueue, Trigger, due, is_about_to_fill
from tests.builders import NOON, later

RULES = BatchRules(batch_size=20, max_queue_size=100, max_wait=timedelta(minutes=15))


def queue(waiting: int, *, since: datetime | None = NOON, busy: bool = False) -> LineQueue:
    return LineQueue("normalize", waiting, since if waiting else None, busy)


@pytest.mark.parametrize(
    ("waiting", "minutes", "expected"),
    [
        (0, 60, None),
        (1, 14.99, None),
        (1, 15, Due(Trigger.AGE, 1)),
        (19, 0, None),
        (19, 16, Due(Trigger.AGE, 19)),
        (20, 0, Due(Trigger.SIZE, 20)),
        (99, 0, Due(Trigger.SIZE, 20)),
        (99, 60, Due(Trigger.SIZE, 20)),
        (100, 0, Due(Trigger.FULL, 100)),
        (5_000, 60, Due(Trigger.FULL, 100)),
    ],
)
def test_what_is_due(waiting: int, minutes: float, expected: Due | None) -> None:
    assert due(queue(waiting), RULES, later(minutes=minutes)) == expected


def test_a_busy_line_seals_nothing_however_much_waits() -> None:
    assert due(queue(5_000, busy=True), RULES, later(days=1)) is None


def test_a_clock_that_went_back_seals_nothing_by_age() -> None:
    assert due(queue(1), RULES, later(hours=-1)) is None


@given(
    waiting=st.integers(0, 1_000),
    minutes=st.integers(0, 100),
    batch_size=st.integers(1, 200),
    max_queue_size=st.integers(1, 200),
)
def test_a_batch_takes_something_and_never_more_than_waits(
    waiting: int, minutes: int, batch_size: int, max_queue_size: int
) -> None:
    rules = BatchRules(batch_size, max_queue_size, timedelta(minutes=15))

    batch = due(queue(waiting), rules, later(minutes=minutes))

    if batch is not None:
        assert 1 <= batch.size <= min(waiting, max(batch_size, max_queue_size))
    else:
        assert waiting < batch_size
        assert waiting == 0 or minutes < 15


@pytest.mark.parametrize(
    ("waiting", "share", "expected"),
    [(15, 0.8, False), (16, 0.8, True), (19, 1.0, False), (20, 1.0, True), (19, 0.0, False)],
)
def test_a_batch_is_near_when_its_share_waits(waiting: int, share: float, expected: bool) -> None:
    assert is_about_to_fill(queue(waiting), RULES, share) is expected


def test_no_batch_is_near_while_the_line_is_busy() -> None:
    assert not is_about_to_fill(queue(19, busy=True), RULES, 0.5)
