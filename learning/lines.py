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
        self._configured = _configured(lines, template)

    def become(self, other: "ModelLines") -> None:
        """Be what another one is, in one step, for everybody who holds this one."""
        self._configured = other._configured

    def __iter__(self) -> Iterator[ModelLine]:
        return iter(self._configured.by_name.values())

    def owner(self, task_type: str) -> ModelLine | None:
        """The line that learns from a task type, or None when the task type is unknown."""
        now = self._configured
        if (line := now.owners.get(task_type)) is not None:
            return line
        if now.template is None or task_type in now.by_name:
            return None
        return replace(now.template, name=task_type, task_types=frozenset({task_type}))

    def owners(self, task_types: Iterable[str]) -> Sequence[ModelLine]:
        """The lines that learn from any of the task types, each once; unknown ones have none."""
        found = (self.owner(task_type) for task_type in task_types)
        return list({line.name: line for line in found if line is not None}.values())

    def get(self, name: str) -> ModelLine | None:
        """The line of that name, or None."""
        if (line := self._configured.by_name.get(name)) is not None:
            return line
        line = self.owner(name)
        return line if line is not None and line.name == name else None


@dataclass(frozen=True)
class _Configured:
    by_name: Mapping[str, ModelLine]
    owners: Mapping[str, ModelLine]
    template: ModelLine | None


def _configured(lines: Iterable[ModelLine], template: ModelLine | None) -> _Configured:
    by_name = {line.name: line for line in lines}
    owners: dict[str, ModelLine] = {}
    for line in by_name.values():
        for task_type in line.task_types:
            if task_type in owners:
                raise TaskTypeClaimedTwiceError(task_type, owners[task_type].name, line.name)
            owners[task_type] = line
    return _Configured(by_name, owners, template)
