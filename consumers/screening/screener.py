"""The costly validators, each by name, and which of them an output of a task type has to pass.

To add one: write a module here with a class that has `name` and `check`, and a function
that makes it of the rules of a task type, or says None where they do not ask for it; list
that in BUILT_IN, and write its test. A package outside registers a factory, called without
arguments, under the entry point group `learnd.screeners`.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Protocol

from consumers.screening.banned_patterns import banned_patterns_of
from consumers.screening.in_force import ENTRY_POINTS
from consumers.screening.json_schema import json_schema_of
from consumers.screening.language import language_of
from consumers.screening.pii import pii_of
from consumers.screening.secrets import secrets_of
from consumers.screening.syntax import syntax_of
from learning.events import OutputEvent
from learning.screening import Scrubbed, TaskRules


class Screener(Protocol):
    """Checks one output, in the screening process. It may take its time, up to a limit.

    One that takes longer, ends its process, needs more memory than the process has, or
    answers something else, has something against the output.
    """

    @property
    def name(self) -> str:
        """Stands before its complaint in the reason."""
        ...

    def check(self, event: OutputEvent) -> str | Scrubbed | None:
        """A complaint in words, the output with placeholders, or None when it may train."""
        ...


BUILT_IN: Sequence[Callable[[TaskRules], Screener | None]] = (
    banned_patterns_of,
    json_schema_of,
    syntax_of,
    language_of,
    secrets_of,
    pii_of,
)
"""In the order in which they run, before those from outside. What is taken out by one is not
seen by the next."""


def screeners_of(rules: TaskRules) -> list[Screener]:
    """The validators that some rules ask for."""
    built_in = [make(rules) for make in BUILT_IN]
    found = [one for one in [*built_in, *_outside()] if one is not None]
    return [one for one in found if one.name not in rules.skip]


def _outside() -> list[Screener]:
    return [entry.load()() for entry in entry_points(group=ENTRY_POINTS)]
