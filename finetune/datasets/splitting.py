"""Split a dataset into what trains and what is held out, so that nothing leaks across.

Deterministic: the same file, seed and share give the same sides on every machine. Rows with
the same prompt, of one split group, or nearly alike stay on one side, and each task type
gives its share. 40 bytes a row are kept in memory.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.datasets.dataset_file import DatasetFile
from finetune.datasets.examination import TASK_TYPE_FIELDS, stratum_of
from finetune.datasets.flaws import BadLine
from finetune.datasets.twins import Firsts, Twins, Union

GROUP_FIELDS = ("split_group", "splitGroup")


@dataclass(frozen=True)
class SplitPlan:
    """How to split. `share` is what is held out, in (0, 1)."""

    share: float = 0.2
    seed: int = 0
    near: float | None = 0.8
    """The likeness from which on two rows must stay on one side; None: only the same prompts."""
    strata: Sequence[str] = TASK_TYPE_FIELDS
    """The fields of which the first that a row has names its stratum."""


@dataclass(frozen=True)
class Side:
    """The rows of each stratum on both sides."""

    train: int
    held_out: int


@dataclass(frozen=True)
class Sides:
    """Where each good row of a file belongs, in the order of the file."""

    held_out: NDArray[np.bool_]
    strata: Mapping[str, Side]
    """Rows without a stratum stand under ""."""
    largest_group: int
    """Rows of the largest group that was kept together."""
    n_bad: int


def sides_of(
    dataset: DatasetFile,
    plan: SplitPlan,
    *,
    on_bad: Callable[[BadLine], None] = lambda line: None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Sides:
    """Read a file and decide the side of each of its good rows. Raises DatasetFileError."""
    numbers: dict[str, int] = {}
    stratum = array("I")
    n_bad = 0
    with Twins.opened(near=plan.near) as twins:
        for row in dataset.rows(on_bytes):
            if isinstance(row, BadLine):
                n_bad += 1
                on_bad(row)
                continue
            twins.add(row.example, stratum_of(row.example, GROUP_FIELDS))
            name = stratum_of(row.example, plan.strata) or ""
            stratum.append(numbers.setdefault(name, len(numbers)))
        together = Union(len(twins))
        for row_, first in enumerate(twins.same_prompt().tolist()):
            together.join(first, row_)
        for earlier, later, _ in twins.near():
            together.join(earlier, later)
    groups, strata = together.firsts(), np.array(stratum, dtype=np.int64)
    held_out = draw(groups, strata, plan)
    counts = np.bincount(strata, minlength=len(numbers))
    held = np.bincount(strata[held_out], minlength=len(numbers))
    return Sides(
        held_out=held_out,
        strata={
            name: Side(int(counts[number] - held[number]), int(held[number]))
            for name, number in sorted(numbers.items())
        },
        largest_group=int(np.bincount(groups).max(initial=0)),
        n_bad=n_bad,
    )


def draw(groups: Firsts, strata: NDArray[np.int64], plan: SplitPlan) -> NDArray[np.bool_]:
    """Which rows are held out, given the first row of each row's group and its stratum.

    As many as the share says, rounded up: 26 of 127 for a fifth. Each stratum gives its part,
    by the largest remainders. A group counts as of its first row's stratum, goes to one side
    as a whole, and trains when it does not fit.
    """
    n = len(groups)
    held_out = np.zeros(n, dtype=np.bool_)
    wanted = min(math.ceil(round(n * plan.share, 9)), n - 1)
    if wanted <= 0:
        return held_out
    sizes = np.bincount(groups, minlength=n)
    firsts = np.flatnonzero(sizes)
    order = firsts[np.argsort(_shuffled(firsts, plan.seed), kind="stable")]
    by_stratum: defaultdict[int, list[int]] = defaultdict(list)
    for first in order.tolist():
        by_stratum[int(strata[first])].append(first)
    quotas = _quotas(np.bincount(strata[firsts], weights=sizes[firsts]).astype(float), wanted)
    chosen: list[int] = []
    left_over = 0
    passed: list[int] = []
    for number, candidates in sorted(by_stratum.items()):
        left = quotas[number]
        for first in candidates:
            if sizes[first] <= left:
                chosen.append(first)
                left -= int(sizes[first])
            else:
                passed.append(first)
        left_over += left
    # What no group of its stratum could fill, smaller groups of the others do.
    for first in passed if left_over else ():
        if sizes[first] <= left_over:
            chosen.append(first)
            left_over -= int(sizes[first])
    is_chosen = np.zeros(n, dtype=np.bool_)
    is_chosen[chosen] = True
    held_out |= is_chosen[groups]
    return held_out


def _quotas(counts: NDArray[np.float64], wanted: int) -> list[int]:
    """`wanted` rows shared out among strata by their sizes, the largest remainders rounded up."""
    exact = counts * (wanted / counts.sum())
    quotas = np.floor(exact)
    missing = wanted - int(quotas.sum())
    for number in np.argsort(quotas - exact, kind="stable")[:missing]:
        quotas[number] += 1
    return [int(quota) for quota in quotas]


def _shuffled(numbers: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A fixed scramble of numbers by a seed: the finaliser of splitmix64 (Steele et al., 2014).

    Not numpy's generators: what they draw may change with a release.
    """
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
