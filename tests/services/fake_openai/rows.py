"""What the service's validation says of a training file, as OpenAI documents the formats."""

import json
from typing import Any

ROLES = {"system", "user", "assistant"}


def fault_of(content: bytes, method: str, min_examples: int) -> str | None:
    """Why a file cannot be trained on with a method; None when it can be."""
    rows = content.decode("utf-8").splitlines()
    if len(rows) < min_examples:
        return f"file has {len(rows)} example(s), but must have at least {min_examples} examples"
    check = _pair if method == "dpo" else _conversation
    for number, text in enumerate(rows, 1):
        try:
            row = json.loads(text)
        except ValueError:
            return f"line {number} is not JSON"
        if (fault := check(row)) is not None:
            return f"line {number}: {fault}"
    return None


def _conversation(row: Any) -> str | None:
    if not isinstance(row, dict) or set(row) != {"messages"}:
        return "an example has the key messages, and no other"
    messages = row["messages"]
    return _messages(messages) or (
        None if messages[-1]["role"] == "assistant" else "the last message must be the assistant's"
    )


def _pair(row: Any) -> str | None:
    if not isinstance(row, dict) or set(row) != {
        "input",
        "preferred_output",
        "non_preferred_output",
    }:
        return "a preference has the keys input, preferred_output and non_preferred_output"
    if not isinstance(row["input"], dict) or "messages" not in row["input"]:
        return "input has no messages"
    if (fault := _messages(row["input"]["messages"])) is not None:
        return fault
    for side in ("preferred_output", "non_preferred_output"):
        if _messages(row[side]) or [one["role"] for one in row[side]] != ["assistant"]:
            return f"{side} is one message of the assistant"
    return None


def _messages(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages must be a list, and not empty"
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return "a message has a role and a content"
        if message["role"] not in ROLES:
            return f"unknown role {message['role']!r}"
        if not isinstance(message["content"], str):
            return "a content must be a text"
    return None
