"""What is kept of a training is the mean over its last steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from finetune.trainer.averaging import TailMean

Weights = dict[str, torch.nn.Parameter]


def weights_of(value: float = 0.0) -> Weights:
    return {name: torch.nn.Parameter(torch.full((2,), value)) for name in ("a", "b")}


def take_steps(weights: Weights, mean: TailMean, *steps: int) -> None:
    """After step n each weight is n * n."""
    for step in steps:
        for weight in weights.values():
            weight.data.fill_(step * step)
        mean.add(step)


@given(total=st.integers(1, 40), share=st.floats(0.01, 1.0))
def test_it_is_the_mean_over_the_last_share_of_the_steps(total: int, share: float) -> None:
    weights = weights_of()
    mean = TailMean(weights, share, total)

    take_steps(weights, mean, *range(1, total + 1))
    mean.put()

    n_last = math.ceil(round(total * share, 9))
    last = range(total - n_last + 1, total + 1)
    expected = sum(step * step for step in last) / n_last
    for weight in weights.values():
        assert weight.tolist() == pytest.approx([expected, expected], rel=1e-5)


def test_without_a_share_the_weights_are_those_after_the_last_step() -> None:
    weights = weights_of()
    mean = TailMean(weights, 0.0, 4)

    take_steps(weights, mean, 1, 2, 3, 4)
    mean.put()

    assert weights["a"].tolist() == [16, 16]
    assert mean.tensors() == {}


def test_before_the_last_steps_there_is_nothing_to_put() -> None:
    weights = weights_of()
    mean = TailMean(weights, 0.5, 4)

    take_steps(weights, mean, 1, 2)
    mean.put()

    assert weights["a"].tolist() == [4, 4]


def test_to_put_it_twice_is_to_put_it_once() -> None:
    weights = weights_of()
    mean = TailMean(weights, 0.5, 4)
    take_steps(weights, mean, 1, 2, 3, 4)

    mean.put()
    mean.put()

    assert weights["a"].tolist() == [12.5, 12.5]


@pytest.mark.parametrize("stopped_after", [1, 2, 5, 6, 7])
def test_what_was_stored_goes_on_in_the_same_bits(stopped_after: int) -> None:
    straight, interrupted, resumed = weights_of(), weights_of(), weights_of()
    whole = TailMean(straight, 0.7, 8)
    take_steps(straight, whole, *range(1, 9))
    first = TailMean(interrupted, 0.7, 8)
    take_steps(interrupted, first, *range(1, stopped_after + 1))

    second = TailMean(resumed, 0.7, 8)
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in resumed}
    for key, value in first.tensors().items():
        part, _, name = key.partition("/")
        parts[name][part] = value
    second.restore(parts)
    assert parts == {"a": {}, "b": {}}
    take_steps(resumed, second, *range(stopped_after + 1, 9))

    whole.put()
    second.put()
    assert torch.equal(straight["a"], resumed["a"])
