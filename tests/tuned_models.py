"""A plain endpoint that trains, and a chat service that serves what it makes: what tests share.

The endpoint is tests/services/fake_finetune_endpoint.py, the service tests/services/fake_chat.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

BASE: Final = "base-7b"
FAST: Final[Mapping[str, Any]] = {
    "retry_base_seconds": 0.001,
    "retry_max_seconds": 0.01,
    "poll_seconds": 0.001,
}
"""Waits of a mapping that a test can afford."""
KEYED: Final[Mapping[str, Any]] = {"idempotency_header": "Idempotency-Key"}
LISTED: Final[Mapping[str, Any]] = {"lookup": {"path": "/jobs?run_id={run_id}"}}


class Skills(dict[str, float]):
    """Every tuned model is right each time, the base never."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name == BASE or name.startswith("tuned-"))

    def __missing__(self, name: str) -> float:
        return 0.0 if name == BASE else 1.0


def right(messages: Sequence[Mapping[str, str]]) -> str:
    """What people approve: the prompt in capitals."""
    return messages[-1]["content"].upper()
