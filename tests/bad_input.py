"""The table of bad input: what arrives, and the reason that it is a dead letter for.

One table for the decoder (tests/unit/test_wire.py) and for the whole way from a real broker
into the store (tests/acceptance/test_bad_input.py). What only looks bad stands there.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from consumers.wire import Reason
from learning.ports import ID_REUSED

ARRIVED = datetime(2026, 6, 1, 12, tzinfo=UTC)
"""When everything here arrives."""

OUTPUT: Mapping[str, Any] = {
    "producer": "game-server",
    "task_id": "t-1",
    "task_type": "coding",
    "prompt": "Write a loop",
    "output": "while True: pass",
}
FEEDBACK: Mapping[str, Any] = {"producer": "chat", "task_id": "t-1", "task_type": "coding"}


def output(**fields: Any) -> bytes:
    """The bytes of an output."""
    return json.dumps({**OUTPUT, **fields}).encode()


def feedback(**fields: Any) -> bytes:
    """The bytes of feedback."""
    return json.dumps({**FEEDBACK, **fields}).encode()


def with_json(field: str, text: str) -> bytes:
    """An output with one more field, whose value is given as JSON text."""
    return output()[:-1] + f', "{field}": {text}}}'.encode()


BAD_BYTES: Mapping[str, tuple[bytes | None, Reason]] = {
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
    "schema version true": (output(schema_version=True), Reason.UNKNOWN_SCHEMA_VERSION),
    "schema version 1.0": (output(schema_version=1.0), Reason.UNKNOWN_SCHEMA_VERSION),
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
"""Bad whatever the settings, the store and the record around it are."""


class InContext(NamedTuple):
    """A value that is bad because of what stands beside it."""

    value: bytes
    reason: str
    content_type: bytes | None = None


BAD_IN_CONTEXT: Mapping[str, InContext] = {
    "content type of text": InContext(output(), Reason.NOT_JSON_CONTENT, b"text/plain"),
    "content type of Avro": InContext(output(), Reason.NOT_JSON_CONTENT, b"avro/binary"),
    "content type that is no text": InContext(output(), Reason.NOT_JSON_CONTENT, b"\xff\xff"),
    "empty content type": InContext(output(), Reason.NOT_JSON_CONTENT, b""),
    "task type of no line": InContext(output(task_type="juggling"), Reason.UNKNOWN_TASK_TYPE),
    "id reused with another body": InContext(output(event_id="taken", prompt="other"), ID_REUSED),
}
"""Bad where a line for `coding` is the only one, and TAKEN was stored before."""

TAKEN = output(event_id="taken", task_id="taken")
