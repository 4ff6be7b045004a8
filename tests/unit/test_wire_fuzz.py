"""Good events, bent and broken in every way that keeps them near to good: none is too much.

Random bytes die at the first check. So these begin as valid events of either kind, are
changed as JSON (a field dropped, doubled, misspelt, of another type), then as bytes (cut,
spliced, repeated, poisoned), and go through the decoder in both kinds.
"""

import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel

from consumers.wire import Decoded, Limits, Reason, Undecodable, decode
from learning.clock import microseconds
from learning.events import FeedbackEvent, OutputEvent
from learning.ports import EventKind, Origin

ARRIVED = datetime(2026, 6, 1, 12, tzinfo=UTC)
ORIGIN = Origin("kafka", "outputs", 3, 17)
LARGEST = 1_000_000
MOST_MEMORY = 100 * LARGEST
"""What decoding the largest record may take for Python's objects, in bytes."""
LONGEST_DETAIL = 1_000

DECODERS_OWN = set(Reason) - {Reason.UNKNOWN_TASK_TYPE, Reason.TOMBSTONE}

names = st.text("abcXYZ019._-", min_size=1, max_size=12).filter(lambda name: name[0].isalnum())
words = st.text(
    st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=30
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
shares = st.floats(0, 1)


def times() -> st.SearchStrategy[str]:
    return st.timedeltas(timedelta(days=-400), timedelta(hours=23)).map(
        lambda age: (ARRIVED + age).isoformat()
    )


def messages() -> st.SearchStrategy[Any]:
    turn = st.tuples(words, words).map(
        lambda said: [
            {"role": "user", "content": said[0]},
            {"role": "assistant", "content": said[1]},
        ]
    )
    return st.lists(turn, min_size=1, max_size=3).map(
        lambda turns: [said for turn in turns for said in turn]
    )


COMMON = {"producer": names, "task_id": names, "task_type": names}
OPTIONAL = {
    "event_id": names,
    "schema_version": st.just(1),
    "approved": st.booleans(),
    "confidence": shares | st.integers(0, 1),
    "model_version": names,
    "timestamp": times(),
}


@st.composite
def good_events(draw: st.DrawFn) -> tuple[EventKind, dict[str, Any]]:
    """An event that is right in every field, in snake_case or camelCase."""
    kind = draw(st.sampled_from(EventKind))
    if kind is EventKind.OUTPUT:
        body = draw(
            st.fixed_dictionaries({"prompt": words, "output": words})
            | st.fixed_dictionaries({"messages": messages()})
        )
        optional: dict[str, Any] = {
            **OPTIONAL,
            "context": st.dictionaries(words, json_values, max_size=3),
            "subject": names,
            "split_group": names,
        }
    else:
        body = {}
        scores = st.fixed_dictionaries({}, optional={"user_rating": st.integers(1, 5)})
        optional = {**OPTIONAL, "feedback": scores}
    event = {
        **draw(st.fixed_dictionaries(COMMON, optional=optional)),
        **body,
    }
    if draw(st.booleans()):
        event = {to_camel(name): value for name, value in event.items()}
    return kind, event


FIELDS = sorted({*OutputEvent.model_fields, *FeedbackEvent.model_fields})


@st.composite
def bent_objects(draw: st.DrawFn) -> tuple[EventKind, bytes]:
    """An event whose fields were tampered with; still JSON."""
    kind, event = draw(good_events())
    text = None
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(event) or ["producer"]))
        match draw(st.sampled_from(["drop", "retype", "rename", "add", "wrap", "double"])):
            case "drop":
                event.pop(name, None)
            case "retype":
                event[name] = draw(json_values)
            case "rename":
                event[draw(st.sampled_from(FIELDS) | words)] = event.pop(name, None)
            case "add":
                event[draw(st.sampled_from(FIELDS).map(to_camel) | words)] = draw(json_values)
            case "wrap":
                event[name] = _wrapped(event.get(name), draw(st.integers(1, 80)))
            case _:
                twice = json.dumps({name: draw(json_values)})[1:]
                text = json.dumps(event)[:-1] + ", " + twice
    is_ascii = draw(st.booleans())
    return kind, (text or json.dumps(event, ensure_ascii=is_ascii)).encode(errors="surrogatepass")


def _wrapped(value: Any, times: int) -> Any:
    for _ in range(times):
        value = [value]
    return value


POISON = (
    b"\x00",
    b"\\u0000",
    b"\\\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b'"',
    b"\\",
    b"{",
    b"]",
    b",",
    b":",
    b"\n",
    b"[" * 100,
    b'{"a":' * 70,
)


@st.composite
def broken_bytes(draw: st.DrawFn) -> tuple[EventKind, bytes]:
    """The bytes of an event, bent or not, cut and poisoned."""
    kind, raw = draw(bent_objects())
    for _ in range(draw(st.integers(1, 3))):
        at, to = sorted(draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
        match draw(st.sampled_from(["cut", "end", "poison", "flip", "repeat", "splice"])):
            case "cut":
                raw = raw[:at] + raw[to:]
            case "end":
                raw = raw[:at]
            case "poison":
                raw = raw[:at] + draw(st.sampled_from(POISON)) + raw[at:]
            case "flip":
                raw = raw[:at] + draw(st.binary(min_size=1, max_size=3)) + raw[at + 1 :]
            case "repeat":
                raw = raw[:to] + raw[at:to] * draw(st.integers(1, 20)) + raw[to:]
            case _:
                raw = raw[:at] + draw(bent_objects())[1][to:]
    return kind, raw


def read(kind: EventKind, raw: bytes) -> Decoded | Undecodable:
    """The decoder's answer, and everything that holds for every answer."""
    result = decode(kind, raw, ORIGIN, microseconds(ARRIVED))
    assert decode(kind, raw, ORIGIN, microseconds(ARRIVED)) == result
    if isinstance(result, Undecodable):
        assert result.reason in DECODERS_OWN
        assert 0 < len(result.detail) <= LONGEST_DETAIL
        result.detail.encode()
    else:
        payload = result.event.model_dump_json(exclude_none=True)
        assert "\x00" not in json.dumps(json.loads(payload), ensure_ascii=False)
        assert json.loads(raw), "what is read is JSON for others too"
        again = decode(kind, payload.encode(), ORIGIN, microseconds(ARRIVED))
        assert isinstance(again, Decoded), again
        assert again.event == result.event
    return result


@given(good_events())
def test_every_good_event_is_read(good: tuple[EventKind, dict[str, Any]]) -> None:
    kind, event = good

    result = read(kind, json.dumps(event).encode())

    assert isinstance(result, Decoded), result


@settings(max_examples=400)
@given(bent_objects(), st.booleans())
def test_a_bent_event_is_read_or_refused_with_a_reason(
    bent: tuple[EventKind, bytes], as_the_other: bool
) -> None:
    kind, raw = bent
    other = EventKind.FEEDBACK if kind is EventKind.OUTPUT else EventKind.OUTPUT

    read(other if as_the_other else kind, raw)


@settings(max_examples=600)
@given(broken_bytes())
def test_broken_bytes_are_read_or_refused_with_a_reason(broken: tuple[EventKind, bytes]) -> None:
    read(*broken)


@settings(max_examples=100)
@given(broken_bytes(), st.integers(1, 300), st.integers(1, 8))
def test_limits_hold_for_whatever_comes(
    broken: tuple[EventKind, bytes], max_bytes: int, max_depth: int
) -> None:
    kind, raw = broken

    result = decode(kind, raw, ORIGIN, microseconds(ARRIVED), Limits(max_bytes, max_depth))

    if isinstance(result, Decoded):
        assert len(raw) <= max_bytes
        assert _depth(json.loads(raw)) <= max_depth
    elif len(raw) > max_bytes:
        assert result.reason is Reason.TOO_LARGE


def _depth(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(_depth, value.values()), default=0)
        case list():
            return 1 + max(map(_depth, value), default=0)
        case _:
            return 0


def filled(piece: str, *, inside: bool) -> bytes:
    """An output of nearly the largest size, full of one piece, in a text or as items."""
    begin = (
        '{"producer": "p", "task_id": "t", "task_type": "coding", "prompt": "p", "output": "o",'
        ' "context": {"x": ' + ('"' if inside else "[")
    )
    end = '"}}' if inside else "0]}}"
    room = LARGEST - len((begin + end).encode())
    return f"{begin}{piece * (room // len(piece.encode()))}{end}".encode()


@pytest.mark.timeout(120)  # what takes quadratic time takes hours over so many bytes
@pytest.mark.parametrize("inside", [True, False], ids=["in a text", "as JSON"])
@pytest.mark.parametrize(
    "piece",
    [
        "\\\\",
        "\\",
        '\\"',
        '"',
        "[",
        "[[],",
        "[],",
        '"",',
        "{},",
        '{"a":',
        '["", ',
        "1e5,",
        "9",
        "9,",
        "1.",
        "-",
        "NaN",
        "e+",
        " ",
        "\\u0041",
        "\\\\u0000",
        "a",
        "é",
        "[1," * 20 + "1" + "]" * 20 + ",",
    ],
)
def test_the_largest_record_is_judged_in_bounded_time_and_memory(piece: str, inside: bool) -> None:
    raw = filled(piece, inside=inside)
    tracemalloc.start()
    try:
        result = decode(EventKind.OUTPUT, raw, ORIGIN, microseconds(ARRIVED))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(result, Decoded) or len(result.detail) <= LONGEST_DETAIL
    assert peak < MOST_MEMORY
