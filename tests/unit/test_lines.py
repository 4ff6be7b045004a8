"""Which model line learns from which task type."""

from dataclasses import replace

import pytest

from learning.lines import ModelLine, ModelLines, TaskTypeClaimedTwiceError

ARCADE = ModelLine("arcade", frozenset({"audio", "game"}), "tiny", "scripted")
CODING = ModelLine("coding", frozenset({"coding"}), "tiny", "scripted")
TEMPLATE = ModelLine("", frozenset(), "small", "local", {"epochs": 3})


def test_a_task_type_belongs_to_the_line_that_claims_it() -> None:
    lines = ModelLines([ARCADE, CODING])

    assert lines.owner("game") is ARCADE
    assert lines.get("arcade") is ARCADE
    assert list(lines) == [ARCADE, CODING]


def test_a_task_type_that_nobody_claims_is_unknown_without_a_template() -> None:
    lines = ModelLines([ARCADE])

    assert lines.owner("coding") is None
    assert lines.get("coding") is None


def test_with_a_template_it_gets_a_line_of_its_own_named_after_it() -> None:
    lines = ModelLines([ARCADE], TEMPLATE)

    line = replace(TEMPLATE, name="coding", task_types=frozenset({"coding"}))
    assert lines.owner("coding") == line
    assert lines.get("coding") == line


def test_a_name_that_a_line_has_is_no_task_type_of_the_template() -> None:
    """Two lines of one name would share versions."""
    lines = ModelLines([ARCADE], TEMPLATE)

    assert lines.owner("arcade") is None
    assert lines.get("game") is None, "game is learned by arcade; there is no line game"


def test_each_line_is_named_once_for_all_its_task_types() -> None:
    lines = ModelLines([ARCADE, CODING])

    assert lines.owners(["game", "unheard", "coding", "audio"]) == [ARCADE, CODING]


def test_two_lines_cannot_claim_one_task_type() -> None:
    rival = replace(CODING, name="rival", task_types=frozenset({"game", "website"}))

    with pytest.raises(TaskTypeClaimedTwiceError, match=r"'game'.*'arcade' and 'rival'") as caught:
        ModelLines([ARCADE, rival])

    assert caught.value.task_type == "game"
