"""The record of a training: every step once, whatever interrupted it; and TensorBoard's copy."""

from pathlib import Path

import pytest

from finetune.trainer.protocol import CURVE_POINTS
from finetune.trainer.record import STEPS_FILE, Measured, TrainingRecord


def step(number: int, loss: float | None = 1.0, **other: float) -> Measured:
    return Measured(
        step=number,
        loss=loss,
        learning_rate=0.1,
        grad_norm=other.get("grad_norm", 2.0),
        tokens=10,
        rows=2,
        seconds=0.5,
    )


def test_every_step_is_in_the_curve_with_what_it_measured(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0, None) as record:
        record.add_validation(0, 3.0)
        record.add_step(step(1, 2.5))
        record.add_step(step(2, 1.5))
        record.add_validation(2, float("nan"))
    curve = record.curve()
    assert curve.steps == (1, 2)
    assert curve.loss == (2.5, 1.5)
    assert curve.learning_rate == (0.1, 0.1)
    assert curve.grad_norm == (2.0, 2.0)
    assert (curve.tokens, curve.rows, curve.seconds) == ((10, 10), (2, 2), (0.5, 0.5))
    assert (curve.validation_steps, curve.validation_loss) == ((0, 2), (3.0, None))


def test_a_resumed_training_has_each_step_once(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0, None) as record:
        record.add_validation(0, 3.0)
        for number in range(1, 6):
            record.add_step(step(number, 9.0))
        record.add_validation(5, 8.0)
    with TrainingRecord(tmp_path, 3, None) as resumed:
        assert resumed.validated_at == 0
        resumed.add_step(step(4, 1.0))
    assert resumed.curve().steps == (1, 2, 3, 4)
    assert resumed.curve().loss == (9.0, 9.0, 9.0, 1.0)
    assert resumed.curve().validation_steps == (0,)


def test_a_training_that_starts_anew_drops_an_earlier_record(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0, None) as record:
        record.add_step(step(1))
    with TrainingRecord(tmp_path, 0, None) as anew:
        pass
    assert anew.curve().steps == ()


def test_a_line_that_a_killed_process_left_unfinished_ends_the_record(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0, None) as record:
        record.add_step(step(1))
        record.add_step(step(2))
    file = tmp_path / STEPS_FILE
    file.write_bytes(file.read_bytes()[:-9])
    with TrainingRecord(tmp_path, 2, None) as resumed:
        resumed.add_step(step(3))
    assert resumed.curve().steps == (1, 3)


def test_many_steps_make_a_bounded_curve_that_hides_no_peak(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0, None) as record:
        for number in range(1, 10 * CURVE_POINTS + 2):
            record.add_step(step(number, 2.0, grad_norm=99.0 if number == 777 else 1.0))
    curve = record.curve()
    assert len(curve.steps) <= CURVE_POINTS
    assert curve.steps[-1] == 10 * CURVE_POINTS + 1
    assert set(curve.loss) == {2.0}
    assert max(norm for norm in curve.grad_norm if norm is not None) == 99.0
    assert sum(curve.tokens) == 10 * (10 * CURVE_POINTS + 1)


def test_a_loss_that_is_not_finite_is_not_averaged_away(tmp_path: Path) -> None:
    with TrainingRecord(tmp_path, 0, None) as record:
        for number in range(1, 4 * CURVE_POINTS):
            record.add_step(step(number))
        record.add_step(step(4 * CURVE_POINTS, None))
    assert record.curve().loss[-1] is None
    assert record.curve().loss[-2] == 1.0


def test_tensorboard_reads_every_number_back_and_no_step_twice(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = tmp_path / "events"
    with TrainingRecord(tmp_path, 0, str(events)) as record:
        record.add_validation(0, 3.0)
        for number in range(1, 5):
            record.add_step(step(number, 1 / number))
    with TrainingRecord(tmp_path, 2, str(events)) as resumed:
        resumed.add_step(step(3, 7.0))
        resumed.add_validation(3, 0.5)
    read = accumulator.EventAccumulator(str(events))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == [
        "train/gradient_norm",
        "train/learning_rate",
        "train/loss",
        "train/samples_per_second",
        "validation/loss",
    ]
    losses = [(one.step, one.value) for one in read.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert [(one.step, one.value) for one in read.Scalars("validation/loss")] == [
        (0, 3.0),
        (3, 0.5),
    ]
    assert {one.value for one in read.Scalars("train/samples_per_second")} == {4.0}
