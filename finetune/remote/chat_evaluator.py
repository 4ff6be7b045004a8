"""Score models that a chat service serves: by likelihood where it is offered, else by answers.

Champion and candidate are always measured in the same way, on the same examples, side by side.
Nothing is decided here (learning/gate.py does), and no failure of the service becomes a score.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune.artifacts import ArtifactError, verify
from finetune.remote.access import ServiceAccess
from finetune.remote.chat_protocol import TokenLikelihood
from finetune.remote.chat_service import ChatLimits, ChatService, Turns
from finetune.remote.model import NotARemoteModelError, name_of
from finetune.remote.scorers import MOST_CHARACTERS, Scorer, exact, scorer_of
from learning.gate import Measure, Score
from learning.ports import JobFailedError, ModelReference

MOST_UNFINISHED: Final = 16
"""Evaluations that failed and may be gone on with."""


class CompareBy(StrEnum):
    """What remote versions are compared by."""

    AUTO = "auto"
    """Likelihood where the service offers it for both models, answers elsewhere."""
    ANSWERS = "answers"


@dataclass(frozen=True)
class ChatRules:
    """How remote versions are measured."""

    compare_by: CompareBy = CompareBy.AUTO
    scorer: str = "chrf"
    """By name; see scorers.py."""
    limits: ChatLimits = field(default_factory=ChatLimits)


@dataclass(frozen=True)
class _Row:
    """One held-out example: what is asked, and the approved answer."""

    prompt: Turns
    approved: str


class _Example(BaseModel):
    """A line of an examples file, which ends with the answer."""

    model_config = ConfigDict(strict=True)

    messages: list[dict[str, str]] = Field(min_length=2)


Known = dict[tuple[str, int], Score]
"""Of one measure: scores by the model's name and the number of the example."""


@dataclass(frozen=True)
class _Progress:
    """How far an evaluation is. Requests cost money: what was answered is not asked again."""

    rows: Sequence[_Row]
    known: Mapping[Measure, Known] = field(
        default_factory=lambda: {measure: {} for measure in Measure}
    )


class _NotOfferedError(Exception):
    """The service does not say how likely a model finds a given text."""


class ChatEvaluator:
    """Implements learning.ports.Evaluator on a chat service.

    Models are asked for at the service of `access`, whatever address their artifacts name:
    a service may move, and the key is for this one.
    """

    def __init__(self, access: ServiceAccess, rules: ChatRules | None = None) -> None:
        """Raises UnknownScorerError and BrokenScorerError."""
        self._access = access
        self._rules = rules if rules is not None else ChatRules()
        self._scorer = scorer_of(self._rules.scorer)
        self._unfinished: dict[Path, _Progress] = {}

    async def score(
        self, models: Mapping[str, ModelReference], examples_file: Path
    ) -> Mapping[str, Sequence[Score]]:
        """See learning.ports.Evaluator. A published artifact is verified before it is believed.

        Called again with the same examples after it failed, it goes on where it was.
        """
        names, rows = await asyncio.to_thread(_read, models, examples_file)
        progress = self._unfinished.pop(examples_file, None)
        if progress is None or progress.rows != rows:
            progress = _Progress(rows)
        try:
            async with ChatService.connect(self._access, self._rules.limits) as service:
                return await self._score(service, names, progress)
        except JobFailedError as error:
            if error.retryable:
                self._unfinished[examples_file] = progress
                for forgotten in list(self._unfinished)[:-MOST_UNFINISHED]:
                    del self._unfinished[forgotten]
            raise

    async def _score(
        self, service: ChatService, names: Mapping[str, str], progress: _Progress
    ) -> Mapping[str, Sequence[Score]]:
        async def by_likelihood(name: str, row: _Row) -> Score:
            found = await service.likelihood(name, row.prompt, row.approved)
            if found is None:
                raise _NotOfferedError
            return _likely(found, row.approved)

        async def by_answer(name: str, row: _Row) -> Score:
            most = self._rules.limits.max_answer_tokens
            answer = await service.answer(name, row.prompt, max_tokens=most)
            return await asyncio.to_thread(_judged, self._scorer, row.approved, answer)

        rows, known = progress.rows, progress.known
        places = asyncio.Semaphore(self._rules.limits.concurrency)
        if self._rules.compare_by is CompareBy.AUTO:
            try:
                # One example first: where nothing is offered, that is all it costs.
                await _on_each(by_likelihood, names, rows[:1], known[Measure.LIKELIHOOD], places)
                return await _on_each(by_likelihood, names, rows, known[Measure.LIKELIHOOD], places)
            except _NotOfferedError:
                pass
        return await _on_each(by_answer, names, rows, known[Measure.ANSWERS], places)


async def _on_each(
    score: Callable[[str, _Row], Awaitable[Score]],
    names: Mapping[str, str],
    rows: Sequence[_Row],
    known: Known,
    places: asyncio.Semaphore,
) -> Mapping[str, Sequence[Score]]:
    """Score all models on each row, the models side by side. The first failure ends it.

    What is known is not asked again, and what is learned becomes known at once.
    """

    async def learn(name: str, index: int, row: _Row) -> None:
        # A place is kept while a request waits to be tried again: so a busy service gets fewer.
        async with places:
            known[name, index] = await score(name, row)

    try:
        async with asyncio.TaskGroup() as group:
            for index, row in enumerate(rows):
                for name in set(names.values()):
                    if (name, index) not in known:
                        group.create_task(learn(name, index, row))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {
        role: [known[name, index] for index in range(len(rows))] for role, name in names.items()
    }


def _read(
    models: Mapping[str, ModelReference], examples_file: Path
) -> tuple[Mapping[str, str], Sequence[_Row]]:
    """What the service calls the models, and the examples. Raises JobFailedError. Blocks."""
    try:
        for model in models.values():
            if model.adapter is not None:
                verify(model.adapter)
        names = {role: name_of(model) for role, model in models.items()}
    except (ArtifactError, NotARemoteModelError) as error:
        raise JobFailedError("bad_model", str(error), retryable=False) from error
    try:
        lines = examples_file.read_bytes().splitlines()
        examples = [_Example.model_validate_json(line).messages for line in lines]
    except (OSError, ValidationError) as error:
        message = f"{examples_file.name} is no file of examples"
        raise JobFailedError("bad_dataset", message, retryable=False) from error
    return names, [_Row(said[:-1], said[-1]["content"]) for said in examples]


def _likely(tokens: Sequence[TokenLikelihood], answer: str) -> Score:
    """As a local evaluation: nats per byte; a match when each token is the most probable one."""
    nats = -sum(min(0.0, token.logprob) for token in tokens)
    return Score(
        loss=nats / max(1, len(answer.encode())), match=all(token.rank == 1 for token in tokens)
    )


def _judged(scorer: Scorer, approved: str, answer: str) -> Score:
    """Raises JobFailedError when the scorer, maybe another package's, does not keep its promise."""
    answer = answer[:MOST_CHARACTERS]
    try:
        score = float(scorer(approved, answer))
    except Exception as error:
        raise JobFailedError("bad_scorer", f"it failed: {error!r}", retryable=False) from error
    if not 0.0 <= score <= 1.0:
        raise JobFailedError(
            "bad_scorer", f"it said {score!r}, which is not from 0 to 1", retryable=False
        )
    return Score(1.0 - score, exact(approved, answer) == 1.0, Measure.ANSWERS)
