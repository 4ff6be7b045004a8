"""Put a report in order: headings, tables and pictures, for whichever format it is written in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune.report.chart import Line, draw
from finetune.report.content import Evaluation, TrainingReport
from finetune.trainer.protocol import TrainingCurve
from learning.gate import Measure


@dataclass(frozen=True)
class Table:
    """Rows of texts under a head. Without a head the first column names the second."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """An SVG, and the stem of the file that it goes by."""

    name: str
    title: str
    svg: str


@dataclass(frozen=True)
class Section:
    """What stands under one heading, in this order."""

    heading: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def sections_of(report: TrainingReport) -> Sequence[Section]:
    """The whole report, what matters most first."""
    return [
        Section("What it was", tables=[_named(report.facts)]),
        _evaluation(report.evaluation),
        _curves(report),
        Section("Training", report.notes, [_named(report.training)]),
        _dataset(report),
        Section("Settings", tables=[_named(report.settings)]),
    ]


def pictures_of(report: TrainingReport) -> Sequence[Picture]:
    """Every picture of a report."""
    return [picture for section in sections_of(report) for picture in section.pictures]


def text_of(value: Any) -> str:
    """A value in a table: None is a dash, numbers have four digits that count."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value)) or "-"
    return str(value)


def _evaluation(evaluation: Evaluation | None) -> Section:
    heading = "Before and after"
    if evaluation is None:
        return Section(heading, ["It was not evaluated: there were no rows to do it on."])
    words = [f"{evaluation.verdict}: {evaluation.reason}"]
    if not evaluation.slices:
        return Section(heading, words)
    head = ("rows", "number", "loss before", "after", "exact before", "after", "less loss")
    rows = [
        (
            one.name,
            text_of(one.n_rows),
            text_of(one.loss_before),
            text_of(one.loss_after),
            f"{one.exact_before:.1%}",
            "-" if one.exact_after is None else f"{one.exact_after:.1%}",
            "-" if one.gain is None else f"{one.gain:+.1%}",
        )
        for one in evaluation.slices
    ]
    words.append(_MEASURED[evaluation.measure])
    return Section(heading, words, [Table(rows, head)])


_MEASURED: Final[Mapping[Measure, str]] = {
    Measure.LIKELIHOOD: "On rows that were not trained on. Loss is the negative log-likelihood of"
    " the answer in nats per byte; exact is the share of answers of which greedy decoding writes"
    " every token.",
    Measure.ANSWERS: "On rows that were not trained on. Loss is 1 - the score of the model's own"
    " answer against the approved one, from 0 to 1; exact is the share of answers that are equal.",
}


def _curves(report: TrainingReport) -> Section:
    if not report.curve.steps:
        return Section("Curves", ["The provider tells of no step."])
    of_answers = report.settings.get("objective", "sft") == "sft"
    return Section("Curves", pictures=list(_pictures(report.curve, of_answers=of_answers)))


def _pictures(curve: TrainingCurve, *, of_answers: bool) -> Iterator[Picture]:
    """`of_answers`: the training's loss is nats per output token, as that of the validation."""

    def picture(name: str, title: str, unit: str, *lines: Line) -> Picture:
        return Picture(name, title, draw(title, unit, lines))

    steps = curve.steps
    training = Line("training", steps, curve.loss)
    validation = Line("validation", curve.validation_steps, curve.validation_loss)
    validations = [validation] if curve.validation_steps else []
    if of_answers:
        yield picture("loss", "Loss", "nats per output token", training, *validations)
    else:
        yield picture("loss", "Loss", "mean over pairs or answers", training)
        for line in validations:
            yield picture("validation_loss", "Validation loss", "nats per output token", line)
    yield picture(
        "learning_rate", "Learning rate", "", Line("learning rate", steps, curve.learning_rate)
    )
    yield picture(
        "gradient_norm",
        "Gradient norm",
        "before clipping",
        Line("gradient norm", steps, curve.grad_norm),
    )
    speeds = [
        tokens / seconds if seconds else None
        for tokens, seconds in zip(curve.tokens, curve.seconds, strict=True)
    ]
    yield picture("speed", "Speed", "input tokens a second", Line("speed", steps, speeds))


def _dataset(report: TrainingReport) -> Section:
    tables = [_named(report.dataset)]
    if report.left_out:
        rows = [(f"{one.file}:{one.line}", one.reason) for one in report.left_out]
        tables.append(Table(rows, ("line", "why it was left out")))
    return Section("Dataset", tables=tables)


def _named(values: Mapping[str, Any]) -> Table:
    return Table([(name, text_of(value)) for name, value in values.items()])
