"""Arrivals field by field: what a bulk insert wants, without walking an object for each.

To make an object for each event costs as much as to store its row, so it is made only of the
few that are looked at by themselves.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, compress
from typing import Any, Generic, TypeVar

from learning import short_names
from learning.ports import ArrivalColumns, Columnar, EventKind, JudgedOutput, ReceivedFeedback

A = TypeVar("A", JudgedOutput, ReceivedFeedback)


class Columns(Generic[A]):
    """Arrivals of one kind, in their order."""

    def __init__(self, form: type[A], columns: ArrivalColumns) -> None:
        self._form: type[A] = form
        self._columns = columns

    @classmethod
    def of(cls, form: type[A], groups: Iterable[Sequence[A]]) -> "Columns[A]":
        """All arrivals of some groups, one group after the other."""
        parts = [_columns_of(group) for group in groups if group]
        if len(parts) == 1:
            return cls(form, parts[0])
        if not parts:
            return cls(form, ArrivalColumns([()] * len(form._fields)))
        fields = [list(chain(*each)) for each in zip(*(one.fields for one in parts), strict=True)]
        names = (
            _joined([one.event_names for one in parts]),
            _joined([one.task_names for one in parts]),
        )
        return cls(form, ArrivalColumns(fields, *names))

    def __len__(self) -> int:
        return len(self._columns.fields[0])

    def __iter__(self) -> Iterator[A]:
        """The arrivals as objects."""
        return map(self._form._make, zip(*self._columns.fields, strict=True))

    def __getitem__(self, field: str) -> Sequence[Any]:
        """One field of every arrival."""
        return self._columns.fields[self._form._fields.index(field)]

    def one(self, at: int) -> A:
        """One arrival as an object."""
        found: A = self._form._make(column[at] for column in self._columns.fields)
        return found

    def where(self, wanted: Sequence[bool]) -> "Columns[A]":
        """The wanted ones of them."""
        fields, *names = self._columns
        kept = [None if each is None else list(compress(each, wanted)) for each in names]
        return Columns(
            self._form, ArrivalColumns([list(compress(each, wanted)) for each in fields], *kept)
        )

    @cached_property
    def event_names(self) -> Sequence[int]:
        """What each is found by; see learning.short_names."""
        if self._columns.event_names is not None:
            return self._columns.event_names
        kind = EventKind.OUTPUT if self._form is JudgedOutput else EventKind.FEEDBACK
        return short_names.of_events(kind, self["producer"], self["event_id"])

    @cached_property
    def task_names(self) -> Sequence[int]:
        """What the output of each one's task is found by."""
        if self._columns.task_names is not None:
            return self._columns.task_names
        return short_names.of_tasks(self["task_type"], self["task_id"])


def _columns_of(group: Sequence[A]) -> ArrivalColumns:
    if isinstance(group, Columnar):
        return group.columns()
    return ArrivalColumns(list(zip(*group, strict=True)))


def _joined(parts: Sequence[Sequence[int] | None]) -> Sequence[int] | None:
    """Names of all parts, when all parts have them."""
    known = [part for part in parts if part is not None]
    return list(chain(*known)) if len(known) == len(parts) else None
