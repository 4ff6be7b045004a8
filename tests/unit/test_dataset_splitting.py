"""A split is the same each time, holds its share, and lets nothing leak."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.datasets.dataset_file import DatasetFile, Reading
from finetune.datasets.splitting import Side, Sides, SplitPlan, draw, sides_of


def alone(n: int) -> Any:
    return np.arange(n, dtype=np.int64)


def of_one_stratum(n: int) -> Any:
    return np.zeros(n, dtype=np.int64)


def split(path: Path, rows: Sequence[dict[str, Any]], **plan: Any) -> Sides:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sides_of(DatasetFile(path, Reading()), SplitPlan(**plan))


def pair(n: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"question {n}", "completion": f"answer {n}", **fields}


@pytest.mark.parametrize(("n", "held_out"), [(127, 26), (100, 20), (5, 1), (2, 1), (1, 0), (0, 0)])
def test_a_fifth_is_held_out_rounded_up_and_one_row_always_trains(n: int, held_out: int) -> None:
    assert draw(alone(n), of_one_stratum(n), SplitPlan()).sum() == held_out


def test_a_seed_gives_the_same_sides_for_ever() -> None:
    found = np.flatnonzero(draw(alone(20), of_one_stratum(20), SplitPlan(seed=7)))
    assert found.tolist() == [5, 15, 16, 19]


def test_another_seed_draws_others() -> None:
    draws = {
        draw(alone(50), of_one_stratum(50), SplitPlan(seed=seed)).tobytes() for seed in range(20)
    }
    assert len(draws) == 20


def test_every_row_is_held_out_about_as_often() -> None:
    plans = [SplitPlan(seed=seed) for seed in range(1_000)]
    times = np.sum([draw(alone(40), of_one_stratum(40), plan) for plan in plans], axis=0)
    assert min(times) > 130
    assert max(times) < 270


@given(
    groups=st.lists(st.integers(0, 30), min_size=2, max_size=80),
    strata=st.lists(st.integers(0, 3), min_size=80, max_size=80),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**70),
)
def test_groups_stay_whole_and_no_more_is_held_out_than_asked(
    groups: list[int], strata: list[int], share: float, seed: int
) -> None:
    firsts = np.array([groups.index(group) for group in groups], dtype=np.int64)
    kinds = np.unique(np.array(strata[: len(groups)]), return_inverse=True)[1].astype(np.int64)

    held_out = draw(firsts, kinds, SplitPlan(share=share, seed=seed))

    for group in set(firsts.tolist()):
        assert len(set(held_out[firsts == group].tolist())) == 1
    assert held_out.sum() <= min(np.ceil(round(len(groups) * share, 9)), len(groups) - 1)


def test_each_task_type_gives_its_share(tmp_path: Path) -> None:
    rows = [pair(n, task_type="audio" if n % 10 else "coding") for n in range(200)]

    sides = split(tmp_path / "rows.jsonl", rows)

    assert sides.strata == {"audio": Side(144, 36), "coding": Side(16, 4)}


def test_another_field_may_say_the_stratum(tmp_path: Path) -> None:
    rows = [pair(n, level=n % 2) for n in range(20)]
    sides = split(tmp_path / "rows.jsonl", rows, strata=["level"])
    assert sides.strata == {"0": Side(8, 2), "1": Side(8, 2)}


def test_what_is_alike_stays_on_one_side(tmp_path: Path) -> None:
    """Ten stories, each told ten times with small changes, or asked for with the same prompt."""
    words = [f"w{n}" for n in range(100)]
    rows = []
    for n in range(100):
        story = n // 10
        text = " ".join(f"{word}s{story}" for word in words[: 60 + n % 10])
        rows.append(pair(n, prompt=text))
    rows += [pair(n, prompt="THE same  question") for n in range(100, 105)]
    rows += [pair(105, prompt="the SAME question"), pair(106, split_group="g")]
    rows += [pair(107, split_group="g")]

    for seed in range(5):
        sides = split(tmp_path / "rows.jsonl", rows, near=0.7, seed=seed).held_out.tolist()
        for story in range(10):
            assert len(set(sides[story * 10 : story * 10 + 10])) == 1
        assert len(set(sides[100:106])) == 1
        assert sides[106] == sides[107]
        assert 0 < sum(sides) <= 22


def test_bad_lines_are_on_no_side_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(pair(1)) + "\n{\n" + json.dumps(pair(2)) + "\n")
    sides = sides_of(DatasetFile(path, Reading()), SplitPlan())
    assert (len(sides.held_out), sides.n_bad) == (2, 1)
