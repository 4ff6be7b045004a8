"""What RunLeases promises: a run under way has one owner, and no other hand writes about it.

Two daemons are two open stores on one database. No test waits: a lease that should have
lapsed was given for no time at all, one that should not for an hour.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.store import Store
from daemon.store.leases import Tenancy, UnknownNodeError
from daemon.store.tables import run_leases, transitions
from daemon.store.views.runs import Runs
from learning.errors import IllegalMoveError
from learning.gate import Outcome
from learning.lifecycle import RunState
from learning.ports import Hold, JobProgress, LeaseLostError, RunLeases, TrainingOutcome
from tests.builders import JUDGE, later, output
from tests.contract.driver import PROOF, Driver, StoppedClock, everything, report
from tests.contract.promises import broken_promises

LONG = timedelta(hours=1)
NONE = timedelta(0)
ALPHA = Tenancy(owner="a", node="alpha", lease=LONG, gone_after=LONG)
BETA = Tenancy(owner="b", node="beta", lease=LONG, gone_after=LONG)
ASLEEP = replace(ALPHA, lease=NONE)
"""Alpha, whose every lease has lapsed."""
TRAINED = TrainingOutcome(Path("out"), "lora", PROOF, {})

Start = Callable[[Tenancy], Awaitable[Driver]]


@pytest.fixture
async def start(store_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a daemon's store on the test's database; in the end everything must be true."""
    async with AsyncExitStack() as stack:
        opened: list[Store] = []

        async def start(tenancy: Tenancy) -> Driver:
            clock = StoppedClock()
            store = await Store.open(
                store_url, artifacts_dir=tmp_path, judge=JUDGE, clock=clock, tenancy=tenancy
            )
            stack.push_async_callback(store.close)
            opened.append(store)
            return Driver(store, clock)

        yield start
        assert await opened[0].database.read(broken_promises) == []


async def begun(drive: Driver, *, bound: bool = False) -> str:
    """A run that this daemon began."""
    run_id = await drive.run_of(output())
    await drive.store.runs.begin(run_id, drive.line, drive.now, bound=bound)
    return run_id


async def running(drive: Driver, *, bound: bool = False) -> str:
    run_id = await begun(drive, bound=bound)
    await drive.store.runs.adopt(run_id, "job-1", drive.now)
    return run_id


async def test_it_is_the_port(start: Start) -> None:
    port: RunLeases = (await start(ALPHA)).store.leases

    assert port.duration == LONG


# --- one owner ------------------------------------------------------------------------


async def test_a_run_under_way_is_nobody_elses_while_its_lease_runs(start: Start) -> None:
    alpha, beta = await start(ALPHA), await start(BETA)
    run_id = await running(alpha)

    assert await beta.store.leases.lapsed() == []
    assert await beta.store.leases.hold(run_id) is None
    assert await alpha.store.leases.hold(run_id) == Hold()


async def test_clocks_that_are_a_year_apart_take_no_run_from_anybody(start: Start) -> None:
    alpha, beta = await start(ALPHA), await start(BETA)
    beta.wait(days=365)
    run_id = await running(alpha)

    assert await beta.store.leases.lapsed() == []
    assert await beta.store.leases.hold(run_id) is None


async def test_a_planned_run_is_begun_by_one_of_two_daemons(start: Start) -> None:
    alpha, beta = await start(ALPHA), await start(BETA)
    run_id = await alpha.run_of(output())

    tries = await asyncio.gather(alpha.begin(run_id), beta.begin(run_id), return_exceptions=True)

    assert sum(isinstance(each, IllegalMoveError) for each in tries) == 1
    (lease,) = await alpha.rows(run_leases)
    assert lease.epoch == 1


async def test_a_run_whose_owner_fell_silent_is_taken_over(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha)

    assert await beta.store.leases.lapsed() == [run_id]
    assert await beta.store.leases.hold(run_id) == Hold(taken_from="alpha")

    (lease,) = await beta.rows(run_leases)
    assert (lease.owner, lease.node, lease.epoch) == ("b", "beta", 2)
    (*_, last) = await beta.rows(transitions, transitions.c.ref == run_id)
    assert (last.from_state, last.to_state) == ("running", "running")
    assert last.reason == "node beta took it over from alpha"


async def test_of_several_daemons_one_takes_a_run_over(start: Start) -> None:
    alpha = await start(ASLEEP)
    run_id = await running(alpha)
    others = [
        await start(Tenancy(owner=name, node=name, lease=LONG, gone_after=LONG))
        for name in ("b", "c", "d")
    ]

    holds = await asyncio.gather(*(other.store.leases.hold(run_id) for other in others))

    assert sorted(map(str, holds)) == ["Hold(taken_from='alpha')", "None", "None"]


async def test_what_lapsed_and_nobody_took_is_still_its_owners(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha)

    assert await alpha.store.leases.hold(run_id) == Hold()
    assert await alpha.store.leases.renew() == set()
    await alpha.store.runs.report(run_id, JobProgress(1, 2), alpha.now)
    assert await beta.store.leases.lapsed() == [run_id]


WRITES: dict[str, Callable[[Driver, str], Awaitable[object]]] = {
    "adopt": lambda drive, run_id: drive.store.runs.adopt(run_id, "job-2", drive.now),
    "interrupt": lambda drive, run_id: drive.store.runs.interrupt(run_id, "x", drive.now),
    "fail": lambda drive, run_id: drive.store.runs.fail(run_id, "x", "y", None, drive.now),
    "retry": lambda drive, run_id: drive.store.runs.fail(run_id, "x", "y", later(), drive.now),
    "report": lambda drive, run_id: drive.store.runs.report(run_id, JobProgress(1, 2), drive.now),
    "finish": lambda drive, run_id: drive.store.runs.finish_training(
        run_id, "x", "0" * 64, TRAINED, drive.now
    ),
    "wait_for": lambda drive, run_id: drive.store.runs.wait_for(run_id, "x", drive.now),
    "enter": lambda drive, run_id: drive.enter(run_id),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("state", ["launching", "running", "trained"])
async def test_a_late_write_of_the_old_owner_is_refused_and_changes_nothing(
    start: Start, state: str, write: str
) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await begun(alpha)
    if state != "launching":
        await alpha.store.runs.adopt(run_id, "job-1", alpha.now)
    if state == "trained":
        await alpha.store.runs.finish_training(run_id, "x", "0" * 64, TRAINED, alpha.now)
    await beta.store.leases.hold(run_id)
    before = await everything(beta.store.database)

    with pytest.raises(LeaseLostError, match="node beta owns it now; nothing was written"):
        await WRITES[write](alpha, run_id)

    assert await everything(beta.store.database) == before


async def test_a_late_verdict_of_the_old_owner_promotes_nothing(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha)
    await alpha.store.runs.finish_training(run_id, "x", "0" * 64, TRAINED, alpha.now)
    duel = await alpha.enter(run_id)
    await beta.store.leases.hold(run_id)
    before = await everything(beta.store.database)

    with pytest.raises(LeaseLostError):
        await alpha.store.runs.decide(run_id, duel, report(Outcome.PROMOTE), {}, alpha.now)

    assert await everything(beta.store.database) == before
    decision = await beta.decide(run_id, Outcome.PROMOTE)
    assert decision.promoted is not None


async def test_a_write_of_the_old_owner_is_refused_after_the_new_one_began_again(
    start: Start,
) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha)
    await beta.store.leases.hold(run_id)
    await beta.store.runs.interrupt(run_id, "its job is gone", beta.now)
    await beta.begin(run_id)

    with pytest.raises(LeaseLostError):
        await alpha.store.runs.adopt(run_id, "job-1", alpha.now)
    await beta.store.runs.adopt(run_id, "job-2", beta.now)


async def test_a_run_that_came_back_is_not_what_it_was_before(start: Start) -> None:
    """Taken from alpha, then from beta by alpha again: what alpha held at first is void."""
    alpha, beta = await start(ASLEEP), await start(replace(BETA, lease=NONE))
    run_id = await running(alpha)
    await beta.store.leases.hold(run_id)
    restarted = await start(ALPHA)
    await restarted.store.leases.hold(run_id)

    with pytest.raises(LeaseLostError):
        await alpha.store.runs.report(run_id, JobProgress(1, 2), alpha.now)
    await restarted.store.runs.report(run_id, JobProgress(1, 2), restarted.now)


async def test_renewing_tells_what_was_lost_and_keeps_the_rest(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    lost = await running(alpha)
    await beta.store.leases.hold(lost)
    alpha.configure(name="arcade", task_types=frozenset({"audio"}))
    kept = await alpha.run_of(output("b", task_type="audio"))
    await alpha.begin(kept)

    assert await alpha.store.leases.renew() == {lost}
    assert await alpha.store.leases.renew() == set()
    assert await alpha.store.leases.hold(kept) == Hold()
    assert await alpha.store.leases.hold(lost) is None


async def test_holding_on_to_what_was_lost_is_an_error(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha)
    await beta.store.leases.hold(run_id)

    with pytest.raises(LeaseLostError, match="node beta"):
        await alpha.store.leases.hold(run_id)

    await alpha.store.leases.release(run_id)
    assert await alpha.store.leases.hold(run_id) is None


async def test_what_is_released_need_not_be_waited_for(start: Start) -> None:
    alpha, beta = await start(ALPHA), await start(BETA)
    run_id = await running(alpha)

    await alpha.store.leases.release(run_id)
    await alpha.store.leases.release(run_id)

    assert await beta.store.leases.hold(run_id) == Hold(taken_from="alpha")


async def test_releasing_what_was_lost_leaves_the_new_owner_alone(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha)
    await beta.store.leases.hold(run_id)

    await alpha.store.leases.release(run_id)

    assert await alpha.store.leases.lapsed() == []


async def test_a_restarted_daemon_goes_on_at_once_with_what_was_its_own(start: Start) -> None:
    alpha, beta = await start(ALPHA), await start(BETA)
    run_id = await running(alpha, bound=True)
    restarted = await start(ALPHA)

    await restarted.store.leases.release_all()

    assert await beta.store.leases.lapsed() == []
    assert await restarted.store.leases.lapsed() == [run_id]
    assert await restarted.store.leases.hold(run_id) == Hold()
    with pytest.raises(LeaseLostError):
        await alpha.store.runs.report(run_id, JobProgress(1, 2), alpha.now)


async def test_an_operator_sees_whose_a_run_is_and_whether_that_daemon_is_heard(
    start: Start,
) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    view = Runs(beta.store.database)

    async def shown() -> tuple[str | None, bool]:
        (run,) = (await view.page()).items
        return run.node, run.silent_since is not None

    run_id = await alpha.run_of(output())
    assert await shown() == (None, False)
    await alpha.begin(run_id)
    assert await shown() == ("alpha", True)
    await beta.store.leases.hold(run_id)
    assert await shown() == ("beta", False)
    await beta.store.runs.interrupt(run_id, "x", beta.now)
    assert await shown() == (None, False)
    await beta.finish(run_id, Outcome.ABSTAIN)
    assert await shown() == ("beta", False)


# --- runs whose files are on one node -------------------------------------------------


async def test_a_local_run_waits_for_the_node_that_has_its_files(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha, bound=True)

    assert await beta.store.leases.lapsed() == []
    assert await beta.store.leases.hold(run_id) is None
    assert await alpha.store.leases.lapsed() == [run_id]


async def test_another_attempt_of_a_local_run_begins_on_its_node(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha, bound=True)
    await alpha.store.runs.fail(run_id, "oom", "no memory", alpha.now, alpha.now)
    await alpha.store.leases.release(run_id)

    assert await beta.store.runs.due(beta.now) == []
    with pytest.raises(LeaseLostError, match="node alpha owns it"):
        await beta.begin(run_id)
    assert [record.run_id for record in await alpha.store.runs.due(alpha.now)] == [run_id]
    await alpha.store.runs.begin(run_id, alpha.line, alpha.now, bound=True)


async def test_a_node_that_lives_keeps_a_local_run_that_waits_for_its_turn(start: Start) -> None:
    alpha, beta = await start(ALPHA), await start(replace(BETA, gone_after=NONE))
    run_id = await running(alpha, bound=True)
    await alpha.store.runs.interrupt(run_id, "x", alpha.now)
    await alpha.store.leases.release(run_id)
    assert [record.run_id for record in await beta.store.runs.due(beta.now)] == [run_id]

    await alpha.store.leases.renew()

    assert await beta.store.runs.due(beta.now) == []


async def test_a_local_run_of_a_node_that_is_silent_for_long_starts_elsewhere(
    start: Start,
) -> None:
    """So that a node that died does not hold up its line for ever."""
    alpha, beta = await start(ASLEEP), await start(replace(BETA, gone_after=NONE))
    run_id = await running(alpha, bound=True)
    await alpha.run_of(output("next"))

    assert await beta.store.leases.lapsed() == [run_id]
    assert await beta.store.leases.hold(run_id) == Hold(taken_from="alpha")
    await beta.store.runs.interrupt(run_id, "the job is gone", beta.now)
    record = await beta.store.runs.begin(run_id, beta.line, beta.now, bound=True)
    assert record.attempt == 2
    await beta.store.runs.fail(run_id, "x", "y", None, beta.now)

    assert len(await beta.store.runs.due(beta.now)) == 1


async def test_what_is_trained_belongs_to_no_node(start: Start) -> None:
    alpha, beta = await start(ASLEEP), await start(BETA)
    run_id = await running(alpha, bound=True)
    await alpha.store.runs.finish_training(run_id, "x", "0" * 64, TRAINED, alpha.now)

    assert await beta.store.leases.hold(run_id) == Hold(taken_from="alpha")


async def test_an_operator_gives_a_node_up(start: Start) -> None:
    alpha, beta = await start(ALPHA), await start(BETA)
    run_id = await running(alpha, bound=True)

    taken = await beta.store.leases.declare_gone(
        "alpha", reason="its disk burnt", actor="ann", now=beta.now
    )

    assert taken == [run_id]
    with pytest.raises(LeaseLostError):
        await alpha.store.runs.interrupt(run_id, "x", alpha.now)
    assert await alpha.store.leases.renew() == {run_id}
    assert await beta.store.leases.hold(run_id) == Hold(taken_from="alpha")
    (*_, gone, _) = await beta.rows(transitions, transitions.c.ref == run_id)
    assert (gone.actor, gone.reason) == ("ann", "node alpha is gone: its disk burnt")


async def test_a_planned_local_run_of_a_node_that_was_given_up_begins_elsewhere(
    start: Start,
) -> None:
    alpha, beta = await start(ALPHA), await start(BETA)
    run_id = await running(alpha, bound=True)
    await alpha.store.runs.interrupt(run_id, "x", alpha.now)
    assert await beta.store.runs.due(beta.now) == []

    await beta.store.leases.declare_gone("alpha", reason="gone", actor="ann", now=beta.now)

    assert [record.run_id for record in await beta.store.runs.due(beta.now)] == [run_id]


async def test_only_a_node_with_unfinished_runs_can_be_given_up(start: Start) -> None:
    alpha = await start(ALPHA)
    await alpha.finish(await alpha.run_of(output()), Outcome.ABSTAIN)

    for node in ("alpha", "nowhere"):
        with pytest.raises(UnknownNodeError, match=node):
            await alpha.store.leases.declare_gone(node, reason="x", actor="ann", now=alpha.now)
    assert (await alpha.store.runs.get((await alpha.rows(run_leases))[0].run_id)).state == (
        RunState.DECIDED
    )
