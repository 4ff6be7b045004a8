"""Nothing is lost in a conversion unless somebody asks for it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.datasets.conversion import LossyConversionError, rows_of
from finetune.datasets.formats import Example, Format, Kind, example_of

TEXT = st.text(min_size=1).filter(str.strip)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Any example that a row can hold, with system prompts and earlier rounds."""
    prompt = [turn("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        prompt += [turn("user", draw(TEXT)), turn("assistant", draw(TEXT))]
    prompt.append(turn("user", draw(TEXT)))
    answer = draw(TEXT)
    extra = draw(st.dictionaries(st.sampled_from(["id", "source", "task_type"]), TEXT))
    match draw(st.sampled_from(Kind)):
        case Kind.PREFERENCE:
            return Example(prompt, answer, rejected=answer + "!", extra=extra)
        case Kind.LABELLED:
            return Example(prompt, answer, label=draw(st.booleans()), extra=extra)
        case _:
            return Example(prompt, answer, extra=extra)


@given(examples(), st.sampled_from(Format), st.booleans())
def test_what_is_converted_reads_as_the_same_example(
    example: Example, target: Format, as_chat: bool
) -> None:
    try:
        written = rows_of(example, target, as_chat=as_chat)
    except LossyConversionError:
        return
    read = [example_of(row, target) for row in written]
    if example.rejected is not None and target is Format.KTO:
        assert [(one.answer, one.label) for one in read] == [
            (example.answer, True),
            (example.rejected, False),
        ]
    else:
        (one,) = read
        assert (one.answer, one.rejected, one.label) == (
            example.answer,
            example.rejected,
            example.label,
        )
    for one in read:
        assert list(one.prompt) == list(example.prompt)
        assert dict(one.extra) == dict(example.extra)


@given(examples().filter(lambda one: one.kind is Kind.SUPERVISED))
def test_every_format_of_one_answer_holds_every_conversation(example: Example) -> None:
    for target in (Format.MESSAGES, Format.SHAREGPT, Format.INSTRUCTION):
        assert len(rows_of(example, target)) == 1
    assert len(rows_of(example, Format.PROMPT_COMPLETION, as_chat=True)) == 1


HI = [turn("user", "hi")]
REFUSED: list[tuple[Example, Format, str]] = [
    (Example(HI, "a"), Format.KTO, "nobody said"),
    (Example(HI, "a"), Format.PREFERENCE, "one answer"),
    (Example(HI, "a", label=True), Format.PREFERENCE, "one answer"),
    (Example(HI, "a", label=True), Format.MESSAGES, "--lossy keeps the good ones"),
    (Example(HI, "a", rejected="b"), Format.MESSAGES, "rejected answer would be lost"),
    (Example([turn("system", "s"), *HI], "a"), Format.PROMPT_COMPLETION, "--chat"),
    (Example([turn("system", "s"), *HI], "a"), Format.PROMPT_OUTPUT, "2 messages"),
    (Example([*HI, *HI], "a"), Format.INSTRUCTION, "alternate"),
    (Example(HI, "a", unread=["messages[0].name"]), Format.SHAREGPT, r"messages\[0\].name"),
    (Example(HI, "a", extra={"messages": 1}), Format.MESSAGES, "own field messages"),
    (Example(HI, "a", extra={"label": True}), Format.MESSAGES, "read as kto"),
]


@pytest.mark.parametrize(("example", "target", "words"), REFUSED)
def test_a_conversion_that_would_lose_something_is_refused(
    example: Example, target: Format, words: str
) -> None:
    with pytest.raises(LossyConversionError, match=words):
        rows_of(example, target)


def answers(rows: Any) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def test_asked_for_a_loss_only_good_answers_are_kept() -> None:
    pair = Example(HI, "good", rejected="bad")
    assert answers(rows_of(pair, Format.MESSAGES, lossy=True)) == ["good"]
    assert answers(rows_of(Example(HI, "good", label=True), Format.MESSAGES, lossy=True)) == [
        "good"
    ]
    assert rows_of(Example(HI, "bad", label=False), Format.MESSAGES, lossy=True) == []
