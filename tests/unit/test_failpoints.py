"""The named moments: silent in operation, each name once."""

from collections import Counter

import pytest

from learning import failpoints
from tests.failpoints import all_names


def test_in_operation_nothing_happens() -> None:
    failpoints.reached("anything")


def test_who_listens_is_told_each_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_listener", failpoints._listener)  # put back afterwards
    heard: list[str] = []

    failpoints.listen(heard.append)
    failpoints.reached("dataset named")

    assert heard == ["dataset named"]


def test_a_name_stands_for_one_moment() -> None:
    assert [name for name, n in Counter(all_names()).items() if n > 1] == []
