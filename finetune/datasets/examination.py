"""Examine a dataset: what is good, what is bad and why, what is there twice or leaks.

One pass over the file and one over each that it must not leak into. Writes nothing; which
rows to keep is asked of the result by whoever writes (writing.py).
"""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from finetune.datasets.dataset_file import DatasetFile, GoodRow
from finetune.datasets.flaws import BadLine
from finetune.datasets.formats import Example, Format
from finetune.datasets.lengths import Distribution, Lengths
from finetune.datasets.twins import Twins

F = TypeVar("F")

MOST_LISTED = 1_000
"""So many findings of a kind are listed; all are counted."""
NEAR = 0.8
MOST_TASK_TYPES = 1_000
TASK_TYPE_FIELDS = ("task_type", "taskType")


class Twin(NamedTuple):
    """A row that says what an earlier one says."""

    line: int
    of_line: int
    likeness: float
    """In [0, 1]; 1 for an exact duplicate."""


class Likeness(StrEnum):
    """In what way two rows are alike."""

    SAME = "same_row"
    PROMPT = "same_prompt"
    """But for case and white space."""
    NEAR = "near_duplicate"


class Leak(NamedTuple):
    """A row that another file has too, or nearly, or the prompt of it."""

    line: int
    of_file: str
    of_line: int
    how: Likeness


@dataclass(frozen=True)
class Rules:
    """What is looked for."""

    near: float | None = NEAR
    """The likeness from which on rows are near-duplicates, in (0, 1]; None: do not look."""
    token_count: Callable[[str], int] | None = None
    max_length: int | None = None
    """In tokens where they are counted, else in characters."""


@dataclass(frozen=True)
class Findings(Generic[F]):
    """How many there are of a kind, and the first of them."""

    n: int
    listed: Sequence[F]


@dataclass(frozen=True)
class Examination:
    """All that is known of a dataset file."""

    file: str
    format: Format
    near: float | None
    """As in the rules."""
    against: Sequence[str]
    """The files that it was held against."""
    good: int
    bad: Findings[BadLine]
    flaws: Mapping[str, int]
    """Bad lines by flaw."""
    duplicates: Findings[Twin]
    near_duplicates: Findings[Twin]
    repeated_prompts: int
    """Rows whose prompt an earlier row has, whatever the answers are."""
    leaks: Findings[Leak]
    task_types: Mapping[str, int]
    """Rows by their own field `task_type`; empty where no row has it."""
    with_system_prompt: int
    answers_before: int
    """Rows of more than one round."""
    characters: Mapping[str, Distribution]
    """Of prompts, answers and rows as a whole."""
    tokens: Mapping[str, Distribution]
    """The same in tokens of the texts, without a chat template's own; empty if not counted."""
    unwanted: "Unwanted" = field(repr=False, compare=False)


@dataclass(frozen=True)
class Unwanted:
    """For each good row, in the order of the file, whether there is something against it."""

    duplicate: NDArray[np.bool_]
    near_duplicate: NDArray[np.bool_]
    leak: NDArray[np.bool_]


def examine(
    dataset: DatasetFile,
    rules: Rules,
    *,
    against: Sequence[DatasetFile] = (),
    on_bad: Callable[[BadLine], None] = lambda line: None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Examination:
    """Read a file and tell all about it; `on_bad` hears of each bad line when it is found.

    Bad lines of the files in `against` are passed over. Raises DatasetFileError.
    """
    tally = _Tally(rules)
    places = _Places()
    with Twins.opened(near=rules.near) as twins:
        # First, so that of rows that are alike theirs are the ones compared with.
        for other in against:
            places.begin(other.path)
            for row in other.rows():
                if isinstance(row, GoodRow):
                    places.add(row.line)
                    twins.add(row.example)
        places.begin(dataset.path)
        first_own = len(twins)
        for row in dataset.rows(on_bytes):
            if isinstance(row, BadLine):
                tally.bad(row)
                on_bad(row)
            else:
                places.add(row.line)
                twins.add(row.example)
                tally.good(row.example)
        relations = _Relations(twins, places, first_own)
    return Examination(
        file=str(dataset.path),
        format=dataset.format,
        near=rules.near,
        against=[str(other.path) for other in against],
        good=len(twins) - first_own,
        bad=Findings(tally.flaws.total(), tally.bad_lines),
        flaws=dict(sorted(tally.flaws.items())),
        duplicates=relations.duplicates,
        near_duplicates=relations.near_duplicates,
        repeated_prompts=relations.repeated_prompts,
        leaks=relations.leaks,
        task_types=dict(tally.task_types.most_common()),
        with_system_prompt=tally.with_system_prompt,
        answers_before=tally.answers_before,
        characters=tally.characters.distributions(),
        tokens=tally.tokens.distributions() if tally.tokens is not None else {},
        unwanted=relations.unwanted,
    )


class _Places:
    """Where each row stands: 8 bytes a row."""

    def __init__(self) -> None:
        self._files: list[tuple[int, Path]] = []
        self._lines = array("Q")

    def begin(self, path: Path) -> None:
        self._files.append((len(self._lines), path))

    def add(self, line: int) -> None:
        self._lines.append(line)

    def line(self, row: int) -> int:
        return self._lines[row]

    def file(self, row: int) -> str:
        return next(str(path) for begin, path in reversed(self._files) if begin <= row)


class _Sizes:
    """Lengths of prompts, answers and whole rows by one measure."""

    def __init__(self, measure: Callable[[str], int], limit: int | None) -> None:
        self._measure = measure
        self._prompts, self._answers, self._wholes = Lengths(), Lengths(), Lengths(limit)

    def add(self, example: Example) -> None:
        prompt = sum(self._measure(turn["content"]) for turn in example.prompt)
        answer = self._measure(example.answer)
        if example.rejected is not None:
            answer = max(answer, self._measure(example.rejected))
        self._prompts.add(prompt)
        self._answers.add(answer)
        self._wholes.add(prompt + answer)

    def distributions(self) -> Mapping[str, Distribution]:
        return {
            "prompt": self._prompts.distribution(),
            "answer": self._answers.distribution(),
            "row": self._wholes.distribution(),
        }


class _Tally:
    """Counts what each row shows by itself."""

    def __init__(self, rules: Rules) -> None:
        count = rules.token_count
        self.characters = _Sizes(len, rules.max_length if count is None else None)
        self.tokens = _Sizes(count, rules.max_length) if count is not None else None
        self.flaws: Counter[str] = Counter()
        self.bad_lines: list[BadLine] = []
        self.task_types: Counter[str] = Counter()
        self.with_system_prompt = 0
        self.answers_before = 0

    def bad(self, line: BadLine) -> None:
        self.flaws[line.flaw] += 1
        if len(self.bad_lines) < MOST_LISTED:
            self.bad_lines.append(line)

    def good(self, example: Example) -> None:
        self.characters.add(example)
        if self.tokens is not None:
            self.tokens.add(example)
        roles = {turn["role"] for turn in example.prompt}
        self.with_system_prompt += "system" in roles
        self.answers_before += "assistant" in roles
        task_type = stratum_of(example, TASK_TYPE_FIELDS)
        if task_type is not None and (
            task_type in self.task_types or len(self.task_types) < MOST_TASK_TYPES
        ):
            self.task_types[task_type] += 1


def stratum_of(example: Example, fields: Sequence[str]) -> str | None:
    """What the first of some fields that a row has says; None where it says nothing."""
    for name in fields:
        if isinstance(value := example.extra.get(name), str | int):
            return str(value)
    return None


class _Relations:
    """What rows have to do with each other; rows before `first_own` are other files'."""

    def __init__(self, twins: Twins, places: _Places, first_own: int) -> None:
        n_own = len(twins) - first_own
        self._places, self._first_own = places, first_own
        self.unwanted = Unwanted(*(np.zeros(n_own, dtype=np.bool_) for _ in range(3)))
        self._leaks: dict[int, Leak] = {}
        same = twins.same()
        self.duplicates = self._within(same, self.unwanted.duplicate)
        prompts = twins.same_prompt()
        own = np.arange(first_own, len(twins))
        first = _first_own(prompts, first_own)
        self.repeated_prompts = int(np.count_nonzero(first != own))
        for row in np.flatnonzero(prompts[first_own:] < first_own).tolist():
            of = int(prompts[first_own + row])
            is_same = same[first_own + row] < first_own
            self._leak(row, of, Likeness.SAME if is_same else Likeness.PROMPT)
        self.near_duplicates = self._near(twins, same)
        self.leaks = Findings(
            int(np.count_nonzero(self.unwanted.leak)), sorted(self._leaks.values())
        )

    def _within(self, firsts: NDArray[np.int64], found: NDArray[np.bool_]) -> Findings[Twin]:
        first = _first_own(firsts, self._first_own)
        own = np.arange(self._first_own, self._first_own + len(found))
        found |= first != own
        listed = [
            Twin(self._line(row), self._places.line(int(first[row])), 1.0)
            for row in np.flatnonzero(found)[:MOST_LISTED].tolist()
        ]
        return Findings(int(np.count_nonzero(found)), listed)

    def _near(self, twins: Twins, same: NDArray[np.int64]) -> Findings[Twin]:
        listed: dict[int, Twin] = {}
        for earlier, later, alike in twins.near():
            row = later - self._first_own
            if row < 0:
                continue
            if earlier < self._first_own:
                self._leak(row, earlier, Likeness.NEAR)
            elif same[earlier] != same[later] and not self.unwanted.duplicate[row]:
                self.unwanted.near_duplicate[row] = True
                if row in listed or len(listed) < MOST_LISTED:
                    twin = Twin(self._line(row), self._places.line(earlier), round(alike, 3))
                    listed[row] = max(listed.get(row, twin), twin, key=lambda one: one.likeness)
        n = int(np.count_nonzero(self.unwanted.near_duplicate))
        return Findings(n, sorted(listed.values()))

    def _leak(self, row: int, of: int, how: Likeness) -> None:
        if not self.unwanted.leak[row] and len(self._leaks) < MOST_LISTED:
            place = self._places.file(of), self._places.line(of)
            self._leaks[row] = Leak(self._line(row), *place, how)
        self.unwanted.leak[row] = True

    def _line(self, row: int) -> int:
        return self._places.line(self._first_own + row)


def _first_own(firsts: NDArray[np.int64], first_own: int) -> NDArray[np.int64]:
    """For each own row the first own row of its group, where the group's first is another's."""
    own = np.arange(first_own, len(firsts))
    _groups, first_at, group_of = np.unique(
        firsts[first_own:], return_index=True, return_inverse=True
    )
    first: NDArray[np.int64] = own[first_at][group_of]
    return first
