"""How bench.continual cuts its stream, and when it asks whom."""

from collections.abc import Sequence
from pathlib import Path

from bench.continual import FULL, QUICK, Kept
from bench.continual_contenders import Course, Outcome, cut
from bench.continual_stream import TASKS, Event, end_of, exam, stream
from learning.gate import Score
from learning.ports import ModelReference

EVENTS = stream(600, seed=1)
QUESTIONS = exam(2, EVENTS, seed=1)


class Knows:
    """Stands for a trainer: a model knows the task types that its name lists."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def score(self, model: ModelReference, questions: Sequence[Event]) -> Sequence[Score]:
        self.asked.append((model.base_model, len(questions)))
        return [Score(0.0, one.task_type in model.base_model) for one in questions]


def test_each_batch_has_so_many_events_that_are_fit_to_train() -> None:
    blocks = cut(EVENTS, 100)

    assert [event for block in blocks for event in block] == EVENTS[: sum(map(len, blocks))]
    assert len(blocks) == sum(event.confidence >= 0.7 for event in EVENTS) // 100
    for block in blocks:
        assert sum(event.confidence >= 0.7 for event in block) == 100
        assert block[-1].confidence >= 0.7


async def test_a_task_type_counts_as_learned_with_the_model_of_the_end_of_its_time() -> None:
    trainer = Knows()
    course = Course(trainer, QUESTIONS, len(EVENTS))  # type: ignore[arg-type]
    first, second, *_ = TASKS

    course.after(int(end_of(first) * len(EVENTS)) + 1, ModelReference(first))
    course.after(int(end_of(second) * len(EVENTS)) + 1, ModelReference(f"{first} {second}"))
    outcome = await course.end(ModelReference(second))

    assert outcome.learned == {first: 1.0, second: 1.0}
    assert outcome.final == {task: float(task == second) for task in TASKS}
    assert outcome.backward_transfer == -0.5
    assert trainer.asked == [(second, 12), (first, 2), (f"{first} {second}", 2)]


async def test_the_last_task_type_has_no_time_after_its_own() -> None:
    course = Course(Knows(), QUESTIONS, len(EVENTS))  # type: ignore[arg-type]

    course.after(len(EVENTS), ModelReference(" ".join(TASKS)))
    outcome = await course.end(ModelReference(" ".join(TASKS)))

    assert list(outcome.learned) == list(TASKS)[:-1]
    assert (outcome.accuracy, outcome.backward_transfer) == (1.0, 0.0)


def test_what_was_measured_is_found_again_at_the_same_scale_only(tmp_path: Path) -> None:
    kept = Kept(tmp_path, FULL)
    kept.folder.mkdir()
    outcome = Outcome({"coding": 0.5}, {}, "11 of 11 promoted")

    kept.keep("seed-1", {"learnd": outcome})

    found = Kept(tmp_path, FULL).read("seed-1")
    assert found is not None
    assert Outcome(**found["learnd"]) == outcome
    assert kept.read("seed-2") is None
    assert Kept(tmp_path, QUICK).read("seed-1") is None
