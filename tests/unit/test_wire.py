"""Whatever bytes arrive, they become an event or a reason, and nothing is ever raised."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.wire import Decoded, Limits, Reason, Undecodable, decode
from learning.events import FeedbackEvent, OutputEvent
from learning.ports import EventKind, Origin

ARRIVED = datetime(2026, 6, 1, 12, tzinfo=UTC)
ORIGIN = Origin("kafka", "outputs", 3, 17)

OUTPUT: Mapping[str, Any] = {
    "producer": "game-server",
    "task_id": "t-1",
    "task_type": "coding",
    "prompt": "Write a loop",
    "output": "while True: pass",
}
FEEDBACK: Mapping[str, Any] = {"producer": "chat", "task_id": "t-1", "task_type": "coding"}


def read(
    raw: bytes | None, kind: EventKind = EventKind.OUTPUT, origin: Origin = ORIGIN
) -> Decoded | Undecodable:
    return decode(kind, raw, origin, ARRIVED)


def output(**fields: Any) -> bytes:
    return json.dumps({**OUTPUT, **fields}).encode()


def feedback(**fields: Any) -> bytes:
    return json.dumps({**FEEDBACK, **fields}).encode()


def with_json(field: str, text: str) -> bytes:
    """An output with one more field, whose value is given as JSON text."""
    return output()[:-1] + f', "{field}": {text}}}'.encode()


def decoded(raw: bytes, kind: EventKind = EventKind.OUTPUT) -> Decoded:
    result = read(raw, kind)
    assert isinstance(result, Decoded), result
    return result


BAD: Mapping[str, tuple[bytes | None, Reason]] = {
    "empty value": (b"", Reason.EMPTY),
    "only white space": (b" \r\n\t", Reason.EMPTY),
    "tombstone": (None, Reason.TOMBSTONE),
    "2 MiB text": (output(output="x" * 2**21), Reason.TOO_LARGE),
    "UTF-8 byte order mark": (b"\xef\xbb\xbf" + output(), Reason.BYTE_ORDER_MARK),
    "UTF-16 byte order mark": (output().decode().encode("utf-16"), Reason.BYTE_ORDER_MARK),
    "UTF-16 without a mark": (output().decode().encode("utf-16-le"), Reason.NULL_CHARACTER),
    "bad UTF-8": (output()[:-1] + b', "subject": "\xff"}', Reason.BAD_UTF8),
    "surrogate in UTF-8": (output()[:-1] + b', "subject": "\xed\xa0\x80"}', Reason.BAD_UTF8),
    "raw NUL": (output() + b"\x00", Reason.NULL_CHARACTER),
    "escaped NUL": (with_json("subject", r'"a\u0000b"'), Reason.NULL_CHARACTER),
    "NUL after a backslash": (with_json("subject", r'"\\\u0000"'), Reason.NULL_CHARACTER),
    "nested NUL": (with_json("context", r'{"a": [{"b": "\u0000"}]}'), Reason.NULL_CHARACTER),
    "NUL in a key": (with_json("context", r'{"\u0000": 1}'), Reason.NULL_CHARACTER),
    "lone surrogate": (with_json("subject", r'"\ud800"'), Reason.NOT_JSON),
    "not JSON at all": (b"hello", Reason.NOT_JSON),
    "truncated": (output()[:-10], Reason.NOT_JSON),
    "trailing bytes": (output() + b" true", Reason.NOT_JSON),
    "two objects": (output() + output(), Reason.NOT_JSON),
    "trailing comma": (output()[:-1] + b",}", Reason.NOT_JSON),
    "NaN confidence": (with_json("confidence", "NaN"), Reason.NOT_JSON),
    "NaN in the context": (with_json("context", '{"a": NaN}'), Reason.NOT_JSON),
    "infinity in the context": (with_json("context", '{"a": [-Infinity]}'), Reason.NOT_JSON),
    "1e999 as confidence": (with_json("confidence", "1e999"), Reason.NOT_JSON),
    "1e999 in the context": (with_json("context", '{"a": 1e999}'), Reason.NOT_JSON),
    "-1.5E+400 in the context": (with_json("context", '{"a": -1.5E+400}'), Reason.NOT_JSON),
    "5,000-digit integer": (with_json("context", f'{{"a": {"7" * 5000}}}'), Reason.NOT_JSON),
    "400-digit integer": (with_json("context", f'{{"a": {"7" * 400}}}'), Reason.NOT_JSON),
    "5,000-digit confidence": (with_json("confidence", "7" * 5000), Reason.NOT_JSON),
    "array root": (b"[]", Reason.NOT_AN_OBJECT),
    "text root": (b'"text"', Reason.NOT_AN_OBJECT),
    "number root": (b"3.5", Reason.NOT_AN_OBJECT),
    "null root": (b"null", Reason.NOT_AN_OBJECT),
    "deep context": (
        with_json("context", '{"a":' * 64 + "1" + "}" * 64),
        Reason.TOO_DEEP,
    ),
    "deep output": (
        json.dumps({**OUTPUT, "output": None}).encode().replace(b"null", b"[" * 64 + b"]" * 64),
        Reason.TOO_DEEP,
    ),
    "brackets without end": (b"[" * 900_000, Reason.TOO_DEEP),
    "confidence as text": (output(confidence="0.9"), Reason.INVALID),
    "confidence as boolean": (output(confidence=True), Reason.INVALID),
    "confidence 1.01": (output(confidence=1.01), Reason.INVALID),
    "negative confidence": (output(confidence=-0.1), Reason.INVALID),
    "approved as text": (output(approved="true"), Reason.INVALID),
    "approved as number": (output(approved=1), Reason.INVALID),
    "10 kB id": (output(event_id="x" * 10_000), Reason.INVALID),
    "empty id": (output(event_id=""), Reason.INVALID),
    "path in a name": (output(producer="../etc"), Reason.INVALID),
    "misspelt field": (output(aproved=True), Reason.INVALID),
    "both spellings": (output(taskId="t-2"), Reason.INVALID),
    "missing producer": (b'{"task_id": "t", "task_type": "coding"}', Reason.INVALID),
    "output as number": (output(output=3), Reason.INVALID),
    "no output": (json.dumps({**OUTPUT, "output": None}).encode(), Reason.INVALID),
    "10,000 messages": (
        json.dumps({**FEEDBACK, "messages": [{"role": "user", "content": "hi"}] * 10_000}).encode(),
        Reason.INVALID,
    ),
    "unknown role": (
        json.dumps(
            {
                **FEEDBACK,
                "messages": [
                    {"role": "tool", "content": "hi"},
                    {"role": "assistant", "content": "ho"},
                ],
            }
        ).encode(),
        Reason.INVALID,
    ),
    "messages beside a prompt": (
        output(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        Reason.INVALID,
    ),
    "naive time": (output(timestamp="2026-06-01T12:00:00"), Reason.INVALID),
    "negative time": (output(timestamp=-1), Reason.INVALID),
    "unknown schema version": (output(schema_version=2), Reason.UNKNOWN_SCHEMA_VERSION),
    "schema version as text": (output(schemaVersion="1"), Reason.UNKNOWN_SCHEMA_VERSION),
    "unknown version of another shape": (
        b'{"schema_version": 7, "payload": {}}',
        Reason.UNKNOWN_SCHEMA_VERSION,
    ),
    "year 9999": (output(timestamp="9999-12-31T23:59:59-12:00"), Reason.IMPLAUSIBLE_TIME),
    "year 1": (output(timestamp="0001-01-01T00:00:00+23:59"), Reason.IMPLAUSIBLE_TIME),
    "before 1970": (output(timestamp="-1"), Reason.IMPLAUSIBLE_TIME),
    "1999": (output(timestamp="1999-12-31T23:59:59Z"), Reason.IMPLAUSIBLE_TIME),
    "the day after tomorrow": (
        output(timestamp=(ARRIVED + timedelta(days=1, seconds=1)).isoformat()),
        Reason.IMPLAUSIBLE_TIME,
    ),
}


@pytest.mark.parametrize(("raw", "reason"), BAD.values(), ids=BAD.keys())
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


def test_the_limits_can_be_set() -> None:
    raw = with_json("context", '{"a": {}}')
    narrow, shallow = Limits(max_bytes=len(raw) - 1), Limits(max_depth=2)
    for limits, reason in ((narrow, Reason.TOO_LARGE), (shallow, Reason.TOO_DEEP)):
        result = decode(EventKind.OUTPUT, raw, ORIGIN, ARRIVED, limits)
        assert isinstance(result, Undecodable)
        assert result.reason == reason
    exact = Limits(max_bytes=len(raw), max_depth=3)
    assert isinstance(decode(EventKind.OUTPUT, raw, ORIGIN, ARRIVED, exact), Decoded)


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
