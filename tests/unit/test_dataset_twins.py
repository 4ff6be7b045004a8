"""What is the same, or nearly the same, is found on disk; and only that."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.datasets.formats import Example
from finetune.datasets.likeness import banding, likeness, signer
from finetune.datasets.same_keys import SameKeys
from finetune.datasets.twins import Twins, Union
from learning.events import digest

WORDS = [f"word{n}" for n in range(2_000)]


def example(prompt: str, answer: str = "yes", rejected: str | None = None) -> Example:
    return Example([{"role": "user", "content": prompt}], answer, rejected=rejected)


def long_text(seed: int, *, changed: int = 0) -> str:
    """150 words, `changed` of them others than without."""
    words = random.Random(seed).choices(WORDS, k=150)
    for n in range(changed):
        words[n * (150 // changed)] = f"changed{n}"
    return " ".join(words)


def test_rows_with_one_key_are_found_whatever_else_is_there(tmp_path: Path) -> None:
    with SameKeys.opened(tmp_path, "keys") as keys:
        for row in range(10_000):
            keys.add(digest(str(row % 9_990)), row)

        groups = sorted(rows.tolist() for rows in keys.groups())

    assert groups == [[n, n + 9_990] for n in range(10)]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_rows_hang_together_through_any_chain_of_pairs(pairs: list[tuple[int, int]]) -> None:
    union = Union(20)
    groups = [{n} for n in range(20)]
    for one, other in pairs:
        union.join(one, other)
        merged = groups[one] | groups[other]
        for n in merged:
            groups[n] = merged

    assert union.firsts().tolist() == [min(group) for group in groups]


def test_an_exact_duplicate_has_the_same_roles_prompt_and_answers() -> None:
    rows = [
        example("a"),
        example("b"),
        example("a"),
        example("a", "no"),
        Example([{"role": "system", "content": "a"}], "yes"),
        example("a", rejected="no"),
        example("a"),
    ]
    with Twins.opened(near=None) as twins:
        for row in rows:
            twins.add(row)
        assert twins.same().tolist() == [0, 1, 0, 3, 4, 5, 0]
        assert list(twins.near()) == []


def test_prompts_are_the_same_but_for_case_and_white_space_and_groups_join_them() -> None:
    with Twins.opened(near=None) as twins:
        twins.add(example("What  is it?"), "g")
        twins.add(example("other"), None)
        twins.add(example("what is IT?", "no"))
        twins.add(example("third"), "g")
        assert twins.same_prompt().tolist() == [0, 1, 0, 0]


def test_near_duplicates_are_found_and_strangers_are_not() -> None:
    texts = [long_text(seed) for seed in range(200)]
    texts += [long_text(seed, changed=2) for seed in range(50)]
    with Twins.opened(near=0.8) as twins:
        for text in texts:
            twins.add(example(text))
        found = {(pair.earlier, pair.later): pair.likeness for pair in twins.near()}

    assert set(found) == {(n, 200 + n) for n in range(50)}
    assert min(found.values()) >= 0.8


def test_short_rows_of_one_template_are_not_near_duplicates() -> None:
    with Twins.opened(near=0.8) as twins:
        for n in range(200):
            twins.add(example(f"add three to number {n}", f"number {n} and three make {n + 3}"))
        assert list(twins.near()) == []


def test_many_that_are_alike_are_all_found_without_comparing_each_with_each() -> None:
    with Twins.opened(near=0.8) as twins:
        for n in range(500):
            twins.add(example(f"{long_text(1)} {n}"))
        pairs = list(twins.near())

    assert {pair.later for pair in pairs} == set(range(1, 500))
    assert len(pairs) < 500 * 2 * 20


@pytest.mark.parametrize("text", ["", "one", "one two", "日本語のテキスト", "🙂 🙂", "x" * 100_000])
def test_any_text_has_a_signature(text: str) -> None:
    sign = signer()
    assert likeness(sign(text), sign(text)) == 1.0
    assert likeness(sign(text), sign(long_text(1))) < 0.1


def test_likeness_is_near_the_share_of_common_words_in_a_row() -> None:
    sign = signer()
    one, other = sign(long_text(1)), sign(long_text(1, changed=5))
    # Five changed words break fifteen of 148 shingles, less those at the edge.
    assert likeness(one, other) == pytest.approx((148 - 13) / (148 + 13), abs=0.1)
    assert one.dtype == np.uint32


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.9, 0.95, 1.0])
def test_texts_that_are_as_alike_as_asked_meet_nearly_always(threshold: float) -> None:
    """By the formula of banding: 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive Datasets)."""
    bands = banding(threshold)
    n_rows = bands[0].stop - bands[0].start
    assert 1 - (1 - threshold**n_rows) ** len(bands) > 0.85
    assert bands[-1].stop <= 128
