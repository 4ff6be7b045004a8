"""`learnd explain`: an event's verdict, who said what, its steps and what came of it, in words."""

from dataclasses import asdict

import pytest

from daemon.explain_screen import story
from daemon.store import Store
from daemon.store.views.explanations import Explanations
from daemon.store.views.lineage import UnreadableIdError
from learning.errors import NotFoundError
from learning.gate import Outcome
from learning.lifecycle import EventState
from learning.policy import Verdict
from tests.builders import feedback as said
from tests.builders import output
from tests.contract.driver import Driver

LONGEST_STORY = 12
"""Lines: a few, for all that one event goes through here."""


async def told(store: Store, task_id: str, drive: Driver) -> list[str]:
    row = await drive.event(task_id)
    by_number = await Explanations(store.database).of(str(row.id))
    by_name = await Explanations(store.database).of(f"{row.producer}/{row.event_id}")
    assert by_number == by_name
    found = asdict(by_number)
    found["lineage"]["event"]["received_at"] = by_number.lineage.event.received_at.isoformat()
    for step in found["steps"]:
        step["at"] = step["at"].isoformat()
    for use in found["lineage"]["uses"]:
        use["sealed_at"] = use["sealed_at"].isoformat()
    lines = list(story(found))
    assert len(lines) <= LONGEST_STORY
    return lines


async def test_an_accepted_event_tells_which_bar_it_cleared_and_what_it_made(
    store: Store, drive: Driver
) -> None:
    await drive.release(output("a", approved=True, confidence=0.9))
    lines = await told(store, "a", drive)
    assert "accepted, and sealed into a batch. Why: approved, confidence 0.9 >= 0.7" in lines[1]
    assert "said yes, with confidence 0.9" in lines[2]
    assert any("took it to train" in line and "made normalize@1.0.1" in line for line in lines)
    assert lines[-1] == "1 version knows it: normalize@1.0.1 (champion)"


async def test_a_held_event_tells_what_it_waits_for(store: Store, drive: Driver) -> None:
    await drive.send(output("a", approved=None, confidence=0.9))
    lines = await told(store, "a", drive)
    assert "held, until somebody says yes or no. Why: no verdict yet" in lines[1]
    assert lines[-1] == "No version knows it."


async def test_a_refused_event_tells_who_refused_it(store: Store, drive: Driver) -> None:
    await drive.send(output("a", approved=None), said("a", approved=False))
    lines = await told(store, "a", drive)
    assert "refused. Why: feedback said it is not approved" in lines[1]
    assert "feedback: 0 yes, 1 no, 0 without a verdict" in lines[2]


async def test_steps_are_told_with_who_took_them_and_why(store: Store, drive: Driver) -> None:
    await drive.send(output("a", approved=None))
    row = await drive.event("a")
    verdict = Verdict(EventState.QUEUED, "I looked at it", by_human=True)
    await store.queue.judge_by_hand(row.id, verdict, "ann", drive.now)
    assert any(
        "held -> queued, by ann: I looked at it" in line for line in await told(store, "a", drive)
    )


async def test_a_refused_candidate_is_told_with_its_outcome(store: Store, drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.REJECT)
    lines = await told(store, "a", drive)
    assert any("(reject), and made normalize@1.0.1-rc.1, refused now" in line for line in lines)


@pytest.mark.parametrize("text", ["77", "studio/none"])
async def test_an_unknown_event_is_said(store: Store, text: str) -> None:
    with pytest.raises(NotFoundError, match="no event"):
        await Explanations(store.database).of(text)


async def test_what_is_no_event_is_answered_with_the_forms(store: Store) -> None:
    with pytest.raises(UnreadableIdError, match="PRODUCER/EVENT_ID"):
        await Explanations(store.database).of("audio@1.0.1")
