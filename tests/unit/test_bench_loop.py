"""The loop benchmark measures moments that exist, and its stages add up."""

from bench.loop import ORDER, STAGES, Round
from tests.failpoints import all_names


def test_each_stage_ends_with_a_moment_of_the_product() -> None:
    assert {moment for _, moment in STAGES} <= set(all_names())


def test_the_stages_add_up_to_the_total() -> None:
    reached = {moment: 1.0 + n for n, (_, moment) in enumerate(STAGES)}
    measured = Round("line", sent=0.0, reached=reached, train_seconds=0.25)

    stages = measured.stages()

    assert set(stages) == set(ORDER)
    assert (stages["import"], stages["train"]) == (0.75, 0.25)
    assert sum(stages.values()) == measured.total == len(STAGES)
