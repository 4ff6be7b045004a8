"""Bytes from outside -> an event, or the reason why they are none.

Pure, and never raises: whatever a producer sends ends as a `Decoded` or an `Undecodable`.
Knows nothing of policy, lines or storage. A field that is sent twice counts by its last
value, as in every JSON reader; sent in both of its spellings it is an error.
"""

import difflib
import hashlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel, to_snake

from learning.clock import EPOCH, microseconds
from learning.events import Adaptation, FeedbackEvent, FeedbackScores, Message, OutputEvent
from learning.ports import EventKind, Origin

EARLIEST_TIME = microseconds(datetime(2000, 1, 1, tzinfo=UTC))
CLOCK_TOLERANCE = timedelta(days=1) // timedelta(microseconds=1)
"""How far a producer's clock may be ahead of ours, in microseconds."""


class Reason(StrEnum):
    """Why a record is a dead letter: metric labels, and never renamed."""

    EMPTY = "empty"
    """No bytes, or only white space."""
    TOMBSTONE = "tombstone"
    """A null value, which in a compacted topic means "delete": events are not deleted so."""
    TOO_LARGE = "too_large"
    """More bytes than `Limits.max_bytes`."""
    BYTE_ORDER_MARK = "byte_order_mark"
    """Begins with a UTF-8 or UTF-16 byte order mark, which JSON does not allow."""
    BAD_UTF8 = "bad_utf8"
    """The bytes are not UTF-8 text."""
    NULL_CHARACTER = "null_character"
    """U+0000, raw or escaped, anywhere: PostgreSQL and many tools cannot keep it."""
    NOT_JSON = "not_json"
    """Not one JSON value: cut off, followed by more, a lone surrogate, NaN, or a number
    that no double can hold."""
    NOT_JSON_CONTENT = "not_json_content"
    """A `content-type` header that names something else than JSON."""
    NOT_AN_OBJECT = "not_an_object"
    """JSON, but a list, text, number, true, false or null."""
    TOO_DEEP = "too_deep"
    """Objects and arrays nested deeper than `Limits.max_depth`."""
    INVALID = "invalid"
    """An object that breaks the contract: a missing, misspelt or wrong field."""
    UNKNOWN_SCHEMA_VERSION = "unknown_schema_version"
    """A `schema_version` that this release does not read."""
    IMPLAUSIBLE_TIME = "implausible_time"
    """A timestamp before 2000, or more than a day after the arrival."""
    BATCH_TOO_LARGE = "batch_too_large"
    """Records that were compressed together, and inflate to more than the limit."""
    UNREADABLE_BATCH = "unreadable_batch"
    """Records that were sent together, and cannot be inflated or told apart."""
    DAMAGED_BATCH = "damaged_batch"
    """Records that were sent together, and whose checksum is wrong: Kafka's log is damaged."""
    UNKNOWN_TASK_TYPE = "unknown_task_type"
    """A task type that no model line owns (decided in consumers/ingest.py)."""


@dataclass(frozen=True)
class Limits:
    """What is refused unread: more bytes, or deeper nesting (the event itself is level 1)."""

    max_bytes: int = 1_000_000
    max_depth: int = 64


STANDARD_LIMITS = Limits()


class Decoded(NamedTuple):
    """An event as it was read."""

    event_id: str
    """As sent, or derived from bytes and origin."""
    event: OutputEvent | FeedbackEvent
    sent_at: int | None
    """By the sender's clock, in microseconds since 1970; None when it does not say."""


@dataclass(frozen=True)
class Undecodable:
    """Why the bytes are no event. `detail` shows at most about 100 characters of them."""

    reason: Reason
    detail: str


TOMBSTONE = Undecodable(Reason.TOMBSTONE, "the record has a key but a null value")
_NULL_CHARACTER = Undecodable(Reason.NULL_CHARACTER, "there is a U+0000 in it")

_SHOWN_FAULTS = 3
_SHOWN_NAME = 24
_SHOWN_VALUE = 16

# The validators themselves: `model_validate_json` is one more call for the same.
_read_output: Callable[[bytes], OutputEvent] = OutputEvent.__pydantic_validator__.validate_json
_read_feedback: Callable[[bytes], FeedbackEvent] = (
    FeedbackEvent.__pydantic_validator__.validate_json
)
_LARGEST = sys.float_info.max
_JSON_TYPES = (b"application/json", b"text/json")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_NULL_ESCAPE = rb"\u0000"
_ESCAPED_NULL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# Possessive, so that a hostile text cannot make them take quadratic time.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_NUMBER = re.compile(r"\d[\d.]*+(?:[eE]\+?\d++)?+")


def decode(
    kind: EventKind,
    raw: bytes | None,
    origin: Origin,
    received_at: int,
    limits: Limits = STANDARD_LIMITS,
) -> Decoded | Undecodable:
    """Read one record strictly, straight from its bytes. Never raises.

    `received_at` is in microseconds since 1970.

    Most records are good, so the parser goes first, and only what it refuses, or could
    have let through, is looked into: this is the hottest function of the intake.
    """
    if raw is None:
        return TOMBSTONE
    if len(raw) > limits.max_bytes:
        return Undecodable(
            Reason.TOO_LARGE, f"{len(raw):,} bytes, at most {limits.max_bytes:,} are read"
        )
    # The short search is the quick one: few texts escape anything.
    if b"\\" in raw and _NULL_ESCAPE in raw and _ESCAPED_NULL.search(raw):
        return _NULL_CHARACTER
    try:
        event = _read_output(raw) if kind is EventKind.OUTPUT else _read_feedback(raw)
    except ValidationError as error:
        return (
            _fault_in_bytes(raw)
            or _fault_in_text(raw.decode(), limits)
            or _refusal(kind, error.errors(include_url=False, include_context=False))
        )
    if not _is_sound(event, limits.max_depth):
        fault = _fault_in_text(raw.decode(), limits)
        if fault is not None:
            return fault
    timestamp, sent_at = event.timestamp, None
    if timestamp is not None:
        sent_at = microseconds(timestamp)
        if not EARLIEST_TIME <= sent_at <= received_at + CLOCK_TOLERANCE:
            arrived = EPOCH + timedelta(microseconds=received_at)
            return Undecodable(
                Reason.IMPLAUSIBLE_TIME,
                f"timestamp {timestamp.isoformat()}, arrived {arrived.isoformat()}",
            )
    return Decoded(event.event_id or _derived_id(raw, origin), event, sent_at)


def fault_in_content_type(content_type: bytes | None) -> Undecodable | None:
    """What a record's `content-type` header says against reading it; None: nothing.

    Parameters such as a charset are not looked at: whether it is UTF-8, the bytes tell.
    """
    if content_type is None:
        return None
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type in _JSON_TYPES or media_type.endswith(b"+json"):
        return None
    shown = _shown(content_type.decode("utf-8", errors="replace"))
    return Undecodable(Reason.NOT_JSON_CONTENT, f"its content-type is {shown}, not JSON")


def _derived_id(raw: bytes, origin: Origin) -> str:
    """The same for the same bytes at the same place, so that reading twice is harmless."""
    place = repr((origin.source, origin.topic, origin.partition, origin.offset))
    return "derived:" + hashlib.blake2b(place.encode() + raw, digest_size=16).hexdigest()


def _fault_in_bytes(raw: bytes) -> Undecodable | None:
    if not raw.strip():
        return Undecodable(Reason.EMPTY, f"{len(raw)} bytes, none of them visible")
    if raw.startswith(_MARKS):
        return Undecodable(Reason.BYTE_ORDER_MARK, "send UTF-8 without a byte order mark")
    if b"\x00" in raw:
        return _NULL_CHARACTER
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return Undecodable(Reason.BAD_UTF8, f"byte {error.start} is not UTF-8: {error.reason}")
    return None


def _is_sound(event: OutputEvent | FeedbackEvent, max_depth: int) -> bool:
    """Whether the parts that may hold any JSON are flat enough, and their numbers finite."""
    if isinstance(event, FeedbackEvent):
        return True
    output = event.output
    if type(output) is not str and output is not None and not _are_sound((output,), max_depth):
        return False
    return not event.context or _are_sound((event.context,), max_depth)


def _are_sound(parts: Iterable[Any], levels: int) -> bool:
    """Whether JSON values that lie in some levels of others are."""
    for part in parts:
        kind = type(part)
        if kind is str or part is None:
            continue
        if kind is int or kind is float or kind is bool:
            if not -_LARGEST <= part <= _LARGEST:
                return False
        elif levels <= 1 or not _are_sound(part.values() if kind is dict else part, levels - 1):
            return False
    return True


def _fault_in_text(text: str, limits: Limits) -> Undecodable | None:
    """What the parser may let through: deep nesting, and numbers that become infinite."""
    structure = _STRING.sub('""', text)
    depth = 0
    for bracket in _BRACKET.finditer(structure):
        depth += 1 if bracket.group() in "[{" else -1
        if depth > limits.max_depth:
            return Undecodable(
                Reason.TOO_DEEP, f"nested deeper than {limits.max_depth} objects and arrays"
            )
    if "NaN" in structure or "Infinity" in structure:
        return Undecodable(Reason.NOT_JSON, "NaN and Infinity are not JSON")
    for number in _NUMBER.finditer(structure):
        # More than one dot is no number; the parser will say so.
        if number.group().count(".") <= 1 and float(number.group()) == math.inf:
            return Undecodable(Reason.NOT_JSON, "a number is too large for a 64-bit float")
    return None


def _refusal(kind: EventKind, faults: Sequence[Any]) -> Undecodable:
    first = faults[0]
    if first["type"] == "json_invalid":
        message = first["msg"].removeprefix("Invalid JSON: ")
        too_deep = message.startswith("recursion limit")
        return Undecodable(Reason.TOO_DEEP if too_deep else Reason.NOT_JSON, message)
    if first["type"] == "model_type" and not first["loc"]:
        return Undecodable(Reason.NOT_AN_OBJECT, f"the root is {_shown(first['input'])}")
    for fault in faults:
        if fault["loc"] in (("schema_version",), ("schemaVersion",)):
            return Undecodable(
                Reason.UNKNOWN_SCHEMA_VERSION,
                f"schema_version {_shown(fault['input'])}; this release reads 1",
            )
    told = dict(_told(kind, fault) for fault in faults)
    words = [f"{path}: {message}" if path else message for path, message in told.items()]
    more = f"; and {len(words) - _SHOWN_FAULTS} more" if len(words) > _SHOWN_FAULTS else ""
    return Undecodable(Reason.INVALID, "; ".join(words[:_SHOWN_FAULTS]) + more)


def _told(kind: EventKind, fault: Any) -> tuple[str, str]:
    """The field's path and what is wrong with it; one line for all branches of a union."""
    loc = fault["loc"]
    if loc[:1] == ("output",):
        if isinstance(fault["input"], str):
            return "output", "the text is too long"
        return "output", f"must be text, an object or an array, got {_shown(fault['input'])}"
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part[:_SHOWN_NAME]}" for part in loc
    ).removeprefix(".")
    if fault["type"] == "extra_forbidden":
        return path, f"unknown field{_hint(kind, loc[-1])}"
    if fault["type"] == "missing":
        return to_snake(path), "is required"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] == "value_error":
        return path, message
    return path, f"{message}, got {_shown(fault['input'])}"


def _hint(kind: EventKind, name: str) -> str:
    names = set(_names(kind))
    if name in names:
        return ", or a known one in both of its spellings"
    close = difflib.get_close_matches(name[:64], names, n=1, cutoff=0.75)
    if close:
        return f", did you mean {close[0]}?"
    other = EventKind.FEEDBACK if kind is EventKind.OUTPUT else EventKind.OUTPUT
    if name in set(_names(other)):
        return f", but one of {other} events"
    return ""


def _names(kind: EventKind) -> Iterator[str]:
    """Every field name of a kind of event and of its parts, in both spellings."""
    models: tuple[type[BaseModel], ...] = (
        (OutputEvent, Message)
        if kind is EventKind.OUTPUT
        else (FeedbackEvent, FeedbackScores, Adaptation)
    )
    for model in models:
        for name in model.model_fields:
            yield name
            yield to_camel(name)


def _shown(value: object) -> str:
    """A glimpse of an input value, short whatever it is."""
    match value:
        case str():
            return repr(value if len(value) <= _SHOWN_VALUE else value[:_SHOWN_VALUE] + "…")
        case None | bool() | int() | float():
            return str(value)[:_SHOWN_VALUE]
        case list():
            return "an array"
        case _:
            return "an object"
