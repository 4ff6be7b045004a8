"""Numbers of model versions: how they are read, bumped, and never given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from learning.errors import VersionTextError
from learning.versioning import (
    BASE,
    Bump,
    Recipe,
    bump_between,
    next_candidate,
    next_release,
    parse,
)

RECIPE = Recipe("tiny", "digest-1", frozenset({"audio"}))


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.2.3", "1.2.3"), ("v1.2.3", "1.2.3"), ("v1.0.1-rc.1", "1.0.1-rc.1"), ("10.0.0", "10.0.0")],
)
def test_a_leading_v_is_accepted_wherever_a_version_is_read(text: str, number: str) -> None:
    assert str(parse(text)) == number


@pytest.mark.parametrize(
    "text", ["", "v", "vv1.0.0", "1", "1.2", "1.2.3.4", "01.2.3", "champion", "1.2.3 ", "V1.2.3"]
)
def test_any_other_text_is_named_in_the_error(text: str) -> None:
    with pytest.raises(VersionTextError) as caught:
        parse(text)

    assert caught.value.text == text
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("champion", "candidate", "bump"),
    [
        (None, RECIPE, Bump.PATCH),
        (RECIPE, RECIPE, Bump.PATCH),
        (RECIPE, Recipe("tiny", "digest-2", frozenset({"audio"})), Bump.MINOR),
        (RECIPE, Recipe("tiny", "digest-1", frozenset({"audio", "game"})), Bump.MINOR),
        (RECIPE, Recipe("tiny", "digest-1", frozenset()), Bump.PATCH),
        (RECIPE, Recipe("large", "digest-1", frozenset({"audio"})), Bump.MAJOR),
        (RECIPE, Recipe("large", "digest-2", frozenset({"game"})), Bump.MAJOR),
    ],
)
def test_what_changed_decides_the_bump(
    champion: Recipe | None, candidate: Recipe, bump: Bump
) -> None:
    assert bump_between(champion, candidate) is bump


@pytest.mark.parametrize(
    ("released", "bump", "expected"),
    [
        ([], Bump.PATCH, "1.0.0"),
        ([], Bump.MAJOR, "1.0.0"),
        (["1.0.0"], Bump.PATCH, "1.0.1"),
        (["1.0.9", "1.0.10"], Bump.PATCH, "1.0.11"),
        (["1.0.0", "1.3.2", "1.1.0"], Bump.PATCH, "1.3.3"),
        (["1.3.2"], Bump.MINOR, "1.4.0"),
        (["1.3.2"], Bump.MAJOR, "2.0.0"),
    ],
)
def test_the_next_release_is_the_highest_ever_released_bumped(
    released: list[str], bump: Bump, expected: str
) -> None:
    assert str(next_release(map(parse, released), bump)) == expected


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], "1.0.1-rc.1"),
        (["1.0.1-rc.1"], "1.0.1-rc.2"),
        (["1.0.1-rc.2", "1.0.1-rc.10"], "1.0.1-rc.11"),
        (["1.0.2-rc.7", "1.1.0-rc.3"], "1.0.1-rc.1"),
    ],
)
def test_candidates_of_one_release_are_counted(candidates: list[str], expected: str) -> None:
    assert str(next_candidate(Version(1, 0, 1), map(parse, candidates))) == expected


@given(st.lists(st.tuples(st.sampled_from(Bump), st.booleans()), max_size=40))
def test_no_number_is_ever_given_twice(steps: list[tuple[Bump, bool]]) -> None:
    """A walk of candidates, some of them released, in any order of bumps."""
    released: list[Version] = [BASE]
    candidates: list[Version] = []
    for bump, is_released in steps:
        target = next_release(released, bump)
        candidate = next_candidate(target, candidates)
        candidates.append(candidate)
        assert candidate < target
        assert candidate > max(released)
        if is_released:
            released.append(target)

    numbers = [str(number) for number in (*released, *candidates)]
    assert len(set(numbers)) == len(numbers)
    assert released == sorted(released)
