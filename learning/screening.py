"""What screening is about: the rules in force, what a validator found, what became of an event.

Pure. The costly validators are in consumers/screening/, and run in a process of their own;
what they said is stored by daemon/store/screenings.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from learning.errors import LearningError
from learning.events import OutputEvent, digest

AUTO = "auto"
"""Look for code where it is marked as such."""
OFF = "off"
CODE_TASK_TYPES = frozenset({"coding", "game", "website"})
"""Whose code is looked at, unless the configuration says otherwise."""
REGEX = "re:"
"""What a banned pattern begins with that is a regular expression."""


class PiiMode(StrEnum):
    """What is done about an output with personal data."""

    HOLD = "hold"
    SCRUB = "scrub"
    OFF = "off"


class ScreeningOutcome(StrEnum):
    """What became of an event when it was screened."""

    PASSED = "passed"
    SCRUBBED = "scrubbed"
    """It passed, and is learned from with placeholders in place of what it must not teach."""
    STOPPED = "stopped"
    """A validator, or the comparison with other events, has something against it."""
    RELEASED = "released"
    """It was stopped, and an operator let it pass."""


CLEARED = (ScreeningOutcome.PASSED, ScreeningOutcome.SCRUBBED)
"""Under the rules that they were screened under. RELEASED is, under whatever rules."""


@dataclass(frozen=True)
class TaskRules:
    """Which costly validators an output of one task type has to pass."""

    syntax: str = OFF
    """`auto`, `off`, or the language that every answer is written in."""
    json_schema: Mapping[str, Any] | None = None
    languages: Sequence[str] = ()
    """ISO 639-1 codes of the natural languages that are expected; none: any."""
    banned_patterns: Sequence[str] = ()
    secrets: bool = True
    pii: PiiMode = PiiMode.SCRUB
    phone_region: str | None = None
    """Where numbers without a country code are at home; None: such are no phone numbers."""
    skip: Sequence[str] = ()
    """Names of validators that it goes without."""


@dataclass(frozen=True)
class ScreeningRules:
    """The rules in force for every task type."""

    default: TaskRules = TaskRules()
    task_types: Mapping[str, TaskRules] = field(default_factory=dict)
    """Those that differ."""
    enabled: bool = True
    seconds: float = 2.0
    """For one validator and one event."""

    def of(self, task_type: str) -> TaskRules:
        """The rules for a task type."""
        return self.task_types.get(task_type, self.default)

    def digest(self, validators: str = "") -> str:
        """The same for rules by which every event fares the same; 32 characters.

        `validators` names the code that applies them. How long it may take is no part of it.
        """
        said = {
            "enabled": self.enabled,
            "default": asdict(self.default),
            "task_types": {name: asdict(rules) for name, rules in self.task_types.items()},
            "validators": validators,
        }
        return digest(json.dumps(said, sort_keys=True)).hex()


@dataclass(frozen=True)
class Scrubbed:
    """A validator lets an output pass with placeholders in some places."""

    event: OutputEvent
    what: str
    """In words, without what was there."""


@dataclass(frozen=True)
class Finding:
    """What a validator has against an output, or what it scrubbed."""

    validator: str
    message: str

    def __str__(self) -> str:
        return f"{self.validator}: {self.message}"


@dataclass(frozen=True)
class Screened:
    """What the validators say of one output."""

    complaints: Sequence[Finding] = ()
    scrubbed: Sequence[Finding] = ()
    event: OutputEvent | None = None
    """What is learned from instead, when something was scrubbed."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each validator took."""

    @property
    def outcome(self) -> ScreeningOutcome:
        """What becomes of the output, as far as the validators are concerned."""
        if self.complaints:
            return ScreeningOutcome.STOPPED
        return ScreeningOutcome.PASSED if self.event is None else ScreeningOutcome.SCRUBBED

    @property
    def reason(self) -> str:
        """The complaints in words."""
        return "; ".join(map(str, self.complaints))


class CannotScreenError(LearningError):
    """The validators cannot be run now, so that nothing can be sealed; try again."""
