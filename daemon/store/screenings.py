"""What stands between the queue and a batch: nothing is sealed before it was screened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection

from learning.events import OutputEvent


@dataclass(frozen=True)
class Passing:
    """A queued event that the validators let pass, about to be cleared for sealing."""

    id: int
    producer: str
    task_type: str
    source: str
    topic: str
    received_at: datetime
    by_human: bool
    """Whether a person's approval stands behind it."""
    event: OutputEvent


class Suspicion(Protocol):
    """Compares events with each other and with the past, and stops those that look wrong."""

    def __call__(
        self, tx: Connection, passing: Sequence[Passing], now: datetime
    ) -> Mapping[int, str]:
        """The reasons in words, by row id, why some of them must wait for an operator.

        Called once for each event, in the order of their ids, in the transaction that clears
        the others for sealing; it has the turn `screening`, so that no other daemon screens
        meanwhile. It may write what it has to remember of those that pass.
        """
        ...
