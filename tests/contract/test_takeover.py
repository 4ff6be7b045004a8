"""Two daemons' runners on one database and one provider: one falls silent, the other goes on.

The test puts a lease's end into the past, so that nobody waits for it; that one lapses by
itself is for real processes in tests/acceptance.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from daemon.store import Store
from daemon.store.leases import Tenancy
from daemon.store.tables import run_attempts, run_leases
from finetune.runner import Runner
from finetune.scripted_provider import ScriptedProvider
from learning.facts import CandidateDecided, RunCancelled, RunLaunched, RunLost, RunTakenOver
from learning.ports import Hold, JobHandle, JobProgress, Recovery, RunSpec, TrainingOutcome
from tests.builders import JUDGE, LONG_AGO
from tests.contract.driver import Driver, StoppedClock
from tests.contract.floor import PATIENCE_SECONDS, Floor
from tests.contract.promises import broken_promises

LEASE = timedelta(seconds=3)


@dataclass
class Pair:
    """Two floors, alpha's and beta's, that share everything but their memory."""

    alpha: Floor
    beta: Floor

    async def beta_takes_over(self, at_beta: Runner) -> None:
        """Alpha's leases lapse, again where it renewed one meanwhile, until beta has its run."""
        long_ago = update(run_leases).where(run_leases.c.owner == "alpha").values(until=LONG_AGO)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.beta.facts_of(RunTakenOver):
                await self.beta.drive.store.database.write(lambda tx: tx.execute(long_ago))
                at_beta.wake()
                await asyncio.sleep(0.05)

    def decided(self) -> list[CandidateDecided]:
        return self.alpha.facts_of(CandidateDecided) + self.beta.facts_of(CandidateDecided)

    async def attempts(self) -> list[tuple[str | None, str | None]]:
        rows = await self.beta.drive.rows(run_attempts)
        return [(row.job_id, row.result) for row in rows]


class Relay:
    """A provider that passes everything on to another one."""

    def __init__(self, provider: ScriptedProvider) -> None:
        self._provider = provider

    @property
    def name(self) -> str:
        return self._provider.name

    @property
    def recovery(self) -> Recovery:
        return self._provider.recovery

    def check_training(self, training: Mapping[str, Any]) -> None:
        self._provider.check_training(training)

    async def launch(self, spec: RunSpec) -> JobHandle:
        return await self._provider.launch(spec)

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        return await self._provider.lookup(run_id, attempt)

    async def wait(
        self, job: JobHandle, on_progress: Callable[[JobProgress], None]
    ) -> TrainingOutcome:
        return await self._provider.wait(job, on_progress)

    async def cancel(self, job: JobHandle) -> None:
        await self._provider.cancel(job)


class SlowToLaunch(Relay):
    """A launch reaches the provider, and its reply the daemon, when the test lets it."""

    def __init__(self, provider: ScriptedProvider) -> None:
        super().__init__(provider)
        self.asked, self.launched = asyncio.Event(), asyncio.Event()
        self.may_launch, self.may_reply = asyncio.Event(), asyncio.Event()
        self.may_reply.set()
        self.cancelled: list[JobHandle] = []

    async def launch(self, spec: RunSpec) -> JobHandle:
        self.asked.set()
        await self.may_launch.wait()
        job = await super().launch(spec)
        self.launched.set()
        await self.may_reply.wait()
        return job

    async def cancel(self, job: JobHandle) -> None:
        await super().cancel(job)
        self.cancelled.append(job)


class Forgetful(Relay):
    """Knows only the jobs that it launched itself, as a trainer on this machine does."""

    def __init__(self, provider: ScriptedProvider) -> None:
        super().__init__(provider)
        self._launched: set[JobHandle] = set()

    async def launch(self, spec: RunSpec) -> JobHandle:
        job = await super().launch(spec)
        self._launched.add(job)
        return job

    async def lookup(self, run_id: str, attempt: int) -> JobHandle | None:
        job = await super().lookup(run_id, attempt)
        return job if job in self._launched else None


async def until(reached: Callable[[], bool]) -> None:
    """Look again and again, until a condition holds or the patience ends."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not reached():  # noqa: ASYNC110 - either daemon may bring the news
            await asyncio.sleep(0.01)


@pytest.fixture
async def pair(store_url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:

        async def floor(name: str) -> Floor:
            store = await Store.open(
                store_url,
                artifacts_dir=tmp_path / "artifacts",
                judge=JUDGE,
                clock=StoppedClock(),
                tenancy=Tenancy(owner=name, node=name, lease=LEASE),
            )
            stack.push_async_callback(store.close)
            return Floor(Driver(store), tmp_path)

        both = Pair(await floor("alpha"), await floor("beta"))
        yield both
        assert await both.alpha.drive.store.database.read(broken_promises) == []


def play(pair: Pair, plan: str) -> None:
    for floor in (pair.alpha, pair.beta):
        floor.play(plan)


async def test_the_job_of_a_silent_daemon_is_adopted_and_not_doubled(pair: Pair) -> None:
    play(pair, "outlive")  # it ends for nobody but a daemon that did not launch it
    run_id = await pair.alpha.sealed()

    async with pair.alpha.at_work():
        launched = await pair.alpha.until(RunLaunched)
        async with pair.beta.at_work() as at_beta:
            await pair.beta_takes_over(at_beta)
            await pair.beta.until(CandidateDecided)
        lost = await pair.alpha.until(RunLost)

    (taken,) = pair.beta.facts_of(RunTakenOver)
    assert (taken.run_id, taken.taken_from) == (run_id, "alpha")
    assert lost.run_id == run_id
    assert await pair.attempts() == [(launched.job_id, "succeeded")]
    assert len(await pair.beta.jobs()) == 1


async def test_two_daemons_work_through_the_runs_of_a_line_without_doing_one_twice(
    pair: Pair,
) -> None:
    play(pair, "improve")
    run_ids = {await pair.alpha.sealed() for _ in range(4)}

    async with pair.beta.at_work(), pair.alpha.at_work():
        await until(lambda: len(pair.decided()) == 4)

    assert {fact.run_id for fact in pair.decided()} == run_ids
    attempts = await pair.attempts()
    assert [result for _, result in attempts] == ["succeeded"] * 4
    assert len({job for job, _ in attempts}) == len(await pair.beta.jobs()) == 4
    assert pair.alpha.facts_of(RunLost) + pair.beta.facts_of(RunLost) == []


async def test_a_job_that_was_launched_too_late_is_cancelled(pair: Pair) -> None:
    """Alpha was asleep between the intent and the launch, and beta found no job."""
    play(pair, "improve,hang")
    slow = SlowToLaunch(pair.alpha.scripted())
    pair.alpha.provider = slow
    await pair.alpha.sealed()

    async with pair.alpha.at_work():
        await slow.asked.wait()
        async with pair.beta.at_work() as at_beta:
            await pair.beta_takes_over(at_beta)
            second = await pair.beta.until(RunLaunched)
            slow.may_launch.set()
            await pair.alpha.until(RunLost)

    assert pair.alpha.facts_of(RunLaunched) == []
    (surplus,) = slow.cancelled
    assert surplus.attempt == 1
    assert await pair.attempts() == [(None, "interrupted"), (second.job_id, None)]
    assert surplus.job_id != second.job_id


async def test_a_job_that_was_launched_too_late_and_adopted_all_the_same_is_left_alone(
    pair: Pair,
) -> None:
    """The launch of alpha reached the provider before beta looked, its reply after that."""
    play(pair, "hang")
    slow = SlowToLaunch(pair.alpha.scripted())
    slow.may_launch.set()
    slow.may_reply.clear()
    pair.alpha.provider = slow
    await pair.alpha.sealed()

    async with pair.alpha.at_work():
        await slow.launched.wait()
        async with pair.beta.at_work() as at_beta:
            await pair.beta_takes_over(at_beta)
            adopted = await pair.beta.until(RunLaunched)
            slow.may_reply.set()
            await pair.alpha.until(RunLost)

    assert slow.cancelled == []
    assert [job.job_id for job in await pair.beta.jobs()] == [adopted.job_id]


async def test_a_local_run_waits_for_its_node_and_starts_elsewhere_once_that_is_given_up(
    pair: Pair,
) -> None:
    for floor in (pair.alpha, pair.beta):
        floor.needs_node = True
        floor.provider = Forgetful(floor.scripted())
    play(pair, "hang; improve")
    run_id = await pair.alpha.sealed()
    async with pair.alpha.at_work():
        await pair.alpha.until(RunLaunched)
    assert await pair.beta.drive.store.leases.lapsed() == []  # alpha stopped, and beta waits

    play(pair, "improve")
    drive = pair.beta.drive
    await drive.store.leases.declare_gone("alpha", reason="burnt", actor="ann", now=drive.now)
    async with pair.beta.at_work():
        await pair.beta.until(CandidateDecided)

    assert [result for _, result in await pair.attempts()] == ["interrupted", "succeeded"]
    assert (await pair.beta.drive.store.runs.get(run_id)).attempt == 2


async def test_whoever_has_a_run_ends_it_when_another_daemon_is_asked_to_cancel_it(
    pair: Pair,
) -> None:
    play(pair, "hang")
    run_id = await pair.alpha.sealed()
    async with pair.alpha.at_work() as at_alpha:
        await pair.alpha.until(RunLaunched)
        async with pair.beta.at_work() as at_beta:
            await pair.beta.drive.store.interventions.cancel(
                run_id, "x", "ann", pair.beta.drive.now
            )
            at_beta.wake()
            at_alpha.wake()
            await pair.alpha.until(RunCancelled)

    (job,) = await pair.alpha.jobs()
    assert await pair.alpha.is_cancelled(job)
    assert pair.beta.facts_of(RunCancelled) == []


async def test_a_run_that_is_left_because_it_was_cancelled_is_not_anothers_to_end(
    pair: Pair,
) -> None:
    """Beta asks for it in every moment in which alpha does not have it."""
    play(pair, "hang")
    slow = SlowToLaunch(pair.alpha.scripted())
    slow.may_launch.set()
    slow.may_reply.clear()
    pair.alpha.provider = slow
    let_go = pair.alpha.drive.store.leases.release
    granted: list[Hold | None] = []

    async def grabbed_at_once(run_id: str) -> None:
        await let_go(run_id)
        granted.append(await pair.beta.drive.store.leases.hold(run_id))

    pair.alpha.drive.store.leases.release = grabbed_at_once  # type: ignore[method-assign]
    run_id = await pair.alpha.sealed()

    async with pair.alpha.at_work():
        await slow.launched.wait()
        await pair.alpha.drive.store.interventions.cancel(run_id, "x", "ann", pair.alpha.drive.now)
        slow.may_reply.set()
        await pair.alpha.until(RunCancelled)

    assert [job.run_id for job in slow.cancelled] == [run_id]
    assert not any(granted)
