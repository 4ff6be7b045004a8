"""When intake waits, and how it comes to an end."""

import time

from consumers.pressure import Pressure
from learning.ports import EventKind


def test_outputs_wait_between_the_marks_and_feedback_does_not() -> None:
    pressure = Pressure(time.monotonic, high_water=1_000, low_water=800)
    pressure.count(999)
    assert pressure.refusal(EventKind.OUTPUT) is None
    pressure.add(1)
    said = pressure.refusal(EventKind.OUTPUT)
    assert said is not None
    assert "1,000 events wait" in said
    assert pressure.refusal(EventKind.FEEDBACK) is None
    fullness = []
    for waiting in (800, 799, 999, 1_000):
        pressure.count(waiting)
        fullness.append(pressure.is_full)
    assert fullness == [True, False, False, True]


def test_everything_waits_for_a_store_that_failed_until_it_answers() -> None:
    now = 5.0
    pressure = Pressure(lambda: now)
    assert pressure.quiet_seconds == 0
    pressure.store_failed("database is locked")
    now += 3
    assert pressure.quiet_seconds == 3
    for kind in EventKind:
        assert pressure.refusal(kind) == "nothing can be stored: database is locked"
    pressure.store_answered()
    assert pressure.quiet_seconds == 0
    assert pressure.refusal(EventKind.OUTPUT) is None


def test_without_marks_no_number_of_events_is_too_many() -> None:
    pressure = Pressure(time.monotonic)
    pressure.count(10**12)
    assert not pressure.is_full
