"""Records that could not become events: look, and try again."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from daemon.api.ports import Operations
from daemon.api.problems import OF_A_CHANGE, problems_of
from daemon.api.requests import Actor, DeadLettersQuery, RowId
from daemon.api.v1 import v1_router
from daemon.store.views.dead_letters import DeadLetterDetail, DeadLetters, DeadLetterSummary
from daemon.store.views.paging import Page
from learning.errors import NotFoundError
from learning.facts import EventsStored


class Replayed(BaseModel):
    """What a dead letter became: counts by `task_type state`, or by reason."""

    outputs: Mapping[str, int]
    feedback: Mapping[str, int]
    dead_letters: Mapping[str, int]
    duplicates: int


def router(dead_letters: DeadLetters, operations: Operations) -> APIRouter:
    """List, show, replay."""
    routes = v1_router("/dead-letters", "dead letters", HTTPStatus.NOT_FOUND)

    @routes.get("")
    async def page(
        query: Annotated[DeadLettersQuery, Query()],
    ) -> Page[DeadLetterSummary, int]:
        """Dead letters, newest first."""
        return await dead_letters.page(
            reason=query.reason, replayed=query.replayed, before=query.before, limit=query.limit
        )

    @routes.get("/{letter_id}")
    async def one(letter_id: RowId) -> DeadLetterDetail:
        """One dead letter with the beginning of its raw bytes."""
        found = await dead_letters.one(letter_id)
        if found is None:
            raise NotFoundError(
                f"no dead letter {letter_id}; `learnd dead-letters list` shows them"
            )
        return found

    @routes.post("/{letter_id}/replay", responses=problems_of(*OF_A_CHANGE))
    async def replay(letter_id: RowId, actor: Actor) -> Replayed:
        """Send it down the path of intake again."""
        return _replayed(await operations.replay(letter_id, actor=actor))

    return routes


def _replayed(stored: EventsStored) -> Replayed:
    return Replayed(
        outputs={" ".join(key): n for key, n in stored.outputs.items()},
        feedback={" ".join(key): n for key, n in stored.feedback.items()},
        dead_letters=stored.dead_letters,
        duplicates=stored.duplicates,
    )
