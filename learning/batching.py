"""Decide when a model line's queue becomes a batch, and of what size.

Pure: what is waiting, the rules and the time in; a size and its cause out.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class Trigger(StrEnum):
    """Why a batch was sealed."""

    SIZE = "size"
    FULL = "full"
    AGE = "age"
    FLUSH = "flush"
    IMPORT = "import"
    """A dataset file that was brought in, whole."""
    RETRAIN = "retrain"
    """What tainted versions had learned, less what was forgotten."""


@dataclass(frozen=True)
class BatchRules:
    """Sizes in events; `max_wait` is how long the oldest event may wait for company."""

    batch_size: int = 20
    max_queue_size: int = 100
    max_wait: timedelta = timedelta(minutes=15)


@dataclass(frozen=True)
class LineQueue:
    """What waits in one model line's queue."""

    line: str
    waiting: int
    oldest_waiting: datetime | None
    """Since when the first of them waits here; not when it arrived, which may be days before."""
    busy: bool
    """Whether a batch of the line is sealed and not yet decided."""


@dataclass(frozen=True)
class Due:
    """A batch that should be sealed now: the oldest `size` events."""

    trigger: Trigger
    size: int


def due(queue: LineQueue, rules: BatchRules, now: datetime) -> Due | None:
    """The batch to seal, or None.

    A busy line seals nothing: its events wait in the queue, where a late rejection
    still reaches them. A full queue goes out in one batch of up to `max_queue_size`.
    """
    if queue.busy or queue.waiting == 0:
        return None
    if queue.waiting >= rules.max_queue_size:
        return Due(Trigger.FULL, rules.max_queue_size)
    if queue.waiting >= rules.batch_size:
        return Due(Trigger.SIZE, rules.batch_size)
    if queue.oldest_waiting is not None and now - queue.oldest_waiting >= rules.max_wait:
        return Due(Trigger.AGE, queue.waiting)
    return None


def is_about_to_fill(queue: LineQueue, rules: BatchRules, share: float) -> bool:
    """Whether `share` of a batch waits, in (0, 1]; 0 means never."""
    return share > 0 and not queue.busy and queue.waiting >= share * rules.batch_size
