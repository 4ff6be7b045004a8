"""The order of rows and the learning rate, as functions of the settings alone."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.trainer.protocol import Schedule, TrainingSettings
from finetune.trainer.schedule import count_steps, learning_rate_at, step_seed, steps_from

LENGTHS = [9, 3, 7, 1, 5, 8, 2, 6, 4, 10]


def settings(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {"minibatch_size": 2, "gradient_accumulation": 2, "epochs": 2} | changes
    )


def test_steps_are_counted_from_the_epochs() -> None:
    assert count_steps(10, settings()) == 6
    assert count_steps(8, settings()) == 4
    assert count_steps(1, settings()) == 2


def test_a_number_of_steps_replaces_the_epochs() -> None:
    assert count_steps(10, settings(max_steps=100)) == 100


def test_no_rows_are_no_steps() -> None:
    assert count_steps(0, settings(max_steps=100)) == 0


def test_each_epoch_has_every_row_once_and_another_order() -> None:
    epochs = [list(islice(steps_from(first, LENGTHS, settings()), 3)) for first in (0, 3)]

    for epoch in epochs:
        rows = [row for step in epoch for minibatch in step for row in minibatch]
        assert sorted(rows) == list(range(10))
    assert epochs[0] != epochs[1]


def test_rows_of_a_step_are_sorted_by_length() -> None:
    for step in islice(steps_from(0, LENGTHS, settings()), 6):
        lengths = [LENGTHS[row] for minibatch in step for row in minibatch]
        assert lengths == sorted(lengths)


@given(st.integers(0, 20), st.integers(0, 2**63 - 1))
def test_a_resumed_training_sees_the_rows_that_the_uninterrupted_one_would(
    first: int, seed: int
) -> None:
    whole = list(islice(steps_from(0, LENGTHS, settings(seed=seed)), 25))

    resumed = list(islice(steps_from(first, LENGTHS, settings(seed=seed)), 25 - first))

    assert resumed == whole[first:]


def test_another_seed_is_another_order_and_another_dropout() -> None:
    orders = [next(steps_from(0, LENGTHS, settings(seed=seed))) for seed in range(4)]

    assert len(set(orders)) > 1
    assert len({step_seed(seed, step) for seed in range(4) for step in range(4)}) == 16


def test_the_warm_up_is_never_more_than_a_tenth_of_the_steps() -> None:
    rates = [learning_rate_at(step, 60, settings(warmup_steps=100)) for step in range(60)]

    assert rates[:6] == sorted(rates[:6])
    assert max(rates) == rates[6] == settings().learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_falls_towards_zero(schedule: Schedule) -> None:
    rates = [learning_rate_at(step, 50, settings(schedule=schedule)) for step in range(50)]

    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < settings().learning_rate / 20


def test_a_constant_rate_stays() -> None:
    rates = {learning_rate_at(s, 50, settings(schedule="constant")) for s in range(5, 50)}

    assert rates == {settings().learning_rate}


@given(st.integers(1, 500), st.integers(0, 1000), st.sampled_from(["cosine", "linear"]))
def test_each_step_of_any_training_learns_something(
    total: int, warmup: int, schedule: Schedule
) -> None:
    chosen = settings(warmup_steps=warmup, schedule=schedule)

    for step in range(total):
        assert 0 < learning_rate_at(step, total, chosen) <= chosen.learning_rate


def test_packed_rows_of_a_step_are_the_same_rows_in_fewer_minibatches() -> None:
    for packed, padded in zip(
        islice(steps_from(0, LENGTHS, settings()), 6),
        islice(steps_from(0, LENGTHS, settings(packing=False)), 6),
        strict=True,
    ):
        assert len(packed) <= len(padded)
        assert sorted(sum(packed, ())) == sorted(sum(padded, ()))
        assert all(sum(LENGTHS[row] for row in rows) <= 2 * max(LENGTHS) for rows in packed)


def test_several_processes_get_minibatches_to_share_out() -> None:
    several = settings(distributed={"world_size": 2})

    assert len(next(steps_from(0, LENGTHS, several))) == 2
    assert len(next(steps_from(0, (1, 1, 1, 1), settings()))) == 2
    assert len(next(steps_from(0, (1, 1, 1, 9), settings()))) == 1


def test_grouped_by_length_the_rows_of_a_step_are_alike() -> None:
    lengths = list(range(1, 41))

    def spread(grouped: bool) -> int:
        steps = islice(steps_from(0, lengths, settings(group_by_length=grouped)), 10)
        found = [[lengths[row] for rows in step for row in rows] for step in steps]
        assert sorted(length for step in found for length in step) == lengths
        return sum(max(step) - min(step) for step in found)

    assert spread(grouped=True) == 10 * 3 < spread(grouped=False)
