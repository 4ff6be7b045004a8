"""Joined feedback is digested once: its consequences and its mark are one transaction."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection

from daemon.store import Store
from daemon.store.digest import JoinedFeedback
from learning.facts import EventsExpired, Fact
from learning.lifecycle import EventState, FeedbackState
from tests.builders import JUDGE, output
from tests.builders import feedback as said
from tests.contract.driver import Driver, StoppedClock


@dataclass
class Remembering:
    """A consequence that notes what it was given, and breaks when it is told to."""

    seen: list[JoinedFeedback] = field(default_factory=list)
    broken: bool = False

    def __call__(
        self, tx: Connection, feedback: Sequence[JoinedFeedback], now: datetime
    ) -> Sequence[Fact]:
        if self.broken:
            raise RuntimeError("broken")
        self.seen += feedback
        return [EventsExpired(len(feedback))]


@pytest.fixture
def consequence() -> Remembering:
    return Remembering()


@pytest.fixture
async def drive(
    store_url: str, tmp_path: Path, clock: StoppedClock, consequence: Remembering
) -> AsyncIterator[Driver]:
    store = await Store.open(
        store_url, artifacts_dir=tmp_path, judge=JUDGE, clock=clock, consequences=[consequence]
    )
    yield Driver(store, clock)
    await store.close()


async def test_feedback_is_digested_once_with_its_output(
    drive: Driver, consequence: Remembering
) -> None:
    await drive.send(output("a", confidence=0.9, model_version="normalize@1.0.0"), said("a"))
    n, facts = await drive.store.digest.digest(drive.now)
    assert (n, facts) == (1, [EventsExpired(1)])
    (seen,) = consequence.seen
    assert seen.state is FeedbackState.JOINED
    assert seen.event == said("a")
    assert seen.output.state is EventState.QUEUED
    assert (seen.output.confidence, seen.output.model_version) == (0.9, "normalize@1.0.0")
    assert await drive.store.digest.digest(drive.now) == (0, ())


async def test_feedback_without_its_output_waits_for_it(
    drive: Driver, consequence: Remembering
) -> None:
    await drive.send(said("a"))
    assert await drive.store.digest.digest(drive.now) == (0, ())
    await drive.send(output("a"))
    assert (await drive.store.digest.digest(drive.now))[0] == 1


async def test_late_feedback_is_digested_as_late(drive: Driver, consequence: Remembering) -> None:
    await drive.batch(output("a"))
    await drive.send(said("a", approved=False))
    await drive.store.digest.digest(drive.now)
    assert [one.state for one in consequence.seen] == [FeedbackState.LATE]


async def test_feedback_that_names_several_outputs_is_never_digested(
    drive: Driver, consequence: Remembering
) -> None:
    await drive.send(output("a", event_id="1"), output("a", event_id="2"), said("a"))
    assert await drive.store.digest.digest(drive.now) == (0, ())


async def test_many_are_digested_in_parts_oldest_first(
    drive: Driver, consequence: Remembering
) -> None:
    await drive.send(*(output(str(n)) for n in range(5)), *(said(str(n)) for n in range(5)))
    assert [(await drive.store.digest.digest(drive.now, most=2))[0] for _ in range(4)] == [
        2,
        2,
        1,
        0,
    ]
    assert [one.event.task_id for one in consequence.seen] == list("01234")


async def test_what_breaks_leaves_the_feedback_undigested(
    drive: Driver, consequence: Remembering
) -> None:
    await drive.send(output("a"), said("a"))
    consequence.broken = True
    with pytest.raises(RuntimeError):
        await drive.store.digest.digest(drive.now)
    consequence.broken = False
    assert (await drive.store.digest.digest(drive.now))[0] == 1
