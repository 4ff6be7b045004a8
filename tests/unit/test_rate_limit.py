"""Each client has its allowance, and nobody can fill the memory with clients."""

import pytest

from consumers import rate_limit
from consumers.rate_limit import RateLimit


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_is_allowed_and_then_the_rate(clock: Clock) -> None:
    limit = RateLimit(2.0, 3, clock)
    assert [limit.take("a", 1) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    clock.now += 0.5
    assert [limit.take("a", 1) for _ in range(2)] == [0.0, 0.5]


def test_one_client_does_not_use_up_anothers_allowance(clock: Clock) -> None:
    limit = RateLimit(1.0, 1, clock)
    assert limit.take("a", 1) == 0.0
    assert limit.take("a", 1) > 0.0
    assert limit.take("b", 1) == 0.0


def test_a_large_block_is_paid_for_by_the_wait_of_the_next(clock: Clock) -> None:
    limit = RateLimit(10.0, 5, clock)
    assert limit.take("a", 25) == 0.0
    wait = limit.take("a", 25)
    assert wait == pytest.approx(2.1)
    clock.now += wait + 0.001
    assert limit.take("a", 25) == 0.0


def test_a_rest_saves_up_no_more_than_the_burst(clock: Clock) -> None:
    limit = RateLimit(10.0, 2, clock)
    limit.take("a", 2)
    clock.now += 3_600.0
    assert [limit.take("a", 1) for _ in range(3)] == [0.0, 0.0, pytest.approx(0.1)]


def test_who_sent_nothing_for_the_longest_time_is_forgotten_first(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit, "MOST_CLIENTS", 2)
    limit = RateLimit(1.0, 1, clock)
    for client in ("a", "b", "a", "c"):
        limit.take(client, 1)
    assert limit.take("a", 1) > 0.0
    assert limit.take("b", 1) == 0.0
