"""SIGTERM raises where it may, and waits where it must not."""

import os
import signal
from collections.abc import Iterator

import pytest

from finetune.trainer.interruption import Interrupted, Interruption


@pytest.fixture
def interruption() -> Iterator[Interruption]:
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in handled}
    installed = Interruption()
    installed.install()
    yield installed
    for number, handler in before.items():
        signal.signal(number, handler)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_raises_at_once_where_it_is_allowed(interruption: Interruption) -> None:
    def work() -> None:
        with interruption.allowed():
            terminate()
            pytest.fail("work went on")

    with pytest.raises(Interrupted):
        work()


def test_it_only_notes_where_it_is_not_allowed(interruption: Interruption) -> None:
    terminate()

    assert interruption.requested


def test_one_that_came_before_raises_where_it_becomes_allowed(
    interruption: Interruption,
) -> None:
    terminate()

    with pytest.raises(Interrupted), interruption.allowed():
        pytest.fail("the block was entered")


def test_a_deferred_one_raises_when_the_deferral_ends(interruption: Interruption) -> None:
    done: list[str] = []

    def work() -> None:
        with interruption.allowed():
            with interruption.deferred():
                terminate()
                done.append("deferred")
            done.append("after")

    with pytest.raises(Interrupted):
        work()
    assert done == ["deferred"]


def test_an_error_in_the_deferral_is_not_hidden(interruption: Interruption) -> None:
    def work() -> None:
        with interruption.allowed(), interruption.deferred():
            terminate()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()


def test_a_second_one_does_not_break_into_the_reaction_to_the_first(
    interruption: Interruption,
) -> None:
    done: list[str] = []

    def work() -> None:
        with interruption.allowed():
            try:
                terminate()
            finally:
                terminate()
                done.append("cleaned")

    with pytest.raises(Interrupted):
        work()
    assert done == ["cleaned"]


def test_no_handler_of_ordinary_errors_swallows_it(interruption: Interruption) -> None:
    def work() -> None:
        with interruption.allowed():
            try:
                terminate()
            except Exception:
                pytest.fail("swallowed")

    with pytest.raises(Interrupted):
        work()


def call_off() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_request_that_is_called_off_ends_where_it_looks_and_the_next_one_runs(
    interruption: Interruption,
) -> None:
    def work() -> None:
        with interruption.request(), interruption.allowed(), interruption.deferred():
            call_off()
            interruption.raise_if_requested()
            pytest.fail("work went on")

    with pytest.raises(Interrupted):
        work()

    assert not interruption.requested
    with interruption.request(), interruption.allowed():
        interruption.raise_if_requested()


def test_a_request_that_is_called_off_elsewhere_ends_the_process_with_it(
    interruption: Interruption,
) -> None:
    def work() -> None:
        with interruption.request(), interruption.allowed():
            call_off()
            pytest.fail("work went on")

    with pytest.raises(Interrupted):
        work()

    assert interruption.requested


def test_calling_off_what_has_just_ended_means_nothing(interruption: Interruption) -> None:
    with interruption.allowed():
        call_off()
        interruption.raise_if_requested()

    assert not interruption.requested
