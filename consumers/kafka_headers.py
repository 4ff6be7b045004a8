"""What a Kafka record's headers say of its value."""

from collections.abc import Iterable

from consumers.wire import Undecodable, fault_in_content_type

CONTENT_TYPE = "content-type"
"""The header that names a value's format; without one it is JSON."""


def fault_in_headers(headers: Iterable[tuple[str, bytes | None]]) -> Undecodable | None:
    """What they say against reading the value; the last one counts, as in a JSON object."""
    declared = [value for key, value in headers if key.lower() == CONTENT_TYPE]
    return fault_in_content_type(declared[-1]) if declared else None
