"""Whatever bytes arrive, they become an event or a reason, and nothing is ever raised."""

import json
from collections.abc import Mapping
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.wire import (
    Decoded,
    Limits,
    Reason,
    Undecodable,
    decode,
    fault_in_content_type,
)
from learning.clock import microseconds
from learning.events import FeedbackEvent, OutputEvent
from learning.ports import EventKind, Origin
from tests.bad_input import ARRIVED, BAD_BYTES, FEEDBACK, OUTPUT, feedback, output, with_json

ORIGIN = Origin("kafka", "outputs", 3, 17)


def read(
    raw: bytes | None, kind: EventKind = EventKind.OUTPUT, origin: Origin = ORIGIN
) -> Decoded | Undecodable:
    return decode(kind, raw, origin, microseconds(ARRIVED))


def decoded(raw: bytes, kind: EventKind = EventKind.OUTPUT) -> Decoded:
    result = read(raw, kind)
    assert isinstance(result, Decoded), result
    return result


@pytest.mark.parametrize(("raw", "reason"), BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_a_bad_record_has_a_reason_and_a_short_detail(raw: bytes | None, reason: Reason) -> None:
    result = read(raw)
    assert isinstance(result, Undecodable), result
    assert result.reason == reason
    assert result.detail
    assert len(result.detail) < 400


BAD_FEEDBACK: Mapping[str, bytes] = {
    "rating 6": feedback(feedback={"user_rating": 6}),
    "rating as text": feedback(feedback={"user_rating": "5"}),
    "metric without a bound": feedback(feedback={"quality_metrics": {"clarity": 1e30}}),
    "metric with a bad name": feedback(feedback={"quality_metrics": {"a b": 1.0}}),
    "65 metrics": feedback(feedback={"quality_metrics": {f"m{i}": 1.0 for i in range(65)}}),
    "trust delta 2": feedback(adaptation={"trust_delta": 2.0}),
    "long mood": feedback(adaptation={"mood_adjustment": "x" * 257}),
    "a prompt": feedback(prompt="x"),
}


@pytest.mark.parametrize("raw", BAD_FEEDBACK.values(), ids=BAD_FEEDBACK.keys())
def test_bad_feedback_is_invalid(raw: bytes) -> None:
    result = read(raw, EventKind.FEEDBACK)
    assert isinstance(result, Undecodable), result
    assert result.reason == Reason.INVALID


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        (output(aproved=True), EventKind.OUTPUT, "aproved: unknown field, did you mean approved?"),
        (output(taskId="t-2"), EventKind.OUTPUT, "both of its spellings"),
        (output(adaptation={}), EventKind.OUTPUT, "but one of feedback events"),
        (
            feedback(adaptation={"trustDelte": 0.1}),
            EventKind.FEEDBACK,
            "adaptation.trustDelte: unknown field, did you mean trustDelta?",
        ),
        (output(confidence="0.9"), EventKind.OUTPUT, "confidence: should be a valid number"),
        (b"{}", EventKind.OUTPUT, "producer: is required; task_id: is required"),
        (output(output=3), EventKind.OUTPUT, "output: must be text, an object or an array, got 3"),
        (output(messages=[]), EventKind.OUTPUT, "messages: List should have at least 2 items"),
        (
            b'{"producer": "p", "task_id": "t", "task_type": "coding", "prompt": "p"}',
            EventKind.OUTPUT,
            "prompt and output, or messages, are required",
        ),
        (output(schema_version=2), EventKind.OUTPUT, "schema_version 2; this release reads 1"),
        (output() + b"x", EventKind.OUTPUT, "trailing characters"),
    ],
)
def test_the_detail_says_what_to_mend(raw: bytes, kind: EventKind, words: str) -> None:
    result = read(raw, kind)
    assert isinstance(result, Undecodable), result
    assert words in result.detail


def test_the_detail_echoes_little_of_the_input() -> None:
    secret = "hunter2" * 1_000
    raw = output(
        **{
            secret: 1,
            "x" + secret: 2,
            "approved": secret,
            "confidence": secret,
            "subject": [secret],
        }
    )
    result = read(raw)
    assert isinstance(result, Undecodable)
    assert result.detail.count("hunter2") * len("hunter2") < 100
    assert "and 2 more" in result.detail


def test_snake_case_and_camel_case_read_the_same() -> None:
    snake = {**OUTPUT, "model_version": "1.2.3", "split_group": "g", "event_id": "e"}
    camel = {
        "producer": "game-server",
        "taskId": "t-1",
        "taskType": "coding",
        "prompt": "Write a loop",
        "output": "while True: pass",
        "modelVersion": "1.2.3",
        "splitGroup": "g",
        "eventId": "e",
    }
    assert decoded(json.dumps(snake).encode()).event == decoded(json.dumps(camel).encode()).event


def test_feedback_is_read_with_all_its_parts() -> None:
    raw = feedback(
        feedback={"userRating": 5, "engagementMetrics": {"chat_emotes": 12}},
        adaptation={"trust_delta": 0.1, "moodAdjustment": "calm"},
    )
    event = decoded(raw, EventKind.FEEDBACK).event
    assert isinstance(event, FeedbackEvent)
    assert event.feedback.user_rating == 5
    assert event.feedback.engagement_metrics == {"chat_emotes": 12}
    assert event.adaptation.mood_adjustment == "calm"


def test_of_a_repeated_key_the_last_value_counts() -> None:
    event = decoded(with_json("prompt", '"second"')).event
    assert isinstance(event, OutputEvent)
    assert event.prompt == "second"


@pytest.mark.parametrize(
    "raw",
    [
        with_json("subject", r'"an escaped \\u0000 is text"'),
        with_json("subject", '"NaN, Infinity and 1e999 in a text"'),
        with_json("context", '{"a": 1.5e308, "b": 1e-999, "c": 123456789012345678901234567890}'),
        with_json("context", '{"a":' * 62 + "{}" + "}" * 62),
        with_json("subject", json.dumps("[" * 200)),
        output(timestamp=(ARRIVED + timedelta(hours=23)).isoformat()),
        output(timestamp="2000-01-01T00:00:00Z"),
        output(output={"code": ["x"]}),
        output(subject="é 漢 🎲"),
    ],
)
def test_what_only_looks_bad_is_read(raw: bytes) -> None:
    decoded(raw)


@pytest.mark.parametrize(
    "content_type",
    [None, b"application/json", b"Application/JSON ; charset=utf-8", b"application/vnd.x+json"],
)
def test_json_is_read_whatever_its_content_type_adds(content_type: bytes | None) -> None:
    assert fault_in_content_type(content_type) is None


@pytest.mark.parametrize(
    "content_type", [b"", b"json", b"text/plain", b"application/jsonp", b"\xff"]
)
def test_another_content_type_is_told_in_the_detail(content_type: bytes) -> None:
    fault = fault_in_content_type(content_type * 1_000)
    assert fault is not None
    assert "not JSON" in fault.detail
    assert len(fault.detail) < 100


def test_the_limits_can_be_set() -> None:
    raw = with_json("context", '{"a": {}}')
    narrow, shallow = Limits(max_bytes=len(raw) - 1), Limits(max_depth=2)
    for limits, reason in ((narrow, Reason.TOO_LARGE), (shallow, Reason.TOO_DEEP)):
        result = decode(EventKind.OUTPUT, raw, ORIGIN, microseconds(ARRIVED), limits)
        assert isinstance(result, Undecodable)
        assert result.reason == reason
    exact = Limits(max_bytes=len(raw), max_depth=3)
    assert isinstance(decode(EventKind.OUTPUT, raw, ORIGIN, microseconds(ARRIVED), exact), Decoded)


def test_an_event_keeps_its_own_id() -> None:
    assert decoded(output(event_id="mine")).event_id == "mine"


def test_a_derived_id_depends_on_the_content_and_the_origin_only() -> None:
    first = decoded(output())
    assert first.event_id.startswith("derived:")
    assert decoded(output()).event_id == first.event_id
    others = [
        read(output(prompt="another")),
        read(output(), origin=Origin("kafka", "outputs", 3, 18)),
        read(output(), origin=Origin("kafka", "outputs", 4, 17)),
        read(output(), origin=Origin("kafka", "outputs2", 3, 17)),
        read(output(), origin=Origin("http", "outputs", 3, 17)),
    ]
    ids = {other.event_id for other in others if isinstance(other, Decoded)}
    assert len(ids | {first.event_id}) == 6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(raw=st.binary(), kind=st.sampled_from(EventKind))
def test_no_bytes_raise(raw: bytes, kind: EventKind) -> None:
    assert isinstance(read(raw, kind), Undecodable)


@given(value=JSON, kind=st.sampled_from(EventKind))
def test_no_json_raises(value: object, kind: EventKind) -> None:
    assert isinstance(read(json.dumps(value).encode(), kind), Decoded | Undecodable)


@given(
    field=st.sampled_from(sorted({*OutputEvent.model_fields, *FeedbackEvent.model_fields})),
    value=JSON,
    kind=st.sampled_from(EventKind),
)
def test_no_field_raises_and_what_is_read_can_be_stored(
    field: str, value: object, kind: EventKind
) -> None:
    base = OUTPUT if kind is EventKind.OUTPUT else FEEDBACK
    result = read(json.dumps({**base, field: value}).encode(), kind)
    if isinstance(result, Decoded):
        payload = result.event.model_dump_json(exclude_none=True)
        assert "\x00" not in json.dumps(json.loads(payload), ensure_ascii=False)
        assert len(result.event.content_hash()) == 16
