"""Two daemons write to one database at once: whatever they do together has one effect.

The first writer has done its part and not committed yet when the second one begins, which
is where most is to be lost; the storm at the end mixes everything. After each test all
promises are checked (tests/contract/conftest.py).
"""

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, text, update

from daemon.store import Store
from daemon.store.database import Database
from daemon.store.leases import Tenancy
from daemon.store.queue import UnknownEventError, VerdictRefusedError
from daemon.store.registry import PromotionRefusedError
from daemon.store.tables import (
    batch_members,
    dead_letters,
    evaluation_examples,
    events,
    feedback,
    run_leases,
)
from learning.batching import Trigger
from learning.budget import Budget, Caps, Price
from learning.errors import IllegalMoveError
from learning.events import FeedbackEvent, OutputEvent, prompt_key
from learning.gate import Outcome
from learning.lifecycle import EventState, FeedbackState, Role
from learning.lines import ModelLine
from learning.policy import Verdict
from learning.ports import (
    Block,
    ChampionMovedError,
    Hold,
    LeaseLostError,
    PositionFencedError,
    PositionMove,
)
from learning.sampling import SplitRules
from tests.builders import JUDGE, LONG_AGO, block, dead_letter, later, output, outputs
from tests.builders import feedback as feedback_on
from tests.contract.driver import ALL_TRAIN, Driver, StoppedClock

T = TypeVar("T")

ARCADE = ModelLine("arcade", frozenset({"game"}), "tiny", "scripted")
ALL_HELD_OUT = SplitRules(held_out_share=1.0, starting_share=1.0, replay_share=0.0)
YES = Verdict(EventState.QUEUED, "yes", by_human=True)


class HeldDatabase(Database):
    """While it is held, a write is done and waits with its commit until it is let go."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._done = threading.Event()
        self._may_commit = threading.Event()
        self._may_commit.set()

    async def write(
        self,
        transaction: Callable[[Connection], T],
        *,
        committed: Callable[[], None] = lambda: None,
    ) -> T:
        """See Database."""

        def done_but_not_committed(tx: Connection) -> T:
            result = transaction(tx)
            self._done.set()
            self._may_commit.wait()
            return result

        return await super().write(done_but_not_committed, committed=committed)

    @contextlib.asynccontextmanager
    async def held(self, writing: Awaitable[T]) -> AsyncIterator["asyncio.Future[T]"]:
        """`writing` has done its part inside the block, and commits at its end."""
        self._done.clear()
        self._may_commit.clear()
        task = asyncio.ensure_future(writing)
        try:
            await asyncio.to_thread(self._done.wait)
            yield task
        finally:
            self._may_commit.set()
            await asyncio.wait([task])


@pytest.fixture
async def first(store_url: str, tmp_path: Path, clock: StoppedClock) -> AsyncIterator[Driver]:
    """Another daemon on the same database, whose commits can be held back."""
    database = HeldDatabase(store_url)
    await database.migrate()
    yield Driver(
        Store.on(
            database,
            artifacts_dir=tmp_path / "artifacts",
            judge=JUDGE,
            clock=clock,
            tenancy=Tenancy(owner="first", node="first"),
        ),
        clock,
    )
    await database.close()


@pytest.fixture
def second(drive: Driver) -> Driver:
    """The daemon that comes second."""
    return drive


Race = Callable[[Awaitable[Any], Awaitable[Any]], Awaitable[list[Any]]]


@pytest.fixture
def race(first: Driver, second: Driver) -> Race:
    """What became of two writings: the first commits when the second waits for it, or is done."""
    held = first.store.database
    assert isinstance(held, HeldDatabase)

    def someone_waits(tx: Connection) -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return bool(tx.execute(text(query)).scalar_one())

    async def run(one: Awaitable[Any], other: Awaitable[Any]) -> list[Any]:
        async with held.held(one) as leading:
            following = asyncio.ensure_future(other)
            if held.url.startswith("sqlite"):
                await asyncio.sleep(0)  # it cannot begin before the first has committed
            else:
                while not following.done():
                    if await second.store.database.read(someone_waits):
                        break
        return list(await asyncio.gather(leading, following, return_exceptions=True))

    return run


# --- arrivals ---------------------------------------------------------------------------


async def test_feedback_that_arrives_beside_its_output_is_joined(
    first: Driver, second: Driver, race: Race
) -> None:
    await race(first.send(output(approved=None)), second.send(feedback_on()))

    assert await second.states() == {"task-1": "queued"}
    (row,) = await second.rows(feedback)
    assert row.state == FeedbackState.JOINED


async def test_an_output_that_arrives_beside_its_feedback_is_joined(
    first: Driver, second: Driver, race: Race
) -> None:
    await race(first.send(feedback_on(approved=False)), second.send(output()))

    assert await second.states() == {"task-1": "withdrawn"}
    (row,) = await second.rows(feedback)
    assert row.state == FeedbackState.JOINED


async def test_two_people_who_answer_at_once_are_both_heard(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(output(approved=None))

    await race(first.send(feedback_on(approved=True)), second.send(feedback_on(approved=False)))

    assert (await second.event("task-1")).state == EventState.WITHDRAWN
    assert {row.state for row in await second.rows(feedback)} == {FeedbackState.JOINED}


async def test_two_outputs_of_one_task_share_feedback_that_waited_once(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(feedback_on())

    await race(
        first.send(output(event_id="one", approved=None)),
        second.send(output(event_id="two", approved=None)),
    )

    assert sorted(row.state for row in await second.rows(events)) == ["held", "queued"]


async def test_the_same_block_from_two_sides_is_stored_once(
    first: Driver, second: Driver, race: Race
) -> None:
    arrivals: list[OutputEvent | FeedbackEvent] = [
        *outputs(range(3)),
        feedback_on("task-1"),
        feedback_on("elsewhere"),
    ]

    stored = await race(first.send(*arrivals), second.send(*arrivals))

    assert [sum(one.outputs.values()) for one in stored] == [3, 0]
    assert [one.duplicates for one in stored] == [0, 5]
    assert len(await second.rows(events)) == 3
    assert await second.rows(dead_letters) == []


async def test_the_same_ids_in_another_order_are_stored_once(
    first: Driver, second: Driver, race: Race
) -> None:
    there, back = outputs(range(6)), outputs(reversed(range(6)))

    stored = await race(first.send(*there), second.send(*back))

    assert [sum(one.outputs.values()) for one in stored] == [6, 0]


async def test_what_another_daemon_stored_is_passed_over_block_after_block(
    first: Driver, second: Driver
) -> None:
    """The second has not seen it, and goes the quick way again and again in between."""
    for number in range(12):
        old, new = output(f"old-{number}"), output(f"new-{number}")
        assert (await first.send(old)).duplicates == 0
        stored = await second.send(new, old)
        assert (stored.outputs, stored.duplicates) == ({("normalize", EventState.QUEUED): 1}, 1)
        assert (await second.send(output(f"other-{number}"))).duplicates == 0
    assert len(await second.rows(events)) == 36


async def test_a_known_id_with_another_body_is_told_apart_whichever_way_it_is_found(
    first: Driver, second: Driver
) -> None:
    await first.send(output("one", event_id="e", output="this"))
    differs = output("one", event_id="e", output="that")
    for _ in range(3):  # by the detour, then as one that came lately
        stored = await second.send(output("one", event_id="e", output="this"), differs)
        assert stored.duplicates >= 1
    assert [row.reason for row in await second.rows(dead_letters)] == ["id_reused"]


async def test_an_id_that_two_bodies_use_at_once_has_one_of_them(
    first: Driver, second: Driver, race: Race
) -> None:
    await race(
        first.send(output(event_id="e", output="this")),
        second.send(output(event_id="e", output="that")),
    )

    assert len(await second.rows(events)) == 1
    (letter,) = await second.rows(dead_letters)
    assert letter.reason == "id_reused"


async def test_a_dead_letter_that_two_replay_becomes_one_event(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.store.intake.append(block(output(), dead_letter()))
    replayed = block(output("replayed"), at=second.now)

    stored = await race(
        first.store.intake.replay(1, replayed), second.store.intake.replay(1, replayed)
    )

    assert [sum(one.outputs.values()) for one in stored] == [1, 0]


# --- positions --------------------------------------------------------------------------


def read_up_to(claimed: Any, offset: int, *arrivals: OutputEvent) -> Block:
    return block(*arrivals, move=PositionMove(claimed, offset, bytes(16)))


async def test_who_claims_while_the_last_owner_writes_goes_on_after_it(
    first: Driver, second: Driver, race: Race
) -> None:
    (mine,) = await first.store.intake.claim("test", [("learnd.outputs", 0)])

    _, (yours,) = await race(
        first.store.intake.append(read_up_to(mine, 10, output())),
        second.store.intake.claim("test", [("learnd.outputs", 0)]),
    )

    assert yours.next_offset == 10
    with pytest.raises(PositionFencedError):
        await first.store.intake.append(read_up_to(replace(mine, next_offset=10), 20))


async def test_the_last_owner_cannot_write_once_another_has_claimed(
    first: Driver, second: Driver, race: Race
) -> None:
    (yours,) = await second.store.intake.claim("test", [("learnd.outputs", 0)])

    _, refused = await race(
        first.store.intake.claim("test", [("learnd.outputs", 0)]),
        second.store.intake.append(read_up_to(yours, 10, output())),
    )

    assert isinstance(refused, PositionFencedError)
    assert await second.rows(events) == []


async def test_one_claim_moves_its_position_once(first: Driver, second: Driver, race: Race) -> None:
    (claimed,) = await first.store.intake.claim("test", [("learnd.outputs", 0)])

    _, refused = await race(
        first.store.intake.append(read_up_to(claimed, 10, output("a"))),
        second.store.intake.append(read_up_to(claimed, 20, output("b"))),
    )

    assert isinstance(refused, PositionFencedError)
    assert await second.states() == {"a": "queued"}


async def test_two_who_claim_the_same_in_another_order_do_not_wait_for_each_other(
    first: Driver, second: Driver, race: Race
) -> None:
    wanted = [("learnd.outputs", number) for number in range(4)]

    ours, theirs = await race(
        first.store.intake.claim("test", wanted), second.store.intake.claim("test", wanted[::-1])
    )

    assert [(one.topic, one.partition) for one in theirs] == wanted[::-1]
    assert {one.epoch for one in ours} == {1}
    assert {one.epoch for one in theirs} == {2}


# --- the queue --------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", [Trigger.SIZE, Trigger.FLUSH])
async def test_what_one_seals_the_other_does_not(
    first: Driver, second: Driver, race: Race, trigger: Trigger
) -> None:
    await second.send(*outputs(range(5)))

    one, other = await race(
        first.seal(size=5, trigger=trigger), second.seal(size=5, trigger=trigger)
    )

    assert one.n_train == 5
    assert other is None


async def test_two_flushes_at_once_make_two_batches_when_there_is_more(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(*outputs(range(5)))

    one, other = await race(first.seal(size=3), second.seal(size=3))

    assert (one.n_train, other.n_train) == (3, 2)


async def test_a_prompt_is_on_one_side_though_two_lines_split_it_at_once(
    first: Driver, second: Driver, race: Race
) -> None:
    prompts = [f"prompt {number}" for number in range(3)]
    await second.send(
        *(output(f"a {prompt}", prompt=prompt) for prompt in prompts),
        *(output(f"b {prompt}", prompt=prompt, task_type="game") for prompt in prompts),
    )

    one, other = await race(
        first.seal(rules=ALL_TRAIN), second.seal(line=ARCADE, rules=ALL_HELD_OUT)
    )

    assert (one.n_train, one.n_held_out) == (3, 0)
    assert (other.n_train, other.n_held_out) == (3, 0)


async def test_an_import_beside_a_seal_freezes_nothing_that_trains(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(output())
    example = output()

    _, imported = await race(
        first.seal(rules=ALL_TRAIN),
        second.store.queue.import_held_out(
            [(1, example, prompt_key(example))], "normalize", "ann", second.now
        ),
    )

    assert imported.added == 0
    assert await second.rows(evaluation_examples) == []


async def test_a_rejection_beside_a_seal_comes_late(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(output())

    await race(first.seal(), second.send(feedback_on(approved=False)))

    assert await second.states() == {"task-1": "sealed"}
    (row,) = await second.rows(feedback)
    assert row.state == FeedbackState.LATE


async def test_a_seal_beside_a_rejection_leaves_the_event_out(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(output("good"), output("bad"))

    _, batch = await race(first.send(feedback_on("bad", approved=False)), second.seal())

    assert await second.members(batch, Role.TRAIN) == ["good"]
    assert len(await second.rows(batch_members)) == 1


async def test_an_event_that_expires_is_not_approved_as_well(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(output(approved=None))

    expired, refused = await race(
        first.store.queue.expire(later(days=1), later(days=8)),
        second.store.queue.judge_by_hand(1, YES, "ann", second.now),
    )

    assert expired == 1
    assert isinstance(refused, VerdictRefusedError)


async def test_an_event_that_is_being_approved_does_not_expire(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.send(output(approved=None))

    state, expired = await race(
        first.store.queue.judge_by_hand(1, YES, "ann", second.now),
        second.store.queue.expire(later(days=1), later(days=8)),
    )

    assert (state, expired) == (EventState.QUEUED, 0)


# --- runs and versions ------------------------------------------------------------------


async def test_of_two_daemons_one_begins_a_run(first: Driver, second: Driver, race: Race) -> None:
    run_id = await second.run_of(output())

    begun, refused = await race(first.begin(run_id), second.begin(run_id))

    assert begun.attempt == 1
    assert isinstance(refused, IllegalMoveError)


async def test_of_two_runs_of_a_line_one_begins(first: Driver, second: Driver, race: Race) -> None:
    one, other = await second.run_of(output("a")), await second.run_of(output("b"))

    begun, refused = await race(first.begin(one), second.begin(other))

    assert begun.run_id == one
    assert isinstance(refused, IllegalMoveError)


async def test_a_decision_beside_a_takeover_is_refused(
    first: Driver, second: Driver, race: Race
) -> None:
    run_id = await second.run_of(output())
    await second.train(run_id)
    duel = await second.enter(run_id)
    lapsed = update(run_leases).values(until=LONG_AGO)
    await second.store.database.write(lambda tx: tx.execute(lapsed))

    taken, refused = await race(
        first.store.leases.hold(run_id), second.decide(run_id, Outcome.PROMOTE, duel=duel)
    )

    assert taken == Hold(taken_from="this-node")
    assert isinstance(refused, LeaseLostError)
    assert (await first.decide(run_id, Outcome.PROMOTE)).promoted is not None


async def refused_candidate(drive: Driver, task_id: str) -> str:
    """The number of a candidate that the gate refused."""
    run_id = await drive.run_of(output(task_id))
    await drive.train(run_id)
    duel = await drive.enter(run_id)
    await drive.decide(run_id, Outcome.REJECT, duel=duel)
    return duel.candidate_number


async def test_of_two_who_promote_one_version_one_does(
    first: Driver, second: Driver, race: Race
) -> None:
    number = await refused_candidate(second, "a")

    done, refused = await race(first.promote(number), second.promote(number))

    assert done.version == "1.0.1"
    assert isinstance(refused, PromotionRefusedError)


async def test_two_who_promote_two_versions_do_so_one_after_the_other(
    first: Driver, second: Driver, race: Race
) -> None:
    one, other = await refused_candidate(second, "a"), await refused_candidate(second, "b")

    done = await race(first.promote(one), second.promote(other))

    assert [each.version for each in done] == ["1.0.1", "1.0.2"]
    assert done[1].replaced == "1.0.1"


async def test_a_decision_beside_a_promotion_by_hand_is_made_anew(
    first: Driver, second: Driver, race: Race
) -> None:
    forced = await refused_candidate(second, "a")
    run_id = await second.run_of(output("b"))
    await second.train(run_id)
    duel = await second.enter(run_id)

    _, moved = await race(first.promote(forced), second.decide(run_id, Outcome.PROMOTE, duel=duel))

    assert isinstance(moved, ChampionMovedError)


async def test_of_two_who_roll_back_to_a_version_one_does(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.release(output("a"))
    await second.release(output("b"))

    done, refused = await race(first.rollback("1.0.1"), second.rollback("1.0.1"))

    assert done.left == "1.0.2"
    assert isinstance(refused, PromotionRefusedError)
    assert await second.champion() == "1.0.1"


async def test_two_daemons_that_start_resume_a_waiting_run_once(
    first: Driver, second: Driver, race: Race
) -> None:
    await second.store.runs.wait_for(await second.run_of(output()), "no disk", second.now)

    resumed = await race(
        first.store.runs.resume_waiting(first.now), second.store.runs.resume_waiting(second.now)
    )

    assert resumed == [1, 0]


async def test_two_daemons_that_launch_at_once_reserve_no_more_than_the_cap(
    first: Driver, second: Driver, race: Race
) -> None:
    run_id = await second.run_of(output())
    await second.send(output(task_type="game"))
    other = await second.seal(line=ARCADE)
    assert other is not None
    assert other.run_id is not None
    budget = Budget("EUR", {"scripted": {"*": Price(per_job=Decimal(3))}}, Caps(day=Decimal(5)))
    quote = budget.quote("scripted", "tiny", tokens=0, training={}, longest=timedelta(hours=1))

    records = await race(
        first.store.runs.begin(run_id, first.line, first.now, quote=quote),
        second.store.runs.begin(other.run_id, ARCADE, second.now, quote=quote),
    )

    assert [record.state for record in records] == ["launching", "waiting"]


# --- everything at once -----------------------------------------------------------------


async def test_a_storm_of_two_daemons_breaks_no_promise(first: Driver, second: Driver) -> None:
    """Eight hands do, in an order of their own, what daemons and operators do."""
    tasks = [f"task-{number}" for number in range(30)]
    ids = itertools.count()

    async def hand(drive: Driver, dice: random.Random) -> None:
        for _ in range(25):
            await step(drive, dice)

    async def step(drive: Driver, dice: random.Random) -> None:
        queue, task_id = drive.store.queue, dice.choice(tasks)
        match dice.randrange(6):
            case 0 | 1:
                some = dice.sample(tasks, 5)
                await drive.send(
                    *(output(one, approved=dice.choice([True, None])) for one in some),
                    feedback_on(task_id, event_id=f"f{next(ids)}", approved=dice.random() < 0.7),
                )
            case 2:
                for one in dice.sample(tasks, 3):
                    await drive.send(feedback_on(one, event_id=f"f{next(ids)}"))
            case 3:
                rules = dice.choice([ALL_TRAIN, ALL_HELD_OUT])
                await drive.seal(size=4, trigger=dice.choice(list(Trigger)), rules=rules)
            case 4:
                with contextlib.suppress(VerdictRefusedError, UnknownEventError):
                    await queue.judge_by_hand(dice.randint(1, 30), YES, "ann", drive.now)
            case _:
                await queue.expire(later(minutes=1), later(minutes=2))

    await asyncio.gather(
        *(hand(drive, random.Random(number)) for number in range(4) for drive in (first, second))
    )

    totals = {row.state for row in await second.rows(events)}
    assert EventState.SEALED in totals
