"""A training's report: the same content as Markdown, as a page of its own, and as JSON."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from finetune.report.chart import Line, draw
from finetune.report.content import Evaluation, LeftOut, Measured, Slice, TrainingReport
from finetune.report.files import write_report
from finetune.report.markdown import as_markdown
from finetune.report.outline import pictures_of
from finetune.report.page import as_page
from finetune.trainer.protocol import TrainingCurve
from learning.gate import Measure

HOSTILE = "<script src=\"https://evil/x.js\">alert('1')</script> | `x` ![y](https://evil/z.png)"
CURVE = TrainingCurve(
    steps=(1, 2, 3),
    loss=(2.0, 1.0, 0.5),
    learning_rate=(1e-4, 2e-4, 0.0),
    grad_norm=(3.0, None, 1.0),
    tokens=(100, 100, 200),
    rows=(2, 2, 4),
    seconds=(0.5, 0.5, 1.0),
    validation_steps=(0, 3),
    validation_loss=(2.2, 0.9),
)


def report(**changes: Any) -> TrainingReport:
    given: dict[str, Any] = {
        "subject": "run r-1",
        "facts": {"model": "org/model", "line": HOSTILE},
        "settings": {"epochs": 3, "learning_rate": 2e-4, "max_steps": None},
        "dataset": {"training rows": 1_234},
        "training": {"optimizer steps": 3},
        "left_out": [LeftOut("rows.jsonl", 7, HOSTILE)],
        "curve": CURVE,
        "notes": ["max_length is 512"],
        "evaluation": Evaluation("promote", "better", [Slice("recent", 32, 2.0, 1.0, 0.25, 0.75)]),
    }
    return TrainingReport(**{**given, **changes})


def test_a_report_says_whether_likelihoods_or_answers_were_compared(tmp_path: Path) -> None:
    slices = [Slice("recent", 32, 0.5, 0.25, 0.25, 0.75)]
    pages = [
        write_report(
            tmp_path, report(evaluation=Evaluation("promote", "better", slices, measure))
        ).read_text()
        for measure in Measure
    ]
    assert ["nats per byte" in page for page in pages] == [True, False]
    assert ["1 - the score of the model" in page for page in pages] == [False, True]


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_page_needs_nothing_from_outside_and_runs_nothing() -> None:
    page = _Page(as_page(report(subject=HOSTILE)))
    assert not page.tags & {"script", "img", "link", "iframe", "object", "a", "base"}
    names = {name for name, _ in page.attributes}
    assert not any(name in ("src", "href", "xlink:href", "style") for name in names)
    assert not any(name.startswith("on") for name in names)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_page_says_what_was_said_to_the_letter() -> None:
    assert _Page(as_page(report())).said.count(HOSTILE) == 2


def test_markdown_shows_strange_text_as_text() -> None:
    text = as_markdown(report())
    assert not re.search(r"(?<!\\)<script", text)
    assert len(re.findall(r"!\[", text)) == len(pictures_of(report()))
    rows = [line for line in text.splitlines() if "evil" in line]
    assert len(rows) == 2
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3


@pytest.mark.parametrize("form", [as_markdown, as_page])
def test_both_forms_tell_the_numbers(form: Any) -> None:
    text = form(report())
    for told in ("1,234", "0.0002", "25.0%", "75.0%", "+50.0%", "promote: better", "512"):
        assert told in text


def test_json_has_every_number_and_no_nan(tmp_path: Path) -> None:
    slices = [Slice("recent", 3, None, 1.0, 0.0, None)]
    write_report(tmp_path, report(evaluation=Evaluation("abstain", "few", slices)))
    told = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert told["curve"]["loss"] == [2.0, 1.0, 0.5]
    assert told["evaluation"]["slices"][0]["loss_before"] is None
    assert told["settings"]["max_steps"] is None
    assert told["left_out"] == [{"file": "rows.jsonl", "line": 7, "reason": HOSTILE}]


def test_each_picture_of_the_markdown_is_a_file_beside_it(tmp_path: Path) -> None:
    page = write_report(tmp_path, report())
    named = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "report.md").read_text())
    assert named == ["loss.svg", "learning_rate.svg", "gradient_norm.svg", "speed.svg"]
    for name in named:
        ElementTree.parse(tmp_path / name)  # noqa: S314 - our own
    assert page == tmp_path / "report.html"


def test_the_loss_of_preferences_is_not_drawn_on_the_scale_of_the_validation() -> None:
    names = [picture.name for picture in pictures_of(report(settings={"objective": "dpo"}))]
    assert names[:2] == ["loss", "validation_loss"]
    assert [picture.name for picture in pictures_of(report())].count("validation_loss") == 0


def test_without_curve_and_evaluation_it_says_so() -> None:
    text = as_markdown(report(curve=TrainingCurve(), evaluation=None))
    assert "tells of no step" in text
    assert "was not evaluated" in text


def test_what_another_provider_measured_is_taken_as_far_as_it_goes() -> None:
    measured = Measured.of({"final_loss": 0.5, "curve": [1, 2, 3], "something": "else"})
    assert measured.training == {"loss of the last step": 0.5}
    assert measured.curve == TrainingCurve()
    assert measured.left_out == []


def test_speeds_are_over_the_time_in_steps() -> None:
    measured = Measured.of({"curve": CURVE.model_dump(mode="json")})
    assert measured.training["input tokens a second"] == 200.0
    assert measured.training["rows a second"] == 4.0


# --- pictures -------------------------------------------------------------------------


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in points.split()]  # type: ignore[misc]
        for points in re.findall(r'<polyline points="(.*?)"', svg)
    ]


def test_a_falling_loss_falls_on_the_picture() -> None:
    (line,) = polylines(draw("Loss", "nats", [Line("training", [1, 2, 3], [3.0, 2.0, 1.0])]))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [y for _, y in line] == sorted(y for _, y in line)


def test_a_number_that_is_not_finite_is_a_gap() -> None:
    losses = [3.0, None, 2.0, 1.0, math.inf, math.nan]
    lines = polylines(draw("Loss", "nats", [Line("training", range(6), losses)]))
    assert [len(line) for line in lines] == [1, 2]


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1.0, 1e-9], [1e12, 2e12], [1e-8]])
def test_every_point_is_within_the_picture(values: list[float]) -> None:
    svg = draw("Loss", "nats", [Line("training", range(len(values)), values)])
    (line,) = polylines(svg)
    for x, y in line:
        assert 68 <= x <= 640 - 16
        assert 44 <= y <= 280 - 44


def test_a_picture_of_nothing_says_so() -> None:
    assert "no numbers" in draw("Loss", "nats", [Line("training", [1], [None])])


def test_a_title_cannot_break_out_of_the_picture() -> None:
    svg = draw(HOSTILE, HOSTILE, [Line("a", [1, 2], [1, 2]), Line(HOSTILE, [1, 2], [1, 2])])
    assert "script" not in {element.tag for element in ElementTree.fromstring(svg).iter()}  # noqa: S314


def test_no_tick_stands_between_two_steps() -> None:
    picture = draw("Loss", "nats", [Line("loss", (1, 2, 3), (30.0, 26.0, 17.0))])

    assert ">2</text>" in picture
    assert ">1.5</text>" not in picture
