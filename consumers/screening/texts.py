"""The texts of an event that a model learns from, each with a name, and their replacement."""

from collections.abc import Callable, Iterator
from typing import Any

from learning.events import OutputEvent


def texts_of(event: OutputEvent) -> Iterator[tuple[str, str]]:
    """(where, text) of everything that is learned from."""
    if event.messages is not None:
        for number, message in enumerate(event.messages, start=1):
            is_answer = number == len(event.messages)
            yield "the answer" if is_answer else f"message {number}", message.content
        return
    yield "the prompt", event.prompt or ""
    for text in _strings(event.output):
        yield "the answer", text


def replaced(event: OutputEvent, change: Callable[[str], str]) -> OutputEvent:
    """The event with each of these texts changed."""
    if event.messages is not None:
        messages = [
            message.model_copy(update={"content": change(message.content)})
            for message in event.messages
        ]
        return event.model_copy(update={"messages": messages})
    changed = {"prompt": change(event.prompt or ""), "output": _changed(event.output, change)}
    return event.model_copy(update=changed)


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for name, item in value.items():
                yield name
                yield from _strings(item)
        case list():
            for item in value:
                yield from _strings(item)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {change(name): _changed(item, change) for name, item in value.items()}
        case list():
            return [_changed(item, change) for item in value]
    return value
