"""Who trains, who is held out and who is replayed."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.lifecycle import Role
from learning.sampling import (
    Candidate,
    Remembered,
    SplitRules,
    cross_task_quota,
    draw_balanced,
    draw_evenly,
    even_sample,
    held_out_quota,
    priorities,
    replay_quota,
    split,
)

RULES = SplitRules()
ENOUGH = RULES.wanted_held_out


def key(name: object) -> bytes:
    return str(name).encode()


def alone(id: int, *, by_human: bool = True) -> Candidate:
    """A candidate that shares its prompt with nobody."""
    return Candidate(id, (key(f"prompt {id}"),), by_human)


def in_group(id: int, group: str, *, by_human: bool = True) -> Candidate:
    return Candidate(id, (key(f"prompt {id}"), key(f"group {group}")), by_human)


def held_out(roles: dict[int, Role]) -> set[int]:
    return {id for id, role in roles.items() if role is Role.HELD_OUT}


# --- how many -------------------------------------------------------------------------


def test_127_examples_become_101_that_train_and_26_that_judge() -> None:
    quota = held_out_quota(127, ENOUGH, RULES)
    roles = split([alone(id) for id in range(127)], {}, quota, seed=1)

    assert quota == 26
    assert len(held_out(roles)) == 26
    assert len(roles) == 127


@pytest.mark.parametrize(
    ("n_events", "n_frozen", "quota"),
    [
        (0, 0, 0),
        (1, 0, 0),  # one event always trains
        (2, 0, 1),
        (20, 0, 10),  # half of a batch while the frozen set is small
        (100, 0, 32),  # but no more than is missing
        (20, 31, 4),  # never less than the usual share
        (20, 32, 4),
        (20, 1_000, 4),
        (100, 32, 20),
        (5, 32, 1),
        (3, 32, 1),
    ],
)
def test_the_quota_is_larger_while_the_frozen_set_is_small(
    n_events: int, n_frozen: int, quota: int
) -> None:
    assert held_out_quota(n_events, n_frozen, RULES) == quota


def test_a_share_that_has_no_exact_double_is_not_rounded_up_by_its_error() -> None:
    rules = SplitRules(held_out_share=0.07, wanted_held_out=0)

    assert 100 * 0.07 > 7
    assert held_out_quota(100, 0, rules) == 7


@given(
    n_events=st.integers(1, 500),
    n_frozen=st.integers(0, 100),
    share=st.floats(0, 1),
    starting=st.floats(0, 1),
)
def test_whatever_the_shares_one_event_trains(
    n_events: int, n_frozen: int, share: float, starting: float
) -> None:
    rules = SplitRules(held_out_share=share, starting_share=starting)

    assert 0 <= held_out_quota(n_events, n_frozen, rules) < n_events


# --- who ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_roles_and_another_one_others() -> None:
    candidates = [alone(id) for id in range(100)]

    roles = split(candidates, {}, 20, seed=7)

    assert split(candidates, {}, 20, seed=7) == roles
    assert split(candidates, {}, 20, seed=8) != roles


def test_what_no_person_approved_only_trains() -> None:
    candidates = [alone(id, by_human=id < 3) for id in range(20)]

    roles = split(candidates, {}, 10, seed=1)

    assert held_out(roles) == {0, 1, 2}


def test_a_known_side_is_kept_for_ever() -> None:
    sides = {key("prompt 1"): Role.HELD_OUT, key("prompt 2"): Role.TRAIN}
    candidates = [alone(1, by_human=False), alone(2), alone(3)]

    roles = split(candidates, sides, quota=2, seed=1)

    assert roles == {1: Role.HELD_OUT, 2: Role.TRAIN, 3: Role.HELD_OUT}


def test_events_tied_to_both_sides_are_held_out_so_that_nothing_of_them_trains() -> None:
    sides = {key("group a"): Role.TRAIN, key("prompt 2"): Role.HELD_OUT}
    candidates = [in_group(1, "a"), in_group(2, "a"), alone(3)]

    assert held_out(split(candidates, sides, quota=0, seed=1)) == {1, 2}


def test_a_group_that_does_not_fit_the_quota_trains_and_others_are_held_out() -> None:
    candidates = [
        *(in_group(id, "crowd") for id in range(15)),
        *(alone(id) for id in range(15, 20)),
    ]

    for seed in range(20):
        assert held_out(split(candidates, {}, quota=4, seed=seed)) < set(range(15, 20))
        assert len(held_out(split(candidates, {}, quota=4, seed=seed))) == 4


def test_where_no_group_fits_the_smallest_is_held_out() -> None:
    candidates = [
        *(in_group(id, "large") for id in range(12)),
        *(in_group(id, "small") for id in range(12, 20)),
    ]

    assert held_out(split(candidates, {}, quota=4, seed=3)) == set(range(12, 20))


def test_a_batch_that_is_one_group_trains() -> None:
    candidates = [in_group(id, "all") for id in range(10)]

    assert held_out(split(candidates, {}, quota=5, seed=3)) == set()


@st.composite
def batches(draw: st.DrawFn) -> list[Candidate]:
    """Up to 40 events whose prompts and groups repeat, as a busy topic's do."""
    names = st.integers(0, 25)
    return [
        Candidate(
            id,
            tuple(
                [key(f"prompt {draw(names)}")]
                + ([key(f"group {draw(names)}")] if draw(st.booleans()) else [])
            ),
            draw(st.booleans()),
        )
        for id in range(draw(st.integers(1, 40)))
    ]


sides_of_keys = st.dictionaries(
    st.integers(0, 25).map(lambda n: key(f"prompt {n}"))
    | st.integers(0, 25).map(lambda n: key(f"group {n}")),
    st.sampled_from([Role.TRAIN, Role.HELD_OUT]),
)


def sides_by_key(candidates: Sequence[Candidate], roles: dict[int, Role]) -> dict[bytes, set[Role]]:
    sides: defaultdict[bytes, set[Role]] = defaultdict(set)
    for candidate in candidates:
        for each in candidate.keys:
            sides[each].add(roles[candidate.id])
    return sides


@given(batches(), sides_of_keys, st.integers(0, 40), st.integers(0, 2**48))
def test_every_split_keeps_the_promises(
    candidates: list[Candidate], known: dict[bytes, Role], quota: int, seed: int
) -> None:
    roles = split(candidates, known, quota, seed)

    assert roles.keys() == {candidate.id for candidate in candidates}
    assert set(roles.values()) <= {Role.TRAIN, Role.HELD_OUT}
    for each, sides in sides_by_key(candidates, roles).items():
        assert len(sides) == 1, "a prompt or a group on both sides"
        if known.get(each) is Role.HELD_OUT:
            assert sides == {Role.HELD_OUT}, "what was held out trains"
    assert split(candidates, known, quota, seed) == roles


@given(batches(), st.integers(0, 40), st.integers(0, 2**48))
def test_without_a_past_one_event_trains_and_only_people_judge(
    candidates: list[Candidate], quota: int, seed: int
) -> None:
    roles = split(candidates, {}, min(quota, len(candidates) - 1), seed)

    assert Role.TRAIN in roles.values()
    if not any(candidate.by_human for candidate in candidates):
        assert held_out(roles) == set()


@given(st.data())
def test_a_second_batch_never_crosses_over_from_the_first(data: st.DataObject) -> None:
    first, second = data.draw(batches()), data.draw(batches())
    first_roles = split(first, {}, len(first) // 3, seed=1)
    known = {each: side for each, (side,) in sides_by_key(first, first_roles).items()}

    second_roles = split(second, known, len(second) // 3, seed=2)

    trained = {each for each, side in known.items() if side is Role.TRAIN}
    judging = {each for each, side in known.items() if side is Role.HELD_OUT}
    for candidate in second:
        if judging & set(candidate.keys):
            assert second_roles[candidate.id] is Role.HELD_OUT
        elif trained & set(candidate.keys) and second_roles[candidate.id] is Role.HELD_OUT:
            # Only a chain of shared keys that ends at a held-out one overrules.
            assert judging & keys_tied_to(candidate, second)


def keys_tied_to(candidate: Candidate, others: Sequence[Candidate]) -> set[bytes]:
    tied: set[bytes] = set(candidate.keys)
    while True:
        more = {each for other in others if tied & set(other.keys) for each in other.keys}
        if more <= tied:
            return tied
        tied |= more


# --- replay ---------------------------------------------------------------------------


def remembered(*counts: tuple[str, int]) -> list[Remembered]:
    """So many events of each task type, one after the other, with their real priorities."""
    names = [name for name, n in counts for _ in range(n)]
    priority = priorities(range(len(names)))
    return [Remembered(n, name, priority[n], f"b-{n}") for n, name in enumerate(names)]


@pytest.mark.parametrize(
    ("n_training", "share", "n_replayed"),
    [(20, 0.5, 20), (20, 0.0, 0), (20, 0.2, 5), (0, 0.5, 0), (20, 0.9, 180)],
)
def test_replay_makes_up_its_share_of_all_training_rows(
    n_training: int, share: float, n_replayed: int
) -> None:
    assert replay_quota(n_training, SplitRules(replay_share=share)) == n_replayed


def test_related_task_types_make_up_their_share_unless_that_is_switched_off() -> None:
    assert cross_task_quota(90, SplitRules(cross_task_share=0.1)) == 10
    assert cross_task_quota(90, SplitRules(cross_task_learning=False)) == 0


memories = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 20)), max_size=4
).map(lambda counts: remembered(*counts))


@given(memories, st.integers(0, 50), st.integers(0, 99))
def test_a_draw_repeats_remembered_events_once_each_and_the_same_ones_for_the_same_seed(
    memory: list[Remembered], wanted: int, seed: int
) -> None:
    for drawn, again in (
        (draw_evenly(memory, wanted, seed), draw_evenly(memory[::-1], wanted, seed)),
        (draw_balanced(memory, wanted, {}, seed), draw_balanced(memory[::-1], wanted, {}, seed)),
    ):
        assert len(drawn) == len(set(drawn)) == min(wanted, len(memory))
        assert set(drawn) <= set(memory)
        assert drawn == again


def test_a_balanced_draw_gives_each_task_type_as_many_however_many_it_has() -> None:
    drawn = draw_balanced(remembered(("a", 500), ("b", 30), ("c", 5)), 45, {}, seed=1)

    assert Counter(one.task_type for one in drawn) == {"a": 20, "b": 20, "c": 5}


def test_a_balanced_draw_repeats_less_of_what_the_batch_has_already() -> None:
    drawn = draw_balanced(remembered(("a", 99), ("b", 99), ("c", 99)), 31, {"a": 25, "b": 5}, 1)

    assert Counter(one.task_type for one in drawn) == {"b": 13, "c": 18}


def test_a_balanced_draw_repeats_more_of_what_has_a_greater_weight() -> None:
    memory = remembered(("a", 99), ("b", 99), ("c", 99))
    drawn = draw_balanced(memory, 40, {}, 1, {"b": 2.0})
    beside = draw_balanced(memory, 30, {"a": 10}, 1, {"b": 2.0})

    assert Counter(one.task_type for one in drawn) == {"a": 10, "b": 20, "c": 10}
    assert Counter(one.task_type for one in beside) == {"b": 20, "c": 10}


def test_a_balanced_draw_is_spread_over_all_ages() -> None:
    drawn = draw_balanced(remembered(("a", 1_000)), 10, {}, seed=1)

    assert [one.event_id // 100 for one in drawn] == list(range(10))


def test_what_a_full_memory_keeps_is_an_even_sample_of_the_past() -> None:
    """The hundred lowest of ten thousand priorities: each tenth of the past has about ten."""
    kept = sorted(remembered(("a", 10_000)), key=lambda one: one.priority)[:100]

    assert all(2 <= n <= 22 for n in Counter(one.event_id // 1_000 for one in kept).values())
    assert len({one.event_id // 1_000 for one in kept}) == 10


def test_an_even_sample_gives_a_task_type_its_part_of_the_stream() -> None:
    """Nine in ten events were of one type, though both remember a hundred."""
    seen = remembered(("often", 9_000), ("seldom", 1_000))
    memory = [
        one
        for name in ("often", "seldom")
        for one in sorted(
            (one for one in seen if one.task_type == name), key=lambda one: one.priority
        )[:100]
    ]

    sample = Counter(one.task_type for one in even_sample(memory, 100))

    assert sample["often"] == 100
    assert 3 <= sample["seldom"] <= 25


def test_where_nothing_is_full_everything_is_an_even_sample() -> None:
    memory = remembered(("a", 5), ("b", 90))

    assert even_sample(memory, 100) == memory
