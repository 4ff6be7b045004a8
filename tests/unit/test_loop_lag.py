"""A stall is told for a minute at least, and forgotten after two."""

from monitoring.loop_lag import WINDOW_SECONDS, LoopLag


def test_the_longest_stall_is_told_for_a_minute_and_then_forgotten() -> None:
    now = 100.0
    lag = LoopLag(lambda: now)
    assert lag.longest_seconds == 0.0
    lag.note(0.3)
    lag.note(0.1)
    assert lag.longest_seconds == 0.3
    now += WINDOW_SECONDS
    lag.note(0.2)
    assert lag.longest_seconds == 0.3
    now += WINDOW_SECONDS
    lag.note(0.0)
    assert lag.longest_seconds == 0.2
