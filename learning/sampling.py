"""Choose who trains, who is held out and who is replayed in one batch.

Pure and deterministic: the same candidates and the same seed give the same roles.
The rules, in order of weight:

1. Examples that share a key (the same prompt, or one split group) stand on one side.
2. A key that was on one side in an earlier batch stays there, for ever.
3. Only what a person approved may judge; the loop's own approvals may only train.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from learning.lifecycle import Role


@dataclass(frozen=True)
class Candidate:
    """One queued event, as far as the split needs to know it."""

    id: int
    keys: tuple[bytes, ...]
    """Its prompt key, and the key of its split group when it has one."""
    by_human: bool


@dataclass(frozen=True)
class SplitRules:
    """Shares in [0, 1]; counts in examples.

    While the line's frozen set has fewer than `wanted_held_out` examples a batch gives
    it `starting_share` instead of `held_out_share`.
    """

    held_out_share: float = 0.2
    starting_share: float = 0.5
    wanted_held_out: int = 32
    replay_share: float = 0.5
    """Replayed examples, as a share of the batch's training rows."""


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

    random.Random(seed).shuffle(free)  # noqa: S311 - a reproducible draw, not a secret
    if n_held_out < quota and all(n_held_out + len(component) > quota for component in free):
        smallest = min(free, key=len, default=[])
        quota = n_held_out + len(smallest)
    for component in free:
        fits = n_held_out + len(component) <= min(quota, len(candidates) - 1)
        role = Role.HELD_OUT if fits else Role.TRAIN
        n_held_out += len(component) if fits else 0
        roles.update((member.id, role) for member in component)
    return roles


def draw_replay(earlier: Sequence[int], n_training: int, rules: SplitRules, seed: int) -> list[int]:
    """Which earlier training events to repeat, drawn evenly without replacement.

    The result makes up `replay_share` of all training rows: with a share of 0.5 as many
    as there are new ones. At most len(earlier).
    """
    if rules.replay_share >= 1.0:
        wanted = len(earlier)
    else:
        wanted = round(n_training * rules.replay_share / (1.0 - rules.replay_share))
    drawn = random.Random(seed).sample(  # noqa: S311 - a reproducible draw, not a secret
        list(earlier), min(wanted, len(earlier))
    )
    return sorted(drawn)


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
