"""The durable queue: what waits, who gets which role, what comes back, what expires."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Row, insert
from sqlalchemy.exc import IntegrityError

from daemon.store import Store, queue, replay
from daemon.store.bookkeeping import Tally
from daemon.store.queue import UnknownEventError, VerdictRefusedError
from daemon.store.tables import (
    batch_members,
    batches,
    evaluation_examples,
    events,
    replay_memory,
    returned_events,
    runs,
    transitions,
    versions,
)
from learning.batching import LineQueue, Trigger
from learning.errors import ConflictError, NotFoundError
from learning.events import OutputEvent, prompt_key
from learning.gate import Outcome, Refusal
from learning.lifecycle import BatchState, EventState, Role, RunState
from learning.policy import Verdict
from learning.sampling import (
    Candidate,
    ReplayStrategy,
    SplitRules,
    held_out_quota,
    priorities,
    split,
)
from tests.builders import feedback as said
from tests.builders import later, output, outputs
from tests.contract.driver import ALL_TRAIN, AS_SHIPPED, LINE, Driver, everything

TRAIN, HELD_OUT, REPLAY, RETRY = Role.TRAIN, Role.HELD_OUT, Role.REPLAY, Role.RETRY
TWO_TYPES = replace(LINE, name="arcade", task_types=frozenset({"audio", "game"}))
ALL_BUT_ONE_JUDGE = SplitRules(held_out_share=1.0, replay_share=0.0)
REPLAY_AS_MANY = SplitRules(held_out_share=0.0, starting_share=0.0, replay_share=0.5)


# --- looking --------------------------------------------------------------------------


def sent(row: Row[Any]) -> OutputEvent:
    """The event of a stored row."""
    return OutputEvent.model_validate_json(row.payload)


async def test_an_empty_queue_has_nothing_due(drive: Driver) -> None:
    assert await drive.store.queue.look(LINE) == LineQueue("normalize", 0, None, busy=False)
    assert await drive.store.queue.waiting_task_types() == []
    assert await drive.seal() is None


async def test_only_queued_events_of_the_line_wait_in_its_queue(drive: Driver) -> None:
    await drive.send(
        output("a"),
        output("b"),
        output("c", approved=None),
        output("d", approved=False),
        output("e", task_type="coding"),
    )

    assert await drive.store.queue.look(LINE) == LineQueue("normalize", 2, later(), busy=False)
    assert sorted(await drive.store.queue.waiting_task_types()) == ["coding", "normalize"]


async def test_an_event_waits_since_it_was_queued_not_since_it_arrived(drive: Driver) -> None:
    await drive.send(output("held", approved=None))
    drive.wait(days=3)
    await drive.send(output("fresh"))
    drive.wait(minutes=1)
    await drive.send(said("held"))

    looked = await drive.store.queue.look(LINE)

    assert (looked.waiting, looked.oldest_waiting) == (2, later(days=3))


async def test_a_line_of_two_task_types_has_one_queue(drive: Driver) -> None:
    await drive.send(output("a", task_type="audio"))
    drive.wait(minutes=1)
    await drive.send(output("b", task_type="game"))

    looked = await drive.store.queue.look(TWO_TYPES)

    assert (looked.waiting, looked.oldest_waiting) == (2, later())


# --- sealing --------------------------------------------------------------------------


async def test_a_batch_takes_the_oldest_events_of_all_its_task_types(drive: Driver) -> None:
    for number in range(6):
        await drive.send(output(f"{number}", task_type=["audio", "game"][number % 2]))

    batch = await drive.seal(size=5, line=TWO_TYPES)

    assert batch is not None
    assert await drive.members(batch, TRAIN) == ["0", "1", "2", "3", "4"]
    assert (await drive.store.queue.look(TWO_TYPES)).waiting == 1


async def test_a_batch_tells_what_it_is_made_of(drive: Driver) -> None:
    batch = await drive.batch(*outputs(range(20)), trigger=Trigger.SIZE, rules=AS_SHIPPED)

    assert (batch.line, batch.trigger) == ("normalize", Trigger.SIZE)
    assert (batch.n_train, batch.n_held_out, batch.n_replay, batch.n_retry) == (10, 10, 0, 0)
    (stored,) = await drive.rows(batches)
    assert (stored.id, stored.state, stored.sequence) == (batch.batch_id, BatchState.SEALED, 1)
    assert (stored.actor, stored.sealed_at) == ("sealer", later())
    (run,) = await drive.rows(runs)
    assert (run.id, run.state, run.seed) == (batch.run_id, RunState.PLANNED, stored.seed)


async def test_the_stored_seed_gives_the_same_roles_again(drive: Driver) -> None:
    batch = await drive.batch(*outputs(range(20)), rules=AS_SHIPPED)

    (stored,) = await drive.rows(batches)
    candidates = [
        Candidate(row.id, (prompt_key(sent(row)),), row.by_human)
        for row in await drive.rows(events)
    ]
    roles = split(candidates, {}, held_out_quota(20, 0, AS_SHIPPED), stored.seed)
    held_out = [f"task-{n}" for n in range(20) if roles[n + 1] is HELD_OUT]
    assert await drive.members(batch, HELD_OUT) == held_out


async def test_127_events_become_101_that_train_and_26_that_judge(drive: Driver) -> None:
    await drive.batch(*outputs(range(1_000, 1_064)), rules=AS_SHIPPED)
    assert len(await drive.rows(evaluation_examples)) == 32

    batch = await drive.batch(*outputs(range(127)), size=127, rules=AS_SHIPPED)

    assert (batch.n_train, batch.n_held_out) == (101, 26)


@pytest.mark.parametrize("trigger", [Trigger.SIZE, Trigger.FULL, Trigger.AGE])
async def test_a_busy_line_seals_nothing_by_itself(drive: Driver, trigger: Trigger) -> None:
    await drive.batch(output("a"))
    await drive.send(output("b"))

    assert (await drive.store.queue.look(LINE)).busy
    assert await drive.seal(trigger=trigger) is None
    assert (await drive.states())["b"] == EventState.QUEUED


async def test_a_flush_on_a_busy_line_seals_and_its_run_waits(drive: Driver) -> None:
    first = await drive.run_of(output("a"))
    second = await drive.run_of(output("b"), trigger=Trigger.FLUSH)

    assert [run.run_id for run in await drive.store.runs.due(drive.now)] == [first]
    await drive.train(first)
    assert await drive.store.runs.due(drive.now) == []
    await drive.decide(first, Outcome.ABSTAIN)
    assert [run.run_id for run in await drive.store.runs.due(drive.now)] == [second]


async def test_another_line_is_not_held_up(drive: Driver) -> None:
    await drive.batch(output("a"))
    await drive.send(output("b", task_type="audio"))

    assert await drive.seal(line=TWO_TYPES, trigger=Trigger.SIZE) is not None


async def test_sealing_at_the_same_moment_makes_one_batch(drive: Driver) -> None:
    await drive.send(*outputs(range(40)))

    sealed = await asyncio.gather(*(drive.seal(size=20, trigger=Trigger.SIZE) for _ in range(5)))

    assert len([batch for batch in sealed if batch is not None]) == 1
    assert len(await drive.rows(batches)) == 1
    assert (await drive.store.queue.look(LINE)).waiting == 20


async def test_flushing_at_the_same_moment_shares_the_events(drive: Driver) -> None:
    await drive.send(*outputs(range(40)))

    sealed = await asyncio.gather(*(drive.seal(size=20) for _ in range(5)))

    taken = [
        task for batch in sealed if batch is not None for task in await drive.members(batch, TRAIN)
    ]
    assert sorted(taken) == sorted(f"task-{n}" for n in range(40))


async def test_a_failure_while_sealing_leaves_everything_queued(
    drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await drive.send(*outputs(range(20)))
    before = await everything(drive.store.database)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(queue, "_plan_run", fail)
        with pytest.raises(ZeroDivisionError):
            await drive.seal(rules=AS_SHIPPED)

    assert await everything(drive.store.database) == before
    assert await drive.seal(rules=AS_SHIPPED) is not None


async def test_the_database_itself_refuses_a_second_primary_role(drive: Driver) -> None:
    first = await drive.batch(output("a"))
    second = await drive.batch(output("b"))
    event_id = (await drive.event("a")).id

    async def write(role: Role, batch_id: str) -> None:
        row = {"batch_id": batch_id, "event_id": event_id, "role": role}
        await drive.store.database.write(lambda tx: tx.execute(insert(batch_members), row))

    for role in (TRAIN, HELD_OUT):
        with pytest.raises(IntegrityError):
            await write(role, second.batch_id)
    with pytest.raises(IntegrityError):
        await write(REPLAY, first.batch_id)  # twice in one batch
    await write(REPLAY, second.batch_id)


# --- who is held out ------------------------------------------------------------------


async def test_a_frozen_example_keeps_the_conversation_and_where_it_came_from(
    drive: Driver,
) -> None:
    batch = await drive.batch(*outputs(range(2)), rules=AS_SHIPPED)

    (example,) = await drive.rows(evaluation_examples)
    (task,) = await drive.members(batch, HELD_OUT)
    event = await drive.event(task)
    assert example.messages == [
        {"role": "user", "content": f"normalize {task}"},
        {"role": "assistant", "content": f"normal {task}"},
    ]
    assert (example.event_id, example.batch_id, example.source, example.task_type) == (
        event.id,
        batch.batch_id,
        "event",
        "normalize",
    )


async def test_the_frozen_set_only_grows(drive: Driver) -> None:
    await drive.batch(*outputs(range(10)), rules=AS_SHIPPED)
    before = await drive.rows(evaluation_examples)

    await drive.batch(*outputs(range(10, 20)), rules=AS_SHIPPED)

    after = await drive.rows(evaluation_examples)
    assert after[: len(before)] == before
    assert len(after) > len(before)


async def test_a_prompt_is_frozen_once_however_often_it_comes(drive: Driver) -> None:
    await drive.batch(*outputs(range(30), prompt="the same"), output("other"), rules=AS_SHIPPED)
    await drive.batch(*outputs(range(40, 60), prompt="The  Same"), rules=AS_SHIPPED)

    keys = [row.prompt_key for row in await drive.rows(evaluation_examples)]
    assert len(keys) == len(set(keys))


async def test_a_held_out_prompt_never_trains_in_a_later_batch(drive: Driver) -> None:
    first = await drive.batch(*outputs(range(2)), rules=AS_SHIPPED)
    (judging,) = await drive.members(first, HELD_OUT)
    again = [
        output("again", event_id="again", prompt=f"NORMALIZE   {judging}", approved=True),
        output("new"),
    ]

    second = await drive.batch(*again, rules=ALL_TRAIN)

    assert await drive.members(second, HELD_OUT) == ["again"]
    assert await drive.members(second, TRAIN) == ["new"]


async def test_a_split_group_stays_on_its_side_for_ever(drive: Driver) -> None:
    first = await drive.batch(
        *outputs(range(3), split_group="alice"),
        *outputs(range(3, 6), split_group="bob"),
        rules=SplitRules(held_out_share=0.5, starting_share=0.5),
    )
    judging = {
        sent(await drive.event(task)).split_group for task in await drive.members(first, HELD_OUT)
    }
    assert len(judging) == 1

    second = await drive.batch(
        *outputs(range(10, 13), split_group="alice"),
        *outputs(range(13, 16), split_group="bob"),
        rules=ALL_BUT_ONE_JUDGE,
    )

    again = {
        sent(await drive.event(task)).split_group for task in await drive.members(second, HELD_OUT)
    }
    assert again == judging


async def test_an_example_whose_split_group_has_trained_is_held_out_but_does_not_judge(
    drive: Driver,
) -> None:
    """Two pasts meet: its group trained, and it hangs together with a held-out prompt."""
    await drive.batch(output("a", split_group="alice"), rules=ALL_TRAIN)
    await drive.store.queue.import_held_out(
        [(1, output("i"), prompt_key(output("i")))], "normalize", "ann", drive.now
    )
    tied = [
        output("b", split_group="alice", prompt=output("i").prompt),
        output("c", split_group="alice", prompt="new to us"),
    ]

    batch = await drive.batch(*tied, output("d"), rules=ALL_TRAIN)

    assert await drive.members(batch, HELD_OUT) == ["b", "c"]
    assert len(await drive.rows(evaluation_examples)) == 1


async def test_what_no_person_approved_never_judges(drive: Driver) -> None:
    await drive.send(*outputs(range(10), approved=None))
    for n in range(10):
        await drive.store.queue.judge_by_hand(
            n + 1, Verdict(EventState.QUEUED, "by a script", by_human=False), "script", drive.now
        )

    batch = await drive.seal(rules=AS_SHIPPED)

    assert batch is not None
    assert (batch.n_train, batch.n_held_out) == (10, 0)
    assert await drive.rows(evaluation_examples) == []


async def test_of_a_held_out_group_only_what_a_person_approved_judges(drive: Driver) -> None:
    await drive.send(
        output("auto", approved=None, split_group="alice", prompt="Hello there"),
        output("human", split_group="alice", prompt="hello there"),
        output("other"),
    )
    script = Verdict(EventState.QUEUED, "by a script", by_human=False)
    await drive.store.queue.judge_by_hand(1, script, "script", drive.now)
    rows = labelled(output("i", split_group="alice"))
    await drive.store.queue.import_held_out(rows, "normalize", "ann", drive.now)

    batch = await drive.seal(rules=ALL_TRAIN)

    assert batch is not None
    assert await drive.members(batch, HELD_OUT) == ["auto", "human"]
    _imported, judging = await drive.rows(evaluation_examples)
    assert judging.event_id == (await drive.event("human")).id


async def test_a_batch_that_is_all_held_out_makes_no_run_and_leaves_the_line_idle(
    drive: Driver,
) -> None:
    await drive.store.queue.import_held_out(
        [(1, output("i"), prompt_key(output("i")))], "normalize", "ann", drive.now
    )

    batch = await drive.batch(*(output(f"t{n}", prompt=output("i").prompt) for n in range(3)))

    assert (batch.run_id, batch.n_train, batch.n_held_out) == (None, 0, 3)
    assert await drive.rows(runs) == []
    assert not (await drive.store.queue.look(LINE)).busy
    assert (await drive.rows(batches))[0].state == BatchState.SPENT


# --- importing held-out examples ------------------------------------------------------


def labelled(*examples: OutputEvent) -> list[tuple[int, OutputEvent, bytes]]:
    return [(row, example, prompt_key(example)) for row, example in enumerate(examples, start=1)]


async def test_an_import_counts_what_was_new_known_and_refused(drive: Driver) -> None:
    await drive.batch(output("trained"), output("grouped", split_group="g"))
    rows = labelled(
        output("one"),
        output("one", prompt="NORMALIZE one"),
        output("x", prompt=output("trained").prompt),
        output("y", split_group="g"),
        output("two"),
    )

    done = await drive.store.queue.import_held_out(rows, "normalize", "ann", drive.now)

    assert (done.added, done.duplicates) == (2, 1)
    assert [row for row, _ in done.refused] == [3, 4]
    assert all("has trained already" in reason for _, reason in done.refused)
    again = await drive.store.queue.import_held_out(rows, "normalize", "ann", drive.now)
    assert (again.added, again.duplicates) == (0, 3)


async def test_an_imported_prompt_and_its_group_do_not_train_afterwards(drive: Driver) -> None:
    rows = labelled(output("one", split_group="g"))
    await drive.store.queue.import_held_out(rows, "normalize", "ann", drive.now)

    batch = await drive.batch(
        output("a", prompt=output("one").prompt), output("b", split_group="g"), output("c")
    )

    assert await drive.members(batch, TRAIN) == ["c"]


async def test_an_import_says_who_did_it(drive: Driver) -> None:
    await drive.store.queue.import_held_out(labelled(output()), "normalize", "ann", drive.now)

    (noted,) = await drive.rows(transitions)
    assert (noted.actor, noted.ref, noted.reason) == ("ann", "normalize", "1 examples")


# --- what comes back ------------------------------------------------------------------


async def retried(drive: Driver, task_id: str) -> list[str]:
    """What the next batch, with one new event of its own, tries again."""
    batch = await drive.batch(output(task_id))
    assert batch.n_retry == len(await drive.members(batch, RETRY))
    return await drive.members(batch, RETRY)


async def test_the_rows_of_a_rejected_candidate_come_back_once(drive: Driver) -> None:
    first = await drive.run_of(output("a"), output("b"))
    await drive.finish(first, Outcome.REJECT)

    second = await drive.batch(output("c"))
    assert await drive.members(second, RETRY) == ["a", "b"]
    assert await drive.members(second, TRAIN) == ["c"]
    assert second.run_id is not None
    await drive.finish(second.run_id, Outcome.REJECT)

    assert await retried(drive, "d") == ["c"]


async def test_the_rows_of_an_abstention_come_back_three_times(drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.ABSTAIN)

    seen = []
    for n in range(5):
        batch = await drive.batch(output(f"new-{n}"))
        seen.append("a" in await drive.members(batch, RETRY))
        assert batch.run_id is not None
        await drive.finish(batch.run_id, Outcome.PROMOTE if n == 4 else Outcome.ABSTAIN)

    assert seen == [True, True, True, False, False]


async def test_a_rejection_after_an_abstention_does_not_bring_rows_back_again(
    drive: Driver,
) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.ABSTAIN)
    await drive.finish(await drive.run_of(output("b")), Outcome.REJECT)

    assert await retried(drive, "c") == ["b"]


async def test_the_rows_of_a_failed_run_come_back(drive: Driver) -> None:
    run_id = await drive.run_of(output("a"))
    await drive.begin(run_id)
    await drive.store.runs.fail(run_id, "oom", "no memory", None, drive.now)

    assert await retried(drive, "b") == ["a"]


async def test_a_parent_that_was_rolled_back_is_not_held_against_the_rows(drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.REJECT)
    innocent = await drive.run_of(output("b"))
    await drive.finish(innocent, Outcome.REJECT, refusal=Refusal.PARENT_ROLLED_BACK)

    assert await retried(drive, "c") == ["a", "b"]


async def test_rows_that_somebody_rejected_meanwhile_do_not_come_back(drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("a"), output("b")), Outcome.REJECT)
    await drive.send(said("a", approved=False), said("b", approved=True))

    assert await retried(drive, "c") == ["b"]


async def test_replayed_rows_do_not_come_back_as_retries(drive: Driver) -> None:
    await drive.release(output("a"))
    second = await drive.batch(output("b"), rules=REPLAY_AS_MANY)
    assert await drive.members(second, REPLAY) == ["a"]
    assert second.run_id is not None
    await drive.finish(second.run_id, Outcome.REJECT)

    assert await retried(drive, "c") == ["b"]


async def test_the_rows_of_a_promoted_candidate_do_not_come_back(drive: Driver) -> None:
    await drive.release(output("a"))

    assert await retried(drive, "b") == []
    assert (await drive.rows(batches))[0].state in (BatchState.SPENT, BatchState.SEALED)


async def test_a_refused_candidate_that_is_forced_takes_its_rows_back(drive: Driver) -> None:
    """The demo's poisoned batch: refused, forced, rolled back. Nothing of it trains again."""
    await drive.finish(await drive.run_of(output("poison")), Outcome.REJECT)
    assert len(await drive.rows(returned_events)) == 1

    await drive.promote("1.0.1-rc.1")

    assert await drive.rows(returned_events) == []
    assert (await drive.rows(batches))[0].state == BatchState.SPENT
    await drive.rollback()
    batch = await drive.batch(output("a"), rules=REPLAY_AS_MANY)
    assert await drive.members(batch, RETRY, REPLAY) == []


async def test_a_forced_candidate_takes_its_rows_back_from_later_batches_too(
    drive: Driver,
) -> None:
    await drive.finish(await drive.run_of(output("a")), Outcome.ABSTAIN)
    await drive.finish(await drive.run_of(output("b")), Outcome.ABSTAIN)  # tries "a" again

    await drive.promote("1.0.1-rc.1")

    assert await retried(drive, "c") == ["b"]


async def test_a_row_is_a_member_once_though_it_is_retried_and_would_be_replayed(
    drive: Driver,
) -> None:
    """An operator forces one candidate while another, with the same row, is compared."""
    await drive.finish(await drive.run_of(output("a")), Outcome.ABSTAIN)
    second = await drive.run_of(output("b"))
    await drive.train(second)
    await drive.promote("1.0.1-rc.1")
    await drive.decide(second, Outcome.ABSTAIN)

    batch = await drive.batch(*outputs(range(9)), rules=REPLAY_AS_MANY)

    assert await drive.members(batch, RETRY) == ["a", "b"]
    assert await drive.members(batch, REPLAY) == []


# --- replay ---------------------------------------------------------------------------


async def test_replay_repeats_as_many_as_are_new(drive: Driver) -> None:
    await drive.release(*outputs(range(10)))

    batch = await drive.batch(*outputs(range(10, 14)), rules=REPLAY_AS_MANY)

    assert (batch.n_train, batch.n_replay) == (4, 4)
    assert set(await drive.members(batch, REPLAY)) <= {f"task-{n}" for n in range(10)}


async def test_only_what_made_a_version_is_replayed(drive: Driver) -> None:
    await drive.finish(await drive.run_of(output("refused")), Outcome.REJECT)
    await drive.release(output("kept"))  # with the retry of "refused", which so made a version
    await drive.finish(await drive.run_of(output("abstained")), Outcome.ABSTAIN)

    batch = await drive.batch(*outputs(range(9)), rules=REPLAY_AS_MANY)

    assert await drive.members(batch, REPLAY) == ["refused", "kept"]
    assert await drive.members(batch, RETRY) == ["abstained"]


async def test_held_out_examples_are_never_replayed(drive: Driver) -> None:
    first = await drive.batch(*outputs(range(10)), rules=AS_SHIPPED)
    assert first.run_id is not None
    await drive.finish(first.run_id, Outcome.PROMOTE)

    batch = await drive.batch(*outputs(range(10, 40)), rules=REPLAY_AS_MANY)

    assert await drive.members(batch, REPLAY) == await drive.members(first, TRAIN)


async def test_the_events_of_a_rolled_back_version_are_not_replayed(drive: Driver) -> None:
    await drive.release(output("good"))
    await drive.release(output("bad"))
    await drive.release(output("worse"))

    await drive.rollback("1.0.1")  # past 1.0.2, which so is left behind as well

    batch = await drive.batch(*outputs(range(9)), rules=REPLAY_AS_MANY)
    assert await drive.members(batch, REPLAY) == ["good"]


async def test_the_events_of_a_version_that_was_restored_are_replayed_again(
    drive: Driver,
) -> None:
    await drive.release(output("good"))
    await drive.release(output("maligned"))
    await drive.rollback("1.0.0")

    await drive.rollback("1.0.2")

    batch = await drive.batch(*outputs(range(9)), rules=REPLAY_AS_MANY)
    assert await drive.members(batch, REPLAY) == ["good", "maligned"]


async def test_what_somebody_rejected_late_is_not_replayed(drive: Driver) -> None:
    await drive.release(output("a"), output("b"), output("c"))
    await drive.send(said("a", approved=False), said("b", approved=True), said("c", approved=None))

    batch = await drive.batch(*outputs(range(9)), rules=REPLAY_AS_MANY)

    assert await drive.members(batch, REPLAY) == ["b", "c"]


async def test_a_task_type_remembers_so_many_events_and_not_the_newest_alone(
    monkeypatch: pytest.MonkeyPatch, drive: Driver
) -> None:
    monkeypatch.setattr(replay, "CAPACITY", 5)
    for n in range(4):
        await drive.release(*outputs(range(10 * n, 10 * n + 10)))

    kept = await drive.rows(replay_memory)
    lowest = sorted(priorities(range(1, 41)).items(), key=lambda item: item[1])[:5]
    assert [(row.event_id, row.priority) for row in kept] == lowest
    batch = await drive.batch(*outputs(range(100, 109)), rules=REPLAY_AS_MANY)
    replayed = {(await drive.event(task)).id for task in await drive.members(batch, REPLAY)}
    assert replayed == {row.event_id for row in kept}


async def test_what_may_not_be_replayed_is_made_up_for_by_what_may(drive: Driver) -> None:
    await drive.release(*outputs(range(20)))
    await drive.send(*(said(f"task-{n}", approved=False) for n in range(0, 20, 2)))

    batch = await drive.batch(*outputs(range(30, 40)), rules=REPLAY_AS_MANY)

    assert await drive.members(batch, REPLAY) == [f"task-{n}" for n in range(1, 20, 2)]


@pytest.mark.parametrize("strategy", ReplayStrategy)
async def test_the_stored_seed_draws_the_same_again(
    drive: Driver, strategy: ReplayStrategy
) -> None:
    await drive.release(*outputs(range(40)))
    rules = replace(REPLAY_AS_MANY, replay_strategy=strategy)
    batch = await drive.batch(*outputs(range(50, 60)), rules=rules)

    (stored,) = await drive.rows(batches, batches.c.id == batch.batch_id)
    drawn = await drive.store.database.read(
        lambda tx: replay.draw(
            tx,
            ["normalize"],
            10,
            strategy,
            fresh={"normalize": 10},
            exclude=[],
            seed=stored.seed,
        )
    )

    tasks = await drive.members(batch, REPLAY)
    assert [(await drive.event(task)).id for task in tasks] == drawn
    assert len(drawn) == 10


async def test_a_batch_repeats_most_of_the_task_type_that_it_has_least_of(drive: Driver) -> None:
    drive.configure(name="arcade", task_types=TWO_TYPES.task_types)
    await drive.release(*outputs(range(10), task_type="audio"))
    await drive.release(*outputs(range(20, 30), task_type="game"))

    batch = await drive.batch(*outputs(range(40, 46), task_type="game"), rules=REPLAY_AS_MANY)

    tasks = await drive.members(batch, REPLAY)
    assert len(tasks) == 6
    assert all(int(task.removeprefix("task-")) < 10 for task in tasks)


async def test_what_is_tried_again_counts_as_what_the_batch_has_already(drive: Driver) -> None:
    drive.configure(name="arcade", task_types=TWO_TYPES.task_types)
    await drive.release(*outputs(range(10), task_type="audio"))
    await drive.release(*outputs(range(20, 30), task_type="game"))
    vain = await drive.run_of(*outputs(range(40, 44), task_type="audio"))
    await drive.finish(vain, Outcome.REJECT)

    rules = replace(REPLAY_AS_MANY, replay_share=0.4)
    batch = await drive.batch(*outputs(range(50, 52), task_type="game"), rules=rules)

    tasks = await drive.members(batch, REPLAY)
    assert (batch.n_train, batch.n_retry, len(tasks)) == (2, 4, 4)
    assert sum(int(task.removeprefix("task-")) >= 20 for task in tasks) == 3  # game: 5, audio: 5


async def test_related_task_types_of_other_lines_are_mixed_in(drive: Driver) -> None:
    drive.configure(name="arcade", task_types=TWO_TYPES.task_types)
    await drive.release(*outputs(range(30), task_type="audio"))
    coding = replace(LINE, name="coding", task_types=frozenset({"coding"}))
    await drive.release(*outputs(range(30, 60), task_type="game"))
    mixed = replace(ALL_TRAIN, cross_task_learning=True, cross_task_share=0.2)
    await drive.send(*outputs(range(60, 80), task_type="coding"))

    batch = await drive.seal(line=coding, rules=mixed)

    assert batch is not None
    tasks = await drive.members(batch, Role.CROSS_TASK)
    assert (batch.n_train, batch.n_cross_task, len(tasks)) == (20, 5, 5)
    assert all(30 <= int(task.removeprefix("task-")) < 60 for task in tasks)  # game, not audio
    rows = await drive.store.runs.training_rows(batch.batch_id)
    assert sum(row.role is Role.CROSS_TASK for row in rows) == 5


async def test_an_operators_map_says_what_is_related(drive: Driver) -> None:
    drive.configure(name="arcade", task_types=TWO_TYPES.task_types)
    await drive.release(*outputs(range(30), task_type="audio"))
    coding = replace(LINE, name="coding", task_types=frozenset({"coding"}))
    mixed = replace(
        ALL_TRAIN,
        cross_task_learning=True,
        cross_task_share=0.2,
        related={"coding": ("audio", "coding")},
    )
    await drive.send(*outputs(range(60, 80), task_type="coding"))

    batch = await drive.seal(line=coding, rules=mixed)

    assert batch is not None
    assert batch.n_cross_task == 5


async def test_what_another_line_taught_adds_no_task_type_to_a_version(drive: Driver) -> None:
    drive.configure(name="arcade", task_types=TWO_TYPES.task_types)
    await drive.release(*outputs(range(30), task_type="game"))
    drive.configure(name="coding", task_types=frozenset({"coding"}))
    mixed = replace(ALL_TRAIN, cross_task_learning=True, cross_task_share=0.5)

    released = await drive.release(*outputs(range(30, 35), task_type="coding"), rules=mixed)

    (version,) = await drive.rows(versions, versions.c.line == "coding", versions.c.run_id != "")
    assert (version.release, version.task_types) == (released, ["coding"])


async def test_another_lines_events_are_not_replayed(drive: Driver) -> None:
    await drive.release(output("a"))
    await drive.send(output("b", task_type="audio"))

    batch = await drive.seal(line=TWO_TYPES, rules=REPLAY_AS_MANY)

    assert batch is not None
    assert batch.n_replay == 0


# --- expiry ---------------------------------------------------------------------------


async def test_held_events_expire_and_say_so(drive: Driver) -> None:
    await drive.send(output("old", approved=None), output("queued"))
    drive.wait(days=3)
    await drive.send(output("young", approved=None))
    drive.wait(days=5)

    assert await drive.store.queue.expire(later(days=1), drive.now) == 1

    assert await drive.states() == {"old": "expired", "queued": "queued", "young": "held"}
    (move,) = await drive.rows(transitions)
    assert (move.to_state, move.reason, move.actor, move.at) == (
        "expired",
        "no verdict came in time",
        "clock",
        later(days=8),
    )
    assert await drive.store.queue.expire(later(days=1), drive.now) == 0


async def test_an_event_held_for_exactly_the_hold_has_not_yet_expired(drive: Driver) -> None:
    await drive.send(output(approved=None))

    assert await drive.store.queue.expire(later(), later(days=7)) == 0
    assert await drive.store.queue.expire(later(microseconds=1), later(days=7)) == 1


async def test_many_expire_in_several_transactions(
    drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "CHUNK", 3)
    written: list[Tally] = []
    write = Tally.write

    def noted(self: Tally, tx: Connection, now: datetime) -> None:
        written.append(self)
        write(self, tx, now)

    monkeypatch.setattr(Tally, "write", noted)
    await drive.send(*outputs(range(7), approved=None))
    written.clear()

    assert await drive.store.queue.expire(later(days=1), later(days=8)) == 7

    assert len(written) == 3
    assert set((await drive.states()).values()) == {"expired"}


# --- verdicts by hand -----------------------------------------------------------------

YES = Verdict(EventState.QUEUED, "looks right", by_human=True)
NO = Verdict(EventState.REJECTED, "is rude", by_human=True)


@pytest.mark.parametrize(
    ("sent", "verdict", "becomes"),
    [
        ({"approved": None}, YES, EventState.QUEUED),
        ({"approved": None}, NO, EventState.REJECTED),
        ({"output": " "}, YES, EventState.QUEUED),  # releases what a validator stopped
        ({"output": " "}, NO, EventState.REJECTED),
        ({}, NO, EventState.WITHDRAWN),
    ],
)
async def test_an_operator_decides_what_is_not_sealed(
    drive: Driver, sent: dict[str, str], verdict: Verdict, becomes: EventState
) -> None:
    await drive.send(output(**sent))

    assert await drive.store.queue.judge_by_hand(1, verdict, "ann", drive.now) is becomes

    row = await drive.event("task-1")
    assert (row.state, row.reason, row.by_human) == (becomes, verdict.reason, True)
    (move,) = await drive.rows(transitions)
    assert (move.to_state, move.actor) == (becomes, "ann")


async def test_an_operators_yes_confirms_what_was_queued_without_a_person(drive: Driver) -> None:
    await drive.send(output(approved=None))
    script = Verdict(EventState.QUEUED, "by a script", by_human=False)
    await drive.store.queue.judge_by_hand(1, script, "script", drive.now)

    assert await drive.store.queue.judge_by_hand(1, YES, "ann", drive.now) is EventState.QUEUED

    assert (await drive.event("task-1")).by_human
    assert [move.actor for move in await drive.rows(transitions)] == ["script", "ann"]


@pytest.mark.parametrize("verdict", [YES, NO])
@pytest.mark.parametrize("state", ["sealed", "rejected", "expired", "withdrawn"])
async def test_an_operator_comes_too_late_for_what_is_final(
    drive: Driver, state: str, verdict: Verdict
) -> None:
    match state:
        case "sealed":
            await drive.batch(output())
        case "rejected":
            await drive.send(output(approved=False))
        case "expired":
            await drive.send(output(approved=None))
            await drive.store.queue.expire(later(days=1), later(days=8))
        case _:
            await drive.send(output(), said(approved=False))
    before = await everything(drive.store.database)

    with pytest.raises(VerdictRefusedError, match=f"event 1 is {state}") as caught:
        await drive.store.queue.judge_by_hand(1, verdict, "ann", drive.now)

    assert isinstance(caught.value, ConflictError)
    assert await everything(drive.store.database) == before


async def test_an_unknown_event_is_named(store: Store) -> None:
    with pytest.raises(UnknownEventError, match="no event has the id 7") as caught:
        await store.queue.judge_by_hand(7, YES, "ann", later())

    assert isinstance(caught.value, NotFoundError)


async def test_what_was_confirmed_may_judge(drive: Driver) -> None:
    await drive.send(*outputs(range(2), approved=None), said("task-0"), said("task-1"))

    batch = await drive.seal(rules=AS_SHIPPED)

    assert batch is not None
    assert batch.n_held_out == 1
    assert len(await drive.rows(evaluation_examples)) == 1


async def test_every_sealed_event_keeps_the_time_of_its_sealing(drive: Driver) -> None:
    await drive.send(output())
    drive.wait(minutes=7)
    await drive.seal()

    (row,) = await drive.rows(events)
    assert (row.state, row.state_since) == (EventState.SEALED, later(minutes=7))
