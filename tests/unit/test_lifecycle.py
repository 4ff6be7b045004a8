"""Which moves exist. Whatever is not listed here must be refused."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

import pytest

from learning.errors import IllegalMoveError
from learning.lifecycle import (
    ACTIVE_RUN_STATES,
    UNFINISHED_RUN_STATES,
    BatchState,
    EventState,
    RunState,
    VersionState,
    require_batch_move,
    require_event_move,
    require_run_move,
    require_version_move,
)

EVENT_MOVES = {
    ("queued", "sealed"),
    ("queued", "withdrawn"),
    ("queued", "quarantined"),
    ("held", "queued"),
    ("held", "rejected"),
    ("held", "expired"),
    ("held", "quarantined"),
    ("quarantined", "queued"),
    ("quarantined", "rejected"),
} | {(state.value, "forgotten") for state in EventState if state is not EventState.FORGOTTEN}
BATCH_MOVES = {
    ("sealed", "running"),
    ("sealed", "returned"),
    ("running", "spent"),
    ("running", "returned"),
    ("returned", "spent"),
}
RUN_MOVES = {
    ("planned", "launching"),
    ("planned", "waiting"),
    ("planned", "cancelled"),
    ("waiting", "planned"),
    ("waiting", "running"),
    ("waiting", "cancelled"),
    ("launching", "running"),
    ("launching", "planned"),
    ("launching", "failed"),
    ("launching", "waiting"),
    ("launching", "cancelled"),
    ("running", "trained"),
    ("running", "planned"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("trained", "evaluating"),
    ("trained", "failed"),
    ("trained", "cancelled"),
    ("evaluating", "decided"),
    ("evaluating", "failed"),
    ("evaluating", "cancelled"),
}
VERSION_MOVES = {
    ("candidate", "released"),
    ("candidate", "refused"),
    ("refused", "released"),
    ("released", "superseded"),
    ("released", "rolled_back"),
    ("superseded", "released"),
    ("superseded", "rolled_back"),
    ("rolled_back", "released"),
    ("rolled_back", "superseded"),
} | {(state.value, "tainted") for state in VersionState if state is not VersionState.TAINTED}

Require = Callable[[Any, Any], None]


def pairs(states: type[StrEnum]) -> Iterable[tuple[StrEnum, StrEnum]]:
    return [(current, wanted) for current in states for wanted in states]


@pytest.mark.parametrize(
    ("states", "moves", "require"),
    [
        (EventState, EVENT_MOVES, require_event_move),
        (BatchState, BATCH_MOVES, require_batch_move),
        (RunState, RUN_MOVES, require_run_move),
        (VersionState, VERSION_MOVES, require_version_move),
    ],
)
def test_only_the_listed_moves_exist(
    states: type[StrEnum], moves: set[tuple[str, str]], require: Require
) -> None:
    allowed = set()
    for current, wanted in pairs(states):
        try:
            require(current, wanted)
        except IllegalMoveError as error:
            assert (error.current, error.wanted) == (current, wanted)  # noqa: PT017
        else:
            allowed.add((str(current), str(wanted)))

    assert allowed == moves


def test_a_refused_move_says_what_was_wanted_of_what() -> None:
    with pytest.raises(IllegalMoveError, match="a run that is decided cannot become running"):
        require_run_move(RunState.DECIDED, RunState.RUNNING)


def test_a_run_can_always_come_to_an_end() -> None:
    """From every state there is a way to one that has no way out."""
    reached: set[str] = {"decided", "failed", "cancelled"}
    assert not {current for current, _ in RUN_MOVES} & reached
    for _ in RunState:
        reached |= {current for current, wanted in RUN_MOVES if wanted in reached}

    assert reached == set(RunState)


def test_a_line_is_busy_with_a_run_from_its_launch_to_its_verdict() -> None:
    assert {state for state in RunState if state.active} == ACTIVE_RUN_STATES
    assert ACTIVE_RUN_STATES < UNFINISHED_RUN_STATES
    assert {current for current, _ in RUN_MOVES} == UNFINISHED_RUN_STATES
