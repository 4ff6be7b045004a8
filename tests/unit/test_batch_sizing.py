"""How a batch size follows its stream and its runs, and that it comes to rest."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.batch_sizing import (
    ENOUGH_RUNS,
    IDLE_SECONDS,
    EndedRun,
    Experience,
    SizeCause,
    SizeRules,
    choose_size,
)
from learning.batching import BatchRules, Trigger
from learning.gate import Outcome
from tests.streams import DAY, ROOMY, WIDE, WORLDS, World, live, needs, table

RULES = SizeRules(start=20, least=10, most=100, max_changes_a_day=4)
SMALL_GAIN = EndedRun(60.0, Trigger.SIZE, Outcome.PROMOTE, 0.08)
LARGE_GAIN = replace(SMALL_GAIN, gain=0.3)
ABSTAINED = replace(SMALL_GAIN, outcome=Outcome.ABSTAIN, gain=0.01)
FAILED = replace(SMALL_GAIN, outcome=None, gain=None)


def seen(*runs: EndedRun, **changes: Any) -> Experience:
    """A line that is a tenth busy, unless told otherwise."""
    told: dict[str, Any] = {"needed": 0, "waiting": 3, "rate": 2 / 60, "changes_today": 0}
    return Experience(**{"size": 20, "runs": runs, **told, **changes})


def load_of(share: float, size: int = 20) -> float:
    """The rate at which a line of 60-second runs is so busy."""
    return share * size / 60


@pytest.mark.parametrize(
    ("experience", "size", "cause"),
    [
        (seen(), 20, SizeCause.TOO_FEW_RUNS),
        (seen(*[SMALL_GAIN] * (ENOUGH_RUNS - 1), rate=9.0), 20, SizeCause.TOO_FEW_RUNS),
        (seen(*[SMALL_GAIN] * 3, rate=load_of(0.84)), 20, SizeCause.STEADY),
        (seen(*[SMALL_GAIN] * 3, rate=load_of(0.86)), 35, SizeCause.KEEP_UP),
        (seen(*[SMALL_GAIN] * 3, rate=load_of(2.0)), 80, SizeCause.KEEP_UP),
        (seen(*[SMALL_GAIN] * 3, rate=load_of(99.0)), 100, SizeCause.KEEP_UP),
        (seen(*[SMALL_GAIN] * 3, size=100, rate=99.0), 100, SizeCause.OVERLOADED),
        (seen(FAILED, FAILED, SMALL_GAIN, SMALL_GAIN, rate=9.0), 20, SizeCause.FAILING_RUNS),
        (seen(*[ABSTAINED] * 3), 30, SizeCause.UNPROVEN),
        (seen(ABSTAINED, FAILED, *[ABSTAINED] * 2), 30, SizeCause.UNPROVEN),
        (seen(*[ABSTAINED] * 3, size=100), 100, SizeCause.UNPROVEN),
        (seen(*[replace(ABSTAINED, trigger=Trigger.AGE)] * 3), 20, SizeCause.SEALED_BY_AGE),
        (seen(ABSTAINED, ABSTAINED, SMALL_GAIN), 20, SizeCause.IDLE),
        (seen(*[LARGE_GAIN] * 3), 20, SizeCause.IDLE),
        (seen(*[LARGE_GAIN] * 3, idle_seconds=IDLE_SECONDS), 13, SizeCause.LEARN_SOONER),
        (seen(*[LARGE_GAIN] * 3, idle_seconds=IDLE_SECONDS, needed=17), 20, SizeCause.IDLE),
        (seen(*[LARGE_GAIN] * 3, idle_seconds=IDLE_SECONDS, waiting=40), 20, SizeCause.STEADY),
        (seen(*[LARGE_GAIN] * 3, idle_seconds=IDLE_SECONDS, size=10), 10, SizeCause.IDLE),
        (seen(*[SMALL_GAIN] * 3, idle_seconds=IDLE_SECONDS), 20, SizeCause.IDLE),
        (seen(*[SMALL_GAIN] * 3, idle_seconds=IDLE_SECONDS, size=60), 20, SizeCause.CALM),
        (seen(*[SMALL_GAIN] * 3, idle_seconds=DAY - 1, size=60), 60, SizeCause.IDLE),
        (seen(*[SMALL_GAIN] * 3, idle_seconds=DAY, size=60, needed=40), 40, SizeCause.CALM),
        (seen(*[SMALL_GAIN] * 3, rate=None, idle_seconds=DAY, size=60), 60, SizeCause.STEADY),
        (seen(*[ABSTAINED] * 3, changes_today=4), 20, SizeCause.DAILY_LIMIT),
    ],
)
def test_what_becomes_of_the_size(experience: Experience, size: int, cause: SizeCause) -> None:
    chosen = choose_size(experience, RULES)

    assert (chosen.size, chosen.cause) == (size, cause)


def test_a_reason_has_the_numbers() -> None:
    overloaded = seen(*[SMALL_GAIN] * 3, size=100, rate=5.0)
    assert choose_size(overloaded, RULES).reason == (
        "300 events arrive during a run of 60 s, and 100 is the maximum"
    )
    limited = seen(*[ABSTAINED] * 3, changes_today=4)
    assert choose_size(limited, RULES).reason == (
        "30 is wanted (the last 3 candidates proved nothing: collect more for each), but it"
        " changed 4 times in 24 hours, which is the limit"
    )


def test_one_slow_run_does_not_make_the_line_busy() -> None:
    """A run that a restart interrupted for hours tells nothing of the others."""
    runs = [replace(SMALL_GAIN, seconds=36_000.0), *[SMALL_GAIN] * 3]

    assert choose_size(seen(*runs, rate=load_of(0.5)), RULES).cause is SizeCause.STEADY


runs_of_any_kind = st.lists(
    st.builds(
        EndedRun,
        seconds=st.floats(0, 1e6),
        trigger=st.sampled_from(Trigger),
        outcome=st.none() | st.sampled_from(Outcome),
        gain=st.none() | st.floats(allow_nan=True, allow_infinity=True),
    ),
    max_size=10,
)


@st.composite
def bounds(draw: st.DrawFn) -> SizeRules:
    least, start, most = sorted(draw(st.tuples(*[st.integers(1, 10_000)] * 3)))
    return SizeRules(True, start, least, most, draw(st.integers(0, 5)))


@given(
    rules=bounds(),
    data=st.data(),
    runs=runs_of_any_kind,
    rate=st.none() | st.floats(0, 1e6),
    idle=st.floats(0, 1e6),
)
def test_whatever_was_seen_the_size_stays_within_its_bounds(
    rules: SizeRules, data: st.DataObject, runs: list[EndedRun], rate: float | None, idle: float
) -> None:
    size = data.draw(st.integers(rules.least, rules.most))
    experience = Experience(
        size,
        needed=data.draw(st.integers(0, rules.most)),
        waiting=data.draw(st.integers(0, 1_000)),
        rate=rate,
        runs=runs,
        changes_today=data.draw(st.integers(0, 6)),
        idle_seconds=idle,
    )

    chosen = choose_size(experience, rules)

    assert rules.least <= chosen.size <= rules.most
    assert chosen.reason
    if chosen.size != size:
        assert len(runs) >= ENOUGH_RUNS
        assert experience.changes_today < rules.max_changes_a_day
        assert chosen.size > size or chosen.size >= experience.needed


constant_streams = st.builds(
    lambda rate, start, each, enough, gain: World(
        lambda now: rate, lambda n: start + each * n, needs(enough, gain=gain)
    ),
    rate=st.floats(0.001, 1.0),
    start=st.floats(10.0, 1_800.0),
    each=st.floats(0.0, 5.0),
    enough=st.integers(1, 300),
    gain=st.sampled_from([0.06, 0.3]),
)


@settings(max_examples=12)
@given(world=constant_streams)
def test_under_a_constant_stream_the_size_comes_to_rest(world: World) -> None:
    """From 10 to 200 there are at most 14 steps up, and 4 down before them."""
    story = live(world, days=8, rules=replace(WIDE, max_changes_a_day=100), batching=ROOMY)

    assert len(story.sizes) <= 1 + 14 + 4
    assert story.reversals() <= 1
    last, *_ = story.sizes[-1]
    assert story.runs < 300 or last < 7 * DAY


@settings(max_examples=12)
@given(world=constant_streams, noise=st.floats(0.01, 0.3), seed=st.integers(0, 99))
def test_a_noisy_constant_stream_does_not_make_the_size_flap(
    world: World, noise: float, seed: int
) -> None:
    noisy = replace(world, noise=noise)

    story = live(noisy, days=6, rules=WIDE, batching=ROOMY, seed=seed)

    assert story.reversals() <= 1


@settings(max_examples=12)
@given(
    start=st.floats(10.0, 1_800.0),
    each=st.floats(0.0, 2.0),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_the_queue_stays_bounded_whenever_the_largest_batch_keeps_up(
    start: float, each: float, share: float, seed: int
) -> None:
    longest_run = start + each * ROOMY.max_queue_size
    rate = share * ROOMY.max_queue_size / (longest_run + 60.0)
    world = World(lambda now: rate, lambda n: start + each * n, noise=0.1)

    story = live(world, days=4, rules=WIDE, batching=ROOMY, seed=seed)

    assert story.longest_queue <= 2 * ROOMY.max_queue_size


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_in_every_world_the_size_changes_seldom(name: str, seed: int) -> None:
    story = live(WORLDS[name], days=6, rules=WIDE, batching=ROOMY, seed=seed)

    assert story.reversals() <= 1
    for begin, _ in story.sizes[1:]:
        assert sum(begin <= at < begin + DAY for at, _ in story.sizes[1:]) <= 4


def test_a_sudden_rush_is_met_and_left_again() -> None:
    story = live(WORLDS["the rush ends"], days=6, rules=WIDE, batching=ROOMY, seed=1)

    assert max(sizing.size for _, sizing in story.sizes) > 80
    assert story.sizes[-1][1].size == 20
    assert story.waiting < 20


def test_failing_runs_leave_the_size_alone() -> None:
    story = live(WORLDS["failing runs"], rules=WIDE, batching=ROOMY, seed=1)

    assert len(story.sizes) == 1
    assert story.cause is SizeCause.FAILING_RUNS


def test_a_stream_that_no_size_can_follow_is_called_so() -> None:
    story = live(WORLDS["too fast for any size"], rules=WIDE, batching=ROOMY, seed=1)

    assert story.sizes[-1][1].size == WIDE.most
    assert story.cause is SizeCause.OVERLOADED


def test_as_shipped_a_slow_line_keeps_the_configured_size() -> None:
    story = live(WORLDS["large gains, idle"], days=6, rules=SizeRules(), batching=BatchRules())

    assert len(story.sizes) == 1


def test_the_documented_table_is_what_the_simulation_shows() -> None:
    documents = Path(__file__).parents[2] / "docs"

    assert "\n".join(table()) in (documents / "batches.md").read_text()


def test_every_cause_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "batches.md").read_text()

    for cause in SizeCause:
        assert f"`{cause}`" in text, cause
