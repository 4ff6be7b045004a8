"""Choose which rejected outputs a batch learns from, and what each is held against.

Pure and deterministic. An objective beside SFT learns from what people rejected: KTO from the
rejected answer by itself, DPO from the pair that it makes with a better answer to its prompt.
The rules, in order of weight:

1. Nothing whose prompt or split group is held out, for ever.
2. Nothing that says what an approved row of the same batch says: the two contradict.
3. Of several better answers the newest, which corrects the ones before it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import NamedTuple

from learning.lifecycle import Role


class Objective(StrEnum):
    """What the runs of a model line learn from."""

    SFT = "sft"
    """Approved answers alone."""
    DPO = "dpo"
    """Also pairs: a rejected answer, and an approved one to the same prompt."""
    KTO = "kto"
    """Approved and rejected answers, each by itself."""


class RejectedUse(StrEnum):
    """What becomes of a rejected output in a line that learns from such."""

    FREE = "free"
    """A batch may take it."""
    TAKEN = "taken"
    """A batch has it; when that one makes no version, it may become free again."""
    HELD_OUT = "held_out"
    """Its prompt or its split group judges, so that it never trains."""
    UNFIT = "unfit"
    """A validator complained of it, or the same answer was approved beside it."""


@dataclass(frozen=True)
class Answer:
    """An approved answer that the batch trains on."""

    event_id: int
    task_type: str
    prompt_key: bytes
    text: str


@dataclass(frozen=True)
class Rejected:
    """A rejected output, as far as the choice needs to know it."""

    event_id: int
    task_type: str
    keys: tuple[bytes, ...]
    """Its prompt key first, and the key of its split group when it has one."""
    text: str


class Lesson(NamedTuple):
    """A rejected output that a batch learns from."""

    rejected_id: int
    preferred_id: int | None
    """The better answer of the pair; None where it is learned from by itself."""


class Answers:
    """The approved answers of one batch, by the prompt of their task type."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self._by_prompt: defaultdict[tuple[str, bytes], list[Answer]] = defaultdict(list)
        for answer in sorted(answers, key=lambda one: one.event_id, reverse=True):
            self._by_prompt[answer.task_type, answer.prompt_key].append(answer)

    @property
    def prompts(self) -> Sequence[tuple[str, bytes]]:
        """(task type, prompt key) of each prompt, those of the newest answers first."""
        return list(self._by_prompt)

    def use_of(self, rejected: Rejected, sides: Mapping[bytes, Role]) -> RejectedUse:
        """What becomes of a rejected output when this batch is sealed; FREE: it may be taken.

        `sides` names the side of the split that each of its keys stands on, if any.
        """
        if any(sides.get(key) is Role.HELD_OUT for key in rejected.keys):
            return RejectedUse.HELD_OUT
        if any(answer.text == rejected.text for answer in self._to(rejected)):
            return RejectedUse.UNFIT
        return RejectedUse.FREE

    def lesson(self, rejected: Rejected, objective: Objective) -> Lesson | None:
        """What the batch learns from a rejected output; None: for a pair an answer is missing."""
        if objective is Objective.KTO:
            return Lesson(rejected.event_id, None)
        better = self._to(rejected)
        return Lesson(rejected.event_id, better[0].event_id) if better else None

    def _to(self, rejected: Rejected) -> Sequence[Answer]:
        """The answers to the prompt of a rejected output, the newest first."""
        return self._by_prompt.get((rejected.task_type, rejected.keys[0]), ())


def in_turns(by_prompt: Iterable[Sequence[int]]) -> Iterator[int]:
    """The first of each prompt, then the second of each, and so on.

    So that a prompt that was answered badly a hundred times leaves room for the others.
    """
    for turn in zip_longest(*by_prompt):
        yield from (event_id for event_id in turn if event_id is not None)
