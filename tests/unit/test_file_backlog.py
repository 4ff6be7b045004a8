"""What of a file waits, as it grows and is read."""

from consumers.file_backlog import MOST_GROWTHS, Backlog


def test_the_oldest_byte_that_waits_says_since_when() -> None:
    backlog = Backlog()
    assert backlog.behind(0) == (0, None)
    backlog.see(100, 10.0, 0)
    backlog.see(150, 20.0, 0)
    assert backlog.behind(0) == (150, 10.0)
    assert backlog.behind(99) == (51, 10.0)
    assert backlog.behind(100) == (50, 20.0)
    assert backlog.behind(150) == (0, None)


def test_a_file_that_grows_while_it_is_read_is_not_behind() -> None:
    backlog = Backlog()
    backlog.see(100, 10.0, 0)
    assert backlog.behind(130) == (0, None)


def test_of_a_file_that_is_shorter_than_what_was_read_everything_waits() -> None:
    backlog = Backlog()
    backlog.see(100, 10.0, 0)
    backlog.see(40, 30.0, 100)
    assert backlog.behind(100) == (40, 30.0)
    assert backlog.behind(0) == (40, 30.0)
    assert backlog.behind(40) == (0, None)


def test_a_backlog_of_many_growths_stays_small_and_is_never_too_young() -> None:
    backlog = Backlog()
    for second in range(10 * MOST_GROWTHS):
        backlog.see(second + 1, float(second), 0)
    assert backlog.behind(0) == (10 * MOST_GROWTHS, 0.0)
    n_bytes, since = backlog.behind(10 * MOST_GROWTHS - 1)
    assert n_bytes == 1
    assert since is not None
    assert since < MOST_GROWTHS
