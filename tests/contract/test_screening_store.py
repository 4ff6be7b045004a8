"""Nothing is sealed before it was screened under the rules in force, whoever screens."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection

from daemon.store import Store
from daemon.store.screenings import Passing, Unscreened
from daemon.store.tables import evaluation_examples, screenings
from learning.events import OutputEvent
from learning.facts import EventsScreened
from learning.lifecycle import EventState
from learning.policy import Verdict
from learning.sampling import SplitRules
from learning.screening import Finding, Screened, ScreeningOutcome
from tests.builders import JUDGE, feedback, output, outputs
from tests.contract.driver import AS_SHIPPED, Driver, StoppedClock
from tests.contract.promises import broken_promises

PASSED = Screened(seconds={"syntax": 0.001})
STOPPED = Screened([Finding("secrets", "a token")], seconds={"secrets": 0.002})
YES = Verdict(EventState.QUEUED, "it is fine", by_human=True)


@dataclass
class Rules:
    """The rules in force, by the name of their digest."""

    digest: str = "one"

    def __call__(self) -> str:
        return self.digest


@dataclass
class Suspecting:
    """Has something against some tasks, and notes what it was asked about."""

    tasks: set[str] = field(default_factory=set)
    asked: list[list[str]] = field(default_factory=list)

    def __call__(
        self, tx: Connection, passing: Sequence[Passing], now: datetime
    ) -> Mapping[int, str]:
        self.asked.append([one.event.task_id for one in passing])
        return {one.id: "looks odd" for one in passing if one.event.task_id in self.tasks}


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
def suspicion() -> Suspecting:
    return Suspecting()


@pytest.fixture
async def drive(
    store_url: str, tmp_path: Path, clock: StoppedClock, rules: Rules, suspicion: Suspecting
) -> AsyncIterator[Driver]:
    store = await Store.open(
        store_url,
        artifacts_dir=tmp_path,
        judge=JUDGE,
        clock=clock,
        ruleset=rules,
        suspicion=suspicion,
    )
    try:
        yield Driver(store, clock)
        assert await store.database.read(broken_promises) == []
    finally:
        await store.close()


async def waiting(drive: Driver, size: int = 100, most: int = 100) -> Sequence[Unscreened]:
    return await drive.store.screenings.waiting(drive.line, size, most)


async def screen(drive: Driver, ruleset: str = "one", **others: Screened) -> EventsScreened:
    """Screen what waits; every task that is not named passes."""
    found = {one.id: others.get(one.event.task_id, PASSED) for one in await waiting(drive)}
    return await drive.store.screenings.add(found, ruleset, drive.now)


async def outcomes(drive: Driver) -> dict[int, str]:
    return {row.event_id: row.outcome for row in await drive.rows(screenings)}


async def test_what_was_not_screened_is_not_sealed(drive: Driver) -> None:
    await drive.send(output("a"))
    assert await drive.seal() is None
    await screen(drive)
    assert await drive.seal() is not None
    assert await drive.states() == {"a": "sealed"}


async def test_of_the_oldest_only_those_that_were_screened_are_sealed(drive: Driver) -> None:
    await drive.send(output("a"))
    await screen(drive)
    await drive.send(output("b"))
    await drive.seal()
    assert await drive.states() == {"a": "sealed", "b": "queued"}


async def test_other_rules_ask_for_another_screening(drive: Driver, rules: Rules) -> None:
    await drive.send(output("a"))
    await screen(drive)
    rules.digest = "two"
    assert await drive.seal() is None
    assert [one.event.task_id for one in await waiting(drive)] == ["a"]
    await screen(drive, "two")
    assert await drive.seal() is not None


async def test_a_screening_under_rules_that_changed_meanwhile_does_not_count(
    drive: Driver, rules: Rules
) -> None:
    await drive.send(output("a"))
    rules.digest = "two"
    await screen(drive, "one")
    assert await drive.seal() is None


async def test_no_more_is_screened_than_the_next_batch_needs(drive: Driver) -> None:
    await drive.send(*outputs(range(5)))
    assert [one.event.task_id for one in await waiting(drive, size=3)] == [
        "task-0",
        "task-1",
        "task-2",
    ]
    assert len(await waiting(drive, size=3, most=2)) == 2


async def test_what_a_validator_stops_is_quarantined_and_says_why(drive: Driver) -> None:
    await drive.send(output("a"), output("b", confidence=0.9))
    told = await screen(drive, b=STOPPED)
    event = await drive.event("b")
    assert (event.state, event.reason) == ("quarantined", "secrets: a token")
    assert told.outcomes == {
        ("normalize", ScreeningOutcome.PASSED): 1,
        ("normalize", ScreeningOutcome.STOPPED): 1,
    }
    assert told.complaints == {"secrets": 1}
    assert told.checks == {"syntax": 1, "secrets": 1}
    await drive.seal()
    assert await drive.states() == {"a": "sealed", "b": "quarantined"}


async def test_what_was_found_and_what_it_cost_is_kept(drive: Driver) -> None:
    await drive.send(output("a"))
    await screen(drive, a=STOPPED)
    (row,) = await drive.rows(screenings)
    assert row.findings == [{"validator": "secrets", "message": "a token", "scrubbed": False}]
    assert row.cost == {"secrets": 0.002}


async def test_what_an_operator_releases_is_not_stopped_again(drive: Driver, rules: Rules) -> None:
    await drive.send(output("a"))
    await screen(drive, a=STOPPED)
    event = await drive.event("a")
    await drive.store.queue.judge_by_hand(event.id, YES, "ann", drive.now)
    assert await outcomes(drive) == {event.id: "released"}
    rules.digest = "two"
    assert await waiting(drive) == []
    assert await drive.seal() is not None


async def test_what_was_quarantined_on_arrival_is_screened_after_its_release(
    drive: Driver,
) -> None:
    await drive.send(output("a", output="x" * 2_000))
    event = await drive.event("a")
    assert event.state == "quarantined"
    await drive.store.queue.judge_by_hand(event.id, YES, "ann", drive.now)
    assert await drive.seal() is None
    assert [one.id for one in await waiting(drive)] == [event.id]


async def test_what_was_withdrawn_meanwhile_stays_withdrawn(drive: Driver) -> None:
    await drive.send(output("a"))
    (one,) = await waiting(drive)
    await drive.send(feedback("a", approved=False))
    await drive.store.screenings.add({one.id: STOPPED}, "one", drive.now)
    assert await drive.states() == {"a": "withdrawn"}


async def test_two_daemons_that_screen_the_same_tell_it_once(
    drive: Driver, suspicion: Suspecting
) -> None:
    await drive.send(*outputs(range(3)))
    found = {one.id: PASSED for one in await waiting(drive)}
    told = await asyncio.gather(
        *(drive.store.screenings.add(found, "one", drive.now) for _ in range(2))
    )
    assert sorted(sum(one.outcomes.values()) for one in told) == [0, 3]
    assert suspicion.asked == [["task-0", "task-1", "task-2"]]


async def test_a_screening_and_a_seal_at_once_lose_nothing(drive: Driver) -> None:
    await drive.send(*outputs(range(20)))
    await screen(drive)
    found = dict.fromkeys(await outcomes(drive), STOPPED)
    await asyncio.gather(
        drive.store.screenings.add(found, "two", drive.now), drive.seal(), drive.seal()
    )
    assert set((await drive.states()).values()) in ({"sealed"}, {"quarantined"})


# --- what is suspicious -----------------------------------------------------------------


async def test_what_the_comparison_suspects_is_quarantined(
    drive: Driver, suspicion: Suspecting
) -> None:
    suspicion.tasks = {"b"}
    await drive.send(output("a"), output("b"), output("c"))
    told = await screen(drive, c=STOPPED)
    assert await drive.states() == {"a": "queued", "b": "quarantined", "c": "quarantined"}
    assert (await drive.event("b")).reason == "looks odd"
    assert suspicion.asked == [["a", "b"]]
    assert told.complaints == {"firewall": 1, "secrets": 1}


async def test_each_event_is_compared_once(
    drive: Driver, rules: Rules, suspicion: Suspecting
) -> None:
    await drive.send(output("a"))
    await screen(drive)
    rules.digest = "two"
    await screen(drive, "two")
    assert suspicion.asked == [["a"]]


# --- what is scrubbed -------------------------------------------------------------------


def scrubbed(event: OutputEvent, **texts: str) -> Screened:
    clean = event.model_copy(update=texts)
    return Screened(scrubbed=[Finding("pii", "1 e-mail")], event=clean)


async def test_the_scrubbed_text_is_learned_and_the_received_one_is_kept(drive: Driver) -> None:
    sent = output("a", output="write to ann@corp.de")
    await drive.send(sent)
    await screen(drive, a=scrubbed(sent, output="write to [EMAIL]"))
    batch = await drive.seal()
    assert batch is not None
    (row,) = await drive.store.runs.training_rows(batch.batch_id)
    assert row.event.output == "write to [EMAIL]"
    assert "ann@corp.de" in (await drive.event("a")).payload
    await drive.send(sent)  # the same again is a duplicate still
    assert len(await drive.states()) == 1


async def test_a_frozen_example_is_the_scrubbed_one(drive: Driver) -> None:
    sent = [output(f"{n}", prompt=f"{n}: mail ann@corp.de") for n in range(5)]
    await drive.send(*sent)
    await screen(
        drive,
        "one",
        **{one.task_id: scrubbed(one, prompt=f"{one.task_id}: mail [X]") for one in sent},
    )
    await drive.seal(rules=SplitRules(held_out_share=0.5, starting_share=0.5))
    frozen = [row.messages[0]["content"] for row in await drive.rows(evaluation_examples)]
    assert frozen
    assert all(prompt.endswith(": mail [X]") for prompt in frozen)


async def test_prompts_that_differ_in_what_is_scrubbed_stay_on_one_side(drive: Driver) -> None:
    sent = [output(f"{n}", prompt=f"mail {n}@corp.de", output=f"answer {n}") for n in range(10)]
    await drive.send(*sent)
    clean = {one.task_id: scrubbed(one, prompt="mail [EMAIL]") for one in sent}
    await screen(drive, "one", **clean)
    batch = await drive.seal(rules=AS_SHIPPED)
    assert batch is not None
    assert 0 in (batch.n_train, batch.n_held_out)
