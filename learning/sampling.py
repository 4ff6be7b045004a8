"""Choose who trains, who is held out and who is replayed in one batch.

Pure and deterministic: the same candidates, the same memory and the same seed give the
same roles. The rules of the split, in order of weight:

1. Examples that share a key (the same prompt, or one split group) stand on one side.
2. A key that was on one side in an earlier batch stays there, for ever.
3. Only what a person approved may judge; the loop's own approvals may only train.
"""

import hashlib
import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from learning.cross_task import RELATED, RelatedTaskTypes
from learning.lifecycle import Role


@dataclass(frozen=True)
class Candidate:
    """One queued event, as far as the split needs to know it."""

    id: int
    keys: tuple[bytes, ...]
    """Its prompt key, and the key of its split group when it has one."""
    by_human: bool


class ReplayStrategy(StrEnum):
    """Which remembered events a batch repeats."""

    BALANCED = "balanced"
    """As if each task type had sent as many, and each stretch of its past as many."""
    RESERVOIR = "reservoir"
    """Each event that ever trained has the same chance."""


class Remembered(NamedTuple):
    """One event that made a version, and may be repeated. Ids grow with time."""

    event_id: int
    task_type: str
    priority: int
    """Drawn once per event; a task type keeps those with the lowest, whatever their age."""
    batch_id: str
    """The last batch that it made a version in."""


@dataclass(frozen=True)
class SplitRules:
    """Shares in [0, 1], those of repeated examples below 1; counts in examples.

    While the line's frozen set has fewer than `wanted_held_out` examples a batch gives
    it `starting_share` instead of `held_out_share`.
    """

    held_out_share: float = 0.2
    starting_share: float = 0.5
    wanted_held_out: int = 32
    replay_share: float = 0.75
    """Replayed examples, as a share of the rows of the line's own task types."""
    replay_strategy: ReplayStrategy = ReplayStrategy.BALANCED
    cross_task_share: float = 0.1
    """Examples of related task types of other lines, as a share of all training rows."""
    cross_task_learning: bool = True
    """Off, nothing of another line is mixed in, whatever the share."""
    related: RelatedTaskTypes = field(default_factory=lambda: RELATED)
    rejected_share: float = 0.5
    """Rejected outputs, as a share of all rows: at most so much, where a line learns from them."""


SplitRulesOf = Callable[[str], SplitRules]
"""The rules of a model line, by its name."""


def held_out_quota(n_events: int, n_frozen: int, rules: SplitRules) -> int:
    """How many of `n_events` should be held out, when `n_frozen` already are.

    127 events at a share of 0.2 give 26, so that 101 train. One event always trains.
    """
    if n_events <= 1:
        return 0
    quota = _share(n_events, rules.held_out_share)
    missing = rules.wanted_held_out - n_frozen
    if missing > 0:
        quota = max(quota, min(missing, _share(n_events, rules.starting_share)))
    return min(quota, n_events - 1)


def _share(n_events: int, share: float) -> int:
    """A share of a count, rounded up; 0.07 of 100 is 7, though 100 * 0.07 is a hair above."""
    return math.ceil(round(n_events * share, 9))


def split(
    candidates: Sequence[Candidate],
    known_sides: Mapping[bytes, Role],
    quota: int,
    seed: int,
) -> dict[int, Role]:
    """The primary role of each candidate: TRAIN or HELD_OUT, by event id.

    `known_sides` names the side of each key that an earlier batch used. A component
    that touches both sides is held out, which trains on nothing of it. Fewer than
    `quota` are held out when too few are approved by a person, or when groups, which are
    never cut, do not fit. Only where not one fits is the quota exceeded, by the smallest.
    """
    roles: dict[int, Role] = {}
    free: list[list[Candidate]] = []
    n_held_out = 0
    for component in _components(candidates):
        sides = {known_sides[k] for member in component for k in member.keys if k in known_sides}
        if Role.HELD_OUT in sides:
            roles.update((member.id, Role.HELD_OUT) for member in component)
            n_held_out += len(component)
        elif Role.TRAIN in sides or not any(member.by_human for member in component):
            roles.update((member.id, Role.TRAIN) for member in component)
        else:
            free.append(component)

    _generator(seed).shuffle(free)
    if n_held_out < quota and all(n_held_out + len(component) > quota for component in free):
        smallest = min(free, key=len, default=[])
        quota = n_held_out + len(smallest)
    for component in free:
        fits = n_held_out + len(component) <= min(quota, len(candidates) - 1)
        role = Role.HELD_OUT if fits else Role.TRAIN
        n_held_out += len(component) if fits else 0
        roles.update((member.id, role) for member in component)
    return roles


def replay_quota(n_training: int, rules: SplitRules) -> int:
    """How many remembered events join `n_training` rows, so that they are `replay_share` of all."""
    return _quota(n_training, rules.replay_share)


def cross_task_quota(n_training: int, rules: SplitRules) -> int:
    """How many events of related task types join `n_training` rows, replayed ones included."""
    return _quota(n_training, rules.cross_task_share) if rules.cross_task_learning else 0


def rejected_quota(n_training: int, rules: SplitRules) -> int:
    """How many rejected outputs may join `n_training` rows, those of other lines included."""
    return _quota(n_training, rules.rejected_share)


def _quota(n_training: int, share: float) -> int:
    """0 without a row to join: nothing but old events teaches nothing new."""
    return round(n_training * share / (1.0 - share)) if n_training else 0


def priorities(event_ids: Iterable[int]) -> dict[int, int]:
    """The priority of each event, in [0, 2**63): by chance, and the same whenever it is asked."""
    return {
        event_id: int.from_bytes(hashlib.blake2b(b"%d" % event_id, digest_size=8).digest()) >> 1
        for event_id in event_ids
    }


def even_sample(memory: Sequence[Remembered], capacity: int) -> list[Remembered]:
    """Of what task types remember, up to `capacity` each, an even sample of all that they saw.

    A full task type remembers only what lies below its highest priority. Below the lowest of
    these ceilings every task type remembers all that it ever saw.
    """
    ceilings = [
        max(one.priority for one in of_type)
        for of_type in _by_task_type(memory).values()
        if len(of_type) >= capacity
    ]
    return [one for one in memory if not ceilings or one.priority <= min(ceilings)]


def draw_evenly(memory: Sequence[Remembered], wanted: int, seed: int) -> list[Remembered]:
    """`wanted` of the remembered events, or all, each with the same chance."""
    ordered = sorted(memory)
    return _generator(seed).sample(ordered, min(wanted, len(ordered)))


def draw_balanced(
    memory: Sequence[Remembered],
    wanted: int,
    fresh: Mapping[str, int],
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> list[Remembered]:
    """`wanted` of the remembered events, or all, so that a batch is as even as it can be.

    `fresh` counts the batch's other rows by task type: one that it has much of is repeated
    less. A task type with a weight of 2 gets twice the rows; without one it is 1. What is drawn
    of a task type is spread over all that it remembers, oldest to newest.
    """
    rng = _generator(seed)
    by_type = {name: sorted(found) for name, found in sorted(_by_task_type(memory).items())}
    available = {name: len(found) for name, found in by_type.items()}
    quotas = _fill_up(available, wanted, fresh, rng, weights or {})
    return [
        rng.choice(
            of_type[n * len(of_type) // quotas[name] : (n + 1) * len(of_type) // quotas[name]]
        )
        for name, of_type in by_type.items()
        for n in range(quotas[name])
    ]


def _fill_up(
    available: Mapping[str, int],
    wanted: int,
    fresh: Mapping[str, int],
    rng: random.Random,
    weights: Mapping[str, float],
) -> Counter[str]:
    """Deal `wanted` places, each to the task type that has the fewest rows for its weight."""
    quotas: Counter[str] = Counter()
    levels = [
        (fresh.get(name, 0) / weights.get(name, 1.0), rng.random(), name) for name in available
    ]
    heapq.heapify(levels)
    for _ in range(wanted):
        if not levels:
            break
        level, chance, name = heapq.heappop(levels)
        quotas[name] += 1
        if quotas[name] < available[name]:
            heapq.heappush(levels, (level + 1.0 / weights.get(name, 1.0), chance, name))
    return quotas


def _by_task_type(memory: Sequence[Remembered]) -> dict[str, list[Remembered]]:
    found: dict[str, list[Remembered]] = {}
    for one in memory:
        found.setdefault(one.task_type, []).append(one)
    return found


def _generator(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a reproducible draw, not a secret


def _components(candidates: Sequence[Candidate]) -> Iterable[list[Candidate]]:
    """Candidates that hang together through shared keys, in order of first appearance."""
    parent = list(range(len(candidates)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[bytes, int] = {}
    for index, candidate in enumerate(candidates):
        for key in candidate.keys:
            parent[root(index)] = root(first_with.setdefault(key, index))
    members: dict[int, list[Candidate]] = {}
    for index, candidate in enumerate(candidates):
        members.setdefault(root(index), []).append(candidate)
    return members.values()
