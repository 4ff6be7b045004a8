"""The model line: what is versioned. It owns task types, a base model and one champion."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from learning.errors import LearningError
from learning.preferences import Objective


class TaskTypeClaimedTwiceError(LearningError):
    """Two model lines claim one task type, so its events would have two homes."""

    def __init__(self, task_type: str, first: str, second: str) -> None:
        super().__init__(
            f"task type {task_type!r} is claimed by the lines {first!r} and {second!r}"
        )
        self.task_type, self.first, self.second = task_type, first, second


@dataclass(frozen=True)
class ModelLine:
    """One line of model versions, as configured."""

    name: str
    task_types: frozenset[str]
    base_model: str | None
    """A path or a hub name; None when none is configured yet, so nothing can be trained."""
    provider: str
    training: Mapping[str, Any] = field(default_factory=dict)
    """The provider's training settings; the provider validates them."""
    system_prompts: Mapping[str, str] = field(default_factory=dict)
    """By task type; a task type that is missing trains without a system prompt."""

    @property
    def objective(self) -> Objective:
        """What its runs learn from. Any but SFT has rejected outputs sealed into its batches."""
        return Objective(self.training.get("objective", Objective.SFT))


class ModelLines:
    """The configured lines, and which line owns which task type.

    With a `template`, a task type that no line claims gets a line of its own, made after
    it; without one it is unknown. Raises TaskTypeClaimedTwiceError when two lines claim
    one task type.
    """

    def __init__(self, lines: Iterable[ModelLine], template: ModelLine | None = None) -> None:
        self._lines = {line.name: line for line in lines}
        self._template = template
        self._owner: dict[str, ModelLine] = {}
        for line in self._lines.values():
            for task_type in line.task_types:
                if task_type in self._owner:
                    raise TaskTypeClaimedTwiceError(
                        task_type, self._owner[task_type].name, line.name
                    )
                self._owner[task_type] = line

    def __iter__(self) -> Iterator[ModelLine]:
        return iter(self._lines.values())

    def owner(self, task_type: str) -> ModelLine | None:
        """The line that learns from a task type, or None when the task type is unknown."""
        if (line := self._owner.get(task_type)) is not None:
            return line
        if self._template is None or task_type in self._lines:
            return None
        return replace(self._template, name=task_type, task_types=frozenset({task_type}))

    def owners(self, task_types: Iterable[str]) -> Sequence[ModelLine]:
        """The lines that learn from any of the task types, each once; unknown ones have none."""
        found = (self.owner(task_type) for task_type in task_types)
        return list({line.name: line for line in found if line is not None}.values())

    def get(self, name: str) -> ModelLine | None:
        """The line of that name, or None."""
        if (line := self._lines.get(name)) is not None:
            return line
        line = self.owner(name)
        return line if line is not None and line.name == name else None
