"""The firewall in the store: what it stops is not sealed, and what it remembers outlives it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from daemon.store import Store
from daemon.store import firewall as firewall_store
from daemon.store.firewall import Firewall
from daemon.store.releases import NothingToReleaseError, Which
from daemon.store.screenings import Passing
from daemon.store.tables import (
    events,
    firewall_bands,
    firewall_kinds,
    firewall_memory,
    firewall_stops,
    outputs_over_time,
    transitions,
)
from daemon.store.views.firewall import Firewalls
from learning.events import OutputEvent, prompt_key
from learning.firewall import FirewallRules, Rule
from learning.lifecycle import EventState, Role
from learning.policy import Verdict
from learning.screening import Finding, Screened
from tests.builders import JUDGE, output
from tests.contract.driver import Driver, StoppedClock
from tests.contract.promises import broken_promises

RULES = FirewallRules(max_repeats=2, max_near_repeats=2, remembered=100, min_evidence=32)
RULESET = "rules"


async def opened(url: str, tmp_path: Path, clock: StoppedClock) -> Store:
    return await Store.open(
        url,
        artifacts_dir=tmp_path / "artifacts",
        judge=JUDGE,
        clock=clock,
        ruleset=lambda: RULESET,
        suspicion=Firewall(lambda: RULES),
    )


@pytest.fixture
async def drive(store_url: str, tmp_path: Path, clock: StoppedClock) -> AsyncIterator[Driver]:
    store = await opened(store_url, tmp_path, clock)
    yield Driver(store, clock)
    assert await store.database.read(broken_promises) == []
    await store.close()


def same(n: int, first: int = 0, **fields: Any) -> list[OutputEvent]:
    """Events that say the same under ids of their own."""
    return [
        output(f"same-{number}", **{"prompt": "add one", "output": "two", **fields})
        for number in range(first, first + n)
    ]


def varied(n: int, first: int = 0, **fields: Any) -> list[OutputEvent]:
    """Events that have nothing in common."""
    return [
        output(f"varied-{number}", prompt=f"ask {number * 7919}", output=f"say {number}", **fields)
        for number in range(first, first + n)
    ]


async def screen(drive: Driver, most: int = 50) -> None:
    """Screen all that waits, as the daemon does, with validators that pass everything."""
    screenings = drive.store.screenings
    while waiting := await screenings.waiting(drive.line, 10_000, most):
        await screenings.add({one.id: Screened() for one in waiting}, RULESET, drive.now)


async def count(drive: Driver, table: Any) -> int:
    query = select(func.count()).select_from(table)
    return await drive.store.database.read(lambda tx: tx.execute(query).scalar_one())


async def test_what_is_stopped_is_quarantined_with_its_reason_and_not_sealed(
    drive: Driver,
) -> None:
    await drive.send(*same(4), *varied(2))
    await screen(drive)
    batch = await drive.seal()
    assert batch is not None
    assert await drive.members(batch, Role.TRAIN) == ["same-0", "same-1", "varied-0", "varied-1"]
    stopped = await drive.event("same-2")
    assert stopped.state == EventState.QUARANTINED
    assert stopped.reason.startswith("firewall, repeat: studio sent exactly this 2 times before")
    (first, second) = await drive.rows(firewall_stops)
    assert (first.rule, second.rule, first.producer) == ("repeat", "repeat", "studio")
    assert first.other_id == (await drive.event("same-0")).id


async def test_near_repeats_meet_by_their_bands(drive: Driver) -> None:
    text = " ".join(f"word{n}" for n in range(60))
    near = [
        output(f"near-{n}", prompt=f"{text} and {n}", output=f"{text} so {n}") for n in range(5)
    ]
    await drive.send(*near)
    await screen(drive, most=2)
    states = await drive.states()
    assert [states[f"near-{n}"] for n in range(5)] == ["queued"] * 3 + ["quarantined"] * 2


async def test_the_verdicts_are_the_same_after_a_restart(
    drive: Driver, store_url: str, tmp_path: Path
) -> None:
    await drive.send(*same(2))
    await screen(drive)
    again = Driver(await opened(store_url, tmp_path, drive.clock), drive.clock)
    await again.send(*same(2, first=2))
    await screen(again)
    assert list((await again.states()).values()) == ["queued"] * 2 + ["quarantined"] * 2
    await again.store.close()


async def test_two_daemons_do_not_both_let_the_last_one_pass(
    drive: Driver, store_url: str, tmp_path: Path
) -> None:
    other = Driver(await opened(store_url, tmp_path, drive.clock), drive.clock)
    await drive.send(*same(20))
    await asyncio.gather(screen(drive, most=3), screen(other, most=4))
    states = list((await drive.states()).values())
    assert states.count(EventState.QUEUED) == 2
    await other.store.close()


async def test_parts_of_any_size_give_the_same_verdicts(
    new_store_url: Any, tmp_path: Path, clock: StoppedClock
) -> None:
    found = []
    for most in (1, 7, 100):
        store = await opened(new_store_url(), tmp_path, clock)
        drive = Driver(store, clock)
        await drive.send(*varied(40), *same(5), *varied(40, first=40), *same(3, first=5))
        await screen(drive, most)
        found.append(await drive.states())
        await store.close()
    assert found[0] == found[1] == found[2]


async def test_what_is_remembered_is_bounded(
    drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall_store, "MOST_TASK_TYPES", 2)
    await drive.send(*varied(150))
    await screen(drive)
    assert await count(drive, firewall_kinds) == RULES.remembered
    assert await count(drive, firewall_bands) <= RULES.remembered * 12
    suspicion = Firewall(lambda: RULES)
    for number in range(4):
        name = f"type-{number}"
        await drive.send(output(name, task_type=name))
        row = await drive.event(name)
        passing = _passing(row.id, output(name, task_type=name), drive.now)
        drive.wait(seconds=1)
        await drive.store.database.write(_called(suspicion, [passing], drive.now))
    kept = {row.task_type for row in await drive.rows(firewall_memory)}
    assert kept == {"type-2", "type-3"}
    assert {row.task_type for row in await drive.rows(firewall_kinds)} == kept


def _passing(row_id: int, event: OutputEvent, at: datetime) -> Passing:
    return Passing(row_id, event.producer, event.task_type, "kafka", "t", at, True, event)


def _called(suspicion: Firewall, passing: Sequence[Passing], now: datetime) -> Any:
    def transaction(tx: Connection) -> Any:
        return suspicion(tx, passing, now)

    return transaction


async def test_no_table_of_the_firewall_holds_a_text(drive: Driver) -> None:
    secret = "a most peculiar sentence"
    await drive.send(*same(4, prompt=secret, output=secret))
    await screen(drive)
    for table in (firewall_memory, firewall_kinds, firewall_bands, firewall_stops):
        for row in await drive.rows(table):
            assert "peculiar" not in str(tuple(row))


async def test_an_operator_lets_go_what_a_rule_stopped_and_more_of_it_is_counted(
    drive: Driver,
) -> None:
    await drive.send(*same(6), *same(3, producer="other"))
    await screen(drive)
    which = Which(producer="studio", rule=Rule.REPEAT)
    done = await drive.store.releases.release(which, 3, "it is right", "ann", drive.now)
    assert (done.count, done.more, done.actor) == (3, True, "ann")
    done = await drive.store.releases.release(which, 3, "it is right", "ann", drive.now)
    assert (done.count, done.more) == (1, False)
    with pytest.raises(NothingToReleaseError):
        await drive.store.releases.release(which, 3, "", "ann", drive.now)

    await screen(drive)  # and none of them is stopped again
    batch = await drive.seal()
    assert batch is not None
    members = await drive.members(batch, Role.TRAIN)
    assert members == [*(f"same-{n}" for n in range(6)), "same-0", "same-1"]
    released = await drive.rows(transitions, transitions.c.actor == "ann")
    assert [row.to_state for row in released] == ["queued"] * 4
    assert {row.reason for row in released} == {"it is right"}
    left = await drive.rows(events, events.c.state == EventState.QUARANTINED)
    assert [row.producer for row in left] == ["other"]


async def test_what_is_let_go_was_approved_before_and_is_not_counted_again(drive: Driver) -> None:
    """The teardown holds every count against the history, too."""
    await drive.send(*same(4))
    await screen(drive)
    await drive.store.releases.release(Which(), 1, "", "ann", drive.now)
    yes = Verdict(EventState.QUEUED, "fine", by_human=True)
    await drive.store.queue.judge_by_hand((await drive.event("same-3")).id, yes, "ann", drive.now)

    (counted,) = await drive.rows(outputs_over_time)
    assert (counted.approved, counted.auto_approved) == (4, 0)


async def test_a_release_is_compared_as_the_screening_left_it(drive: Driver) -> None:
    """Further events are held against the scrubbed text, so that is what is remembered."""
    scrubbed = output("same-0", prompt="ask [EMAIL]", output="two")
    await drive.send(*(output(f"same-{n}", prompt="ask a@b.cc", output="two") for n in range(4)))
    screenings = drive.store.screenings
    while waiting := await screenings.waiting(drive.line, 10_000, 1):
        left = {
            one.id: Screened(
                scrubbed=(Finding("pii", "an address"),),
                event=one.event.model_copy(update={"prompt": scrubbed.prompt}),
            )
            for one in waiting
        }
        await screenings.add(left, RULESET, drive.now)
    await drive.store.releases.release(Which(), 3, "", "ann", drive.now)

    kinds = await drive.rows(firewall_kinds)
    assert {row.prompt_key for row in kinds} == {prompt_key(scrubbed)}


async def test_an_approved_one_is_not_stopped_again(drive: Driver) -> None:
    await drive.send(*same(3))
    await screen(drive)
    row = await drive.event("same-2")
    yes = Verdict(EventState.QUEUED, "fine", by_human=True)
    await drive.store.queue.judge_by_hand(row.id, yes, "ann", drive.now)
    await screen(drive)
    assert (await drive.event("same-2")).state == EventState.QUEUED
    with pytest.raises(NothingToReleaseError):
        await drive.store.releases.release(Which(rule=Rule.REPEAT), 3, "", "ann", drive.now)


async def test_the_last_day_is_shown_by_rule_and_producer(drive: Driver) -> None:
    await drive.send(*same(3))
    await screen(drive)
    drive.wait(hours=25)
    await drive.send(*same(4, first=3), *_renamed(same(3), "other"))
    await screen(drive)
    look = await Firewalls(drive.store.database, drive.clock).look()
    assert look.ever == {"repeat": 6}
    (first, second) = look.groups
    assert (first.rule, first.producer, first.count, first.waiting) == ("repeat", "studio", 4, 4)
    assert first.release == "learnd events release --producer studio --rule repeat"
    assert len(first.examples) == 3
    assert (second.producer, second.count) == ("other", 1)
    assert not look.is_cut


def _renamed(sent: Iterable[OutputEvent], producer: str) -> list[OutputEvent]:
    return [
        one.model_copy(update={"producer": producer, "task_id": f"{producer}-{one.task_id}"})
        for one in sent
    ]


async def test_a_rule_that_is_off_stops_nothing(
    store_url: str, tmp_path: Path, clock: StoppedClock
) -> None:
    suspicion = Firewall(lambda: FirewallRules(max_repeats=1, off=frozenset({Rule.REPEAT})))
    store = await Store.open(
        store_url,
        artifacts_dir=tmp_path,
        judge=JUDGE,
        clock=clock,
        ruleset=lambda: RULESET,
        suspicion=suspicion,
    )
    drive = Driver(store, clock)
    await drive.send(*same(5))
    await screen(drive)
    assert set((await drive.states()).values()) == {"queued"}
    await store.close()
