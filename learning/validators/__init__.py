"""Validators: cheap checks of one output, each by name.

To add one: write a module here with a class that has `name` and `check`, list it
in `built_in`, and write its test. A package outside registers a factory (called
without arguments) under the entry point group `learnd.validators`.
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import Protocol

from learning.events import OutputEvent
from learning.validators.emptiness import NotEmpty
from learning.validators.length import Length

ENTRY_POINTS = "learnd.validators"
_LONGEST_FAULT = 300
"""Characters of an exception's message that enter a verdict's reason."""


class Validator(Protocol):
    """Checks one output. Pure and quick: it runs for each event before it is stored."""

    @property
    def name(self) -> str:
        """Stands before its complaint in the verdict's reason."""
        ...

    def check(self, event: OutputEvent) -> str | None:
        """A complaint in words, or None when the output may train."""
        ...


def built_in(max_output_characters: int) -> list[Validator]:
    """The validators that ship with learnd, in the order in which they run."""
    return [NotEmpty(), Length(max_output_characters)]


def installed(max_output_characters: int) -> list[Validator]:
    """The built-in ones, and those that other packages registered."""
    outside = [entry.load()() for entry in entry_points(group=ENTRY_POINTS)]
    return [*built_in(max_output_characters), *outside]


def complaints(event: OutputEvent, validators: Iterable[Validator]) -> Sequence[str]:
    """What the validators have against the output, as "name: complaint"; empty when nothing.

    A validator that breaks on an event has something against it: the event must neither
    pass nor stop its partition, on arrival or when feedback has it judged again.
    """
    found = []
    for validator in validators:
        try:
            complaint = validator.check(event)
        except Exception as error:
            complaint = f"broke on it: {type(error).__name__}: {error}"[:_LONGEST_FAULT]
        if complaint is not None:
            found.append(f"{validator.name}: {complaint}")
    return found
