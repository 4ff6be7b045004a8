"""Take each planned run from its batch to the gate's verdict, and go on after a restart.

Drives: the store remembers every step, a provider trains, an evaluator scores, the gate
in learning/gate.py decides. The step that a run is at is always read from the store, so
that a restarted runner and one that never stopped do the same.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import structlog

from finetune.artifacts import ArtifactError, ArtifactStore
from finetune.datasets.chat import Dataset, DatasetError, write_dataset, write_examples
from finetune.datasets.most_tokens import most_tokens
from finetune.providers import Workbench
from finetune.waking import woken
from learning.budget import Budget, PriceMissingError, Quote
from learning.clock import Clock
from learning.errors import IllegalMoveError, LearningError, UnsoundScoresError
from learning.facts import (
    Announce,
    CandidateDecided,
    RunCancelled,
    RunFailed,
    RunLaunched,
    RunLost,
    RunShortOfMoney,
    RunTakenOver,
    RunTrained,
    RunWaits,
)
from learning.failpoints import reached
from learning.gate import (
    GateReport,
    GateRules,
    HeldOut,
    Outcome,
    Refusal,
    Score,
    TrainingProof,
    choose_evidence,
    decide,
    refusal_of,
    refused,
    sound,
)
from learning.lifecycle import RunState
from learning.lines import ModelLine, ModelLines
from learning.ports import (
    ChampionMovedError,
    Duel,
    FineTuneProvider,
    JobFailedError,
    JobHandle,
    JobProgress,
    LeaseLostError,
    Recovery,
    RunLeases,
    RunRecord,
    RunSpec,
    RunStore,
    StoreUnavailableError,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

STORE_RETRY_SECONDS = 2.0
PROGRESS_SECONDS = 1.0
MOST_DOUBLINGS = 20
"""More of them would only overflow: the cap is reached long before."""
DUE_SECONDS = 5.0
"""How often the runner looks for due runs when nobody wakes it."""
RENEWALS = 3
"""How often a lease is renewed before it would lapse."""
DISOWN_SECONDS = 120.0
"""How long the new owner of a run is given to find a job that the old one launched late."""


@dataclass(frozen=True)
class RunnerRules:
    """Limits of a run. `max_failures` counts failures of the job, not of the daemon."""

    max_failures: int = 3
    retry_base: timedelta = timedelta(seconds=10)
    retry_cap: timedelta = timedelta(minutes=10)
    timeout: timedelta = timedelta(hours=4)
    max_active: int = 1
    simulation_mode: bool = False
    gate: GateRules = field(default_factory=GateRules)
    learns_from: Callable[[ModelLine], Sequence[str]] = lambda line: ()
    """The task types of other lines that are mixed into a line's batches."""


class ProviderGoneError(LearningError):
    """The provider of a run's job is not configured any more, so that nobody can end the job."""

    def __init__(self, provider: str) -> None:
        super().__init__(
            f"no line is configured for provider {provider!r}, which may have a job of the run:"
            " configure it again until the run is cancelled"
        )
        self.provider = provider


def retry_delay(failures: int, rules: RunnerRules, draw: Callable[[], float]) -> timedelta:
    """How long to wait after the `failures`-th failure (from 1): doubled each time, capped.

    `draw` gives a number in [0, 1); the delay is between half of the full one and all of it,
    so that runs which failed together do not come back together.
    """
    doubled: timedelta = rules.retry_base * 2 ** min(failures - 1, MOST_DOUBLINGS)
    return min(doubled, rules.retry_cap) * (0.5 + draw() / 2)


class Runner:
    """Works on the runs of one store. `run` owns every task that it starts."""

    def __init__(
        self,
        *,
        store: RunStore,
        leases: RunLeases,
        lines: ModelLines,
        workbenches: Mapping[str, Workbench],
        artifacts: ArtifactStore,
        dataset_dir: Path,
        work_dir: Path,
        rules: Callable[[], RunnerRules],
        announce: Announce,
        clock: Clock,
        budget: Callable[[], Budget] = Budget,
    ) -> None:
        """`budget` is asked before each launch: prices and caps may change."""
        self._store = store
        self._leases = leases
        self._lines = lines
        self._workbenches = workbenches
        self._artifacts = artifacts
        self._dataset_dir = dataset_dir
        self._work_dir = work_dir
        self._rules_now = rules
        self._announce = announce
        self._clock = clock
        self._budget = budget
        self._draw = random.Random().random  # noqa: S311 - jitter, not a secret
        self._wake = asyncio.Event()
        self._launching: set[str] = set()
        self._called_off: set[str] = set()
        self._condemned: set[str] = set()
        """Runs that were left where their cancellation was seen, and wait to be called off."""
        self._homeless: set[str] = set()
        """Runs of lines that are not configured here."""
        self._tokens: dict[str, int] = {}
        """Of due runs that have a price: in one pass over their dataset, at most."""
        self._places = asyncio.Semaphore(self._rules.max_active)

    @property
    def _rules(self) -> RunnerRules:
        """Those of this moment; what has to agree is read from one look."""
        return self._rules_now()

    def wake(self) -> None:
        """Look for runs to begin, go on with or call off, because something happened to one."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled. Cancelling ends local jobs after a checkpoint."""
        await self._ask(self._leases.release_all)
        async with asyncio.TaskGroup() as tasks:
            working: dict[str, asyncio.Task[None]] = {}

            def start(run_id: str, *, is_short: bool = False) -> None:
                if run_id not in working and run_id not in self._called_off:
                    task = tasks.create_task(self._work(run_id), name=run_id)
                    working[run_id] = task
                    task.add_done_callback(lambda _: working.pop(run_id))
                    # A run that waits for money has mostly been looked at in vain: another
                    # look at once would find as little, and yet another one after it.
                    if not is_short:
                        task.add_done_callback(lambda _: self._wake.set())

            def call_off(run_id: str) -> None:
                if run_id not in self._called_off:
                    self._called_off.add(run_id)
                    task = tasks.create_task(
                        self._call_off(run_id, working.get(run_id)), name=f"end of {run_id}"
                    )
                    task.add_done_callback(lambda _: self._called_off.discard(run_id))

            tasks.create_task(self._keep_leases(working), name="leases")
            while True:
                self._wake.clear()
                for record in await self._ask(self._store.cancelling):
                    call_off(record.run_id)
                for run_id in await self._ask(self._leases.lapsed):
                    if run_id not in self._homeless:
                        start(run_id)
                due = await self._ask(lambda: self._store.due(self._clock()))
                self._forget_tokens({record.run_id for record in due})
                for record in due:
                    if not (record.short_of_money and record.run_id in self._homeless):
                        start(record.run_id, is_short=record.short_of_money)
                await woken(self._wake, within_seconds=DUE_SECONDS)

    def _forget_tokens(self, due: Collection[str]) -> None:
        """Keep what was counted for runs that may begin, and for no others."""
        for run_id in self._tokens.keys() - due:
            del self._tokens[run_id]

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await question()
            except StoreUnavailableError as error:
                log.warning("store unavailable", error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)

    async def _keep_leases(self, working: Mapping[str, asyncio.Task[None]]) -> None:
        """Renew the leases, and end the work on a run that another daemon has taken."""
        while True:
            await asyncio.sleep(self._leases.duration.total_seconds() / RENEWALS)
            for run_id in await self._ask(self._leases.renew):
                if run_id in self._launching:
                    continue  # a job may be made just now: who made it has to see to it
                self._announce(RunLost(run_id))
                if (work := working.get(run_id)) is not None:
                    work.cancel()

    async def _work(self, run_id: str) -> None:
        """Work on one run, as long as it is this daemon's."""
        async with self._places:
            try:
                await self._go_on(run_id)
            except LeaseLostError as error:
                log.warning("a write about a run was refused", run=run_id, error=str(error))
                self._announce(RunLost(run_id))
            finally:
                # A run that is called off is held until its job has ended.
                if run_id not in self._called_off | self._condemned:
                    await self._let_go(run_id)

    async def _let_go(self, run_id: str) -> None:
        """Nobody has to wait for the lease; when the store is away, for no longer than it runs."""
        with contextlib.suppress(StoreUnavailableError):
            await self._leases.release(run_id)

    async def _go_on(self, run_id: str) -> None:
        """Take one run as far as it goes, from whatever step it is at."""
        unanswered = itertools.count(1)
        while True:
            try:
                record = await self._store.get(run_id)
                if record.state.active and not await self._is_ours(record):
                    return
                if not await self._step(record):
                    return
            except LeaseLostError:
                raise
            except StoreUnavailableError as error:
                log.warning("store unavailable", run=run_id, error=str(error))
                await asyncio.sleep(STORE_RETRY_SECONDS)
            except (ConnectionError, TimeoutError) as error:
                # What was asked for may have been done all the same: the stored step is
                # looked at again, so that a launch is looked up before there is another.
                log.warning("the provider did not answer", run=run_id, error=repr(error))
                delay = retry_delay(next(unanswered), self._rules, self._draw)
                await asyncio.sleep(delay.total_seconds())
            except Exception as error:
                # A defect in one run must not end intake and every other run.
                log.exception("run failed unexpectedly", run=run_id)
                failure = JobFailedError("internal", repr(error), retryable=False)
                await self._fail(record, failure, maybe_a_job=True)
                return

    async def _is_ours(self, record: RunRecord) -> bool:
        """Whether this daemon works on a run under way; one without an owner becomes its own."""
        hold = await self._leases.hold(record.run_id)
        if hold is not None and hold.taken_from is not None:
            self._announce(RunTakenOver(record.line, record.run_id, hold.taken_from))
        return hold is not None

    async def _call_off(self, run_id: str, work: asyncio.Task[None] | None) -> None:
        """End a run whose cancellation is stored: its work here, its job, then the run itself.

        Whatever stands in the way is tried again until the job is known to have ended.
        """
        if work is not None:
            work.cancel()
            await asyncio.wait({work})
        try:
            for tries in itertools.count(1):
                try:
                    await self._finish_off(run_id)
                except IllegalMoveError as error:
                    log.info("run was moved by another hand", run=run_id, reason=str(error))
                except Exception as error:
                    # One run that cannot be ended now must not end intake and every other run.
                    log.warning("run is not cancelled yet", run=run_id, error=repr(error))
                    delay = retry_delay(tries, self._rules, self._draw)
                    await asyncio.sleep(delay.total_seconds())
                    continue
                return
        finally:
            self._condemned.discard(run_id)
            await self._let_go(run_id)

    async def _finish_off(self, run_id: str) -> None:
        """End a run that nobody works on, if this daemon may: its job, then the run."""
        record = await self._store.get(run_id)
        if not record.state.active or record.cancellation is None:
            return
        if not await self._is_ours(record) or not await self._end_job(record):
            return
        await self._store.cancel(run_id, self._clock())
        asked = record.cancellation
        self._announce(RunCancelled(record.line, run_id, asked.actor, asked.reason))

    async def _end_job(self, record: RunRecord) -> bool:
        """End the job of a run. False when a person has to say whether there is one."""
        if record.state not in (RunState.LAUNCHING, RunState.RUNNING):
            return True
        workbench = self._workbenches.get(record.provider)
        if workbench is None:
            raise ProviderGoneError(record.provider)
        provider = workbench.provider
        if record.state is RunState.RUNNING:
            job = await self._job(record, workbench)
        elif provider.recovery is Recovery.LOOKUP:
            job = await provider.lookup(record.run_id, record.attempt)
        elif provider.recovery is Recovery.IDEMPOTENCY and (line := self._lines.get(record.line)):
            try:
                job = await provider.launch(await self._specify(record, line))
            except JobFailedError:
                job = None  # it is refused, so it was never made
        else:
            await self._wait_for_resolution(record, provider)
            return False
        if job is not None:
            if record.state is RunState.LAUNCHING:
                await self._store.adopt(record.run_id, job.job_id, self._clock())
            await provider.cancel(job)
            reached("job cancelled")
        return True

    async def _step(self, record: RunRecord) -> bool:
        """One step of one run. False when there is nothing to do for it now."""
        if record.cancellation is not None:
            self._condemned.add(record.run_id)
            return False
        line = self._lines.get(record.line)
        if line is None:
            log.error("run of a line that is not configured", run=record.run_id, line=record.line)
            self._homeless.add(record.run_id)
            if record.state is RunState.PLANNED:
                await self._wait(record, f"line {record.line} is not configured")
            return False
        try:
            match record.state:
                case RunState.PLANNED:
                    return await self._begin(record, line)
                case RunState.WAITING if record.short_of_money:
                    return await self._begin(record, line)
                case RunState.LAUNCHING:
                    return await self._resolve_launch(record, line)
                case RunState.RUNNING:
                    return await self._train(record, line)
                case RunState.TRAINED | RunState.EVALUATING:
                    return await self._prove(record, line)
                case _:
                    return False
        except JobFailedError as error:
            await self._fail(record, error)
        except (ArtifactError, DatasetError) as error:
            failure = JobFailedError(error.code, str(error), retryable=False)
            await self._fail(record, failure)
        except UnsoundScoresError as error:
            await self._fail(record, JobFailedError("bad_scores", str(error), retryable=False))
        except IllegalMoveError as error:
            log.info("run was moved by another hand", run=record.run_id, reason=str(error))
        return False

    async def _begin(self, record: RunRecord, line: ModelLine) -> bool:
        reason = self._obstacle(line)
        if reason is not None:
            if not record.short_of_money:
                await self._wait(record, reason)
            return False
        workbench = self._workbench(line)
        begun = await self._intend(record, line, bound=workbench.needs_node)
        if begun is None:
            return False
        record = begun
        spec = await self._specify(record, line)
        # Writing the files may have taken longer than the lease.
        if not await self._is_ours(record):
            return False
        self._launching.add(record.run_id)
        try:
            job = await workbench.provider.launch(spec)
            reached("job launched")
            try:
                await self._adopt(record, line, job)
            except (LeaseLostError, IllegalMoveError):
                await self._disown(job, workbench.provider)
                raise
        finally:
            self._launching.discard(record.run_id)
        return True

    async def _intend(self, record: RunRecord, line: ModelLine, *, bound: bool) -> RunRecord | None:
        """Store the intent of another attempt with what it may cost; None: there is no money.

        One that waits for money is announced when it begins to.
        """
        now = self._clock()
        try:
            quote = await self._quote(record, line)
        except PriceMissingError as missing:
            reason = str(missing)
            await self._store.wait_for(record.run_id, reason, now, for_money=True)
        except (DatasetError, OSError):
            # Only a run that has begun can fail.
            await self._store.begin(record.run_id, line, now, bound=bound)
            raise
        else:
            begun = await self._store.begin(record.run_id, line, now, bound=bound, quote=quote)
            if not begun.short_of_money:
                return begun
            reason = begun.message or ""
        if not record.short_of_money:
            self._announce(RunShortOfMoney(record.line, record.run_id, reason))
        return None

    async def _quote(self, record: RunRecord, line: ModelLine) -> Quote | None:
        """What another attempt may cost; None where that is nothing to keep account of.

        Raises PriceMissingError.
        """
        assert line.base_model is not None, "the runner checks this before it begins"
        budget = self._budget()
        at_home = self._workbench(line).needs_node
        if budget.is_free(line.provider, line.base_model, at_home=at_home):
            return None
        if (tokens := self._tokens.get(record.run_id)) is None:
            dataset = await self._write_dataset(record, line)
            tokens = await asyncio.to_thread(most_tokens, dataset.train_file)
            self._tokens[record.run_id] = tokens
        return budget.quote(
            line.provider,
            line.base_model,
            tokens=tokens,
            training=line.training,
            longest=self._rules.timeout,
        )

    async def _disown(self, job: JobHandle, provider: FineTuneProvider) -> None:
        """Cancel a job that was made after its run had gone on without it.

        The run's new owner may be looking for it just now: then it is that one's.
        """
        for _ in range(round(DISOWN_SECONDS / STORE_RETRY_SECONDS)):
            now = await self._store.get(job.run_id)
            if (now.attempt, now.state) != (job.attempt, RunState.LAUNCHING):
                if (now.attempt, now.job_id) != (job.attempt, job.job_id):
                    log.warning("a surplus job is cancelled", run=job.run_id, job=job.job_id)
                    await provider.cancel(job)
                return
            await asyncio.sleep(STORE_RETRY_SECONDS)
        log.error("a job may be one too many: look there", run=job.run_id, job=job.job_id)

    def _obstacle(self, line: ModelLine) -> str | None:
        if self._rules.simulation_mode:
            return "simulation mode is on: no job is launched"
        if line.base_model is None:
            return f"line {line.name} has no base model: set finetune.base_model"
        if line.provider not in self._workbenches:
            return f"provider {line.provider!r} of line {line.name} is not available"
        return None

    async def _resolve_launch(self, record: RunRecord, line: ModelLine) -> bool:
        """Find out what became of a launch whose reply nobody heard."""
        provider = self._workbench(line).provider
        match provider.recovery:
            case Recovery.NONE:
                await self._wait_for_resolution(record, provider)
                return False
            case Recovery.IDEMPOTENCY:
                job = await provider.launch(await self._specify(record, line))
                await self._adopt(record, line, job)
            case Recovery.LOOKUP:
                found = await provider.lookup(record.run_id, record.attempt)
                if found is not None:
                    await self._adopt(record, line, found)
                else:
                    await self._store.interrupt(
                        record.run_id, "the launch made no job; it is tried again", self._clock()
                    )
        return True

    async def _wait_for_resolution(self, record: RunRecord, provider: FineTuneProvider) -> None:
        reason = (
            f"nobody knows whether {provider.name} made a job for attempt {record.attempt}: look"
            f" there, then `learnd runs resolve {record.run_id} --job ID`, or --no-job"
        )
        await self._wait(record, reason)

    async def _wait(self, record: RunRecord, reason: str) -> None:
        await self._store.wait_for(record.run_id, reason, self._clock())
        self._announce(RunWaits(record.line, record.run_id, reason))

    async def _adopt(self, record: RunRecord, line: ModelLine, job: JobHandle) -> None:
        await self._store.adopt(record.run_id, job.job_id, self._clock())
        self._announce(
            RunLaunched(line.name, record.run_id, record.attempt, line.provider, job.job_id)
        )

    async def _train(self, record: RunRecord, line: ModelLine) -> bool:
        workbench = self._workbench(line)
        provider = workbench.provider
        job = await self._job(record, workbench)
        if job is None:
            await self._store.interrupt(
                record.run_id, "the job ended with its daemon; it goes on", self._clock()
            )
            return True
        started = self._clock()
        latest: list[JobProgress] = []
        reporter = asyncio.create_task(self._report(record.run_id, latest))
        try:
            outcome = await provider.wait(job, lambda progress: latest.append(progress))
        finally:
            reporter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporter
        reached("job ended")
        published = await asyncio.to_thread(
            self._artifacts.publish, record.run_id, outcome.output_dir
        )
        now = self._clock()
        await self._store.finish_training(
            record.run_id, published.name, published.manifest_sha256, outcome, now
        )
        self._announce(
            RunTrained(
                line.name,
                record.run_id,
                (now - started).total_seconds(),
                outcome.proof.trained_tokens,
            )
        )
        return True

    async def _job(self, record: RunRecord, workbench: Workbench) -> JobHandle | None:
        """The job that the run has adopted, unless it ended with the daemon that it ran in.

        Of several remote jobs a lookup could find another one than was adopted.
        """
        if workbench.needs_node:
            return await workbench.provider.lookup(record.run_id, record.attempt)
        assert record.job_id is not None, "adopt() stored it"
        return JobHandle(record.run_id, record.attempt, record.job_id)

    async def _report(self, run_id: str, latest: list[JobProgress]) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            if latest:
                progress = latest[-1]
                latest.clear()
                # A lease that was lost is noticed when it is renewed.
                with contextlib.suppress(StoreUnavailableError, LeaseLostError):
                    await self._store.report(run_id, progress, self._clock())

    async def _prove(self, record: RunRecord, line: ModelLine) -> bool:
        """Hold the candidate against the champion, and act on the gate's verdict."""
        duel = await self._store.enter(record.run_id, self._clock())
        report, scores = await self._judge(record, line, duel)
        reached("candidate judged")
        if report.outcome is Outcome.PROMOTE:
            # It was whole when it was loaded for the evaluation, which may be hours ago.
            await asyncio.to_thread(self._artifacts.verify_model, duel.candidate)
        try:
            decision = await self._store.decide(record.run_id, duel, report, scores, self._clock())
        except ChampionMovedError as error:
            log.info("compared again", run=record.run_id, reason=str(error))
            return True
        overall = report.overall
        self._announce(
            CandidateDecided(
                line=line.name,
                run_id=record.run_id,
                version=duel.candidate_number,
                outcome=report.outcome,
                reason=report.reason,
                champion_loss=overall.champion_loss if overall else None,
                candidate_loss=overall.candidate_loss if overall else None,
            )
        )
        if decision.promoted is not None:
            self._announce(decision.promoted)
        return False

    async def _judge(
        self, record: RunRecord, line: ModelLine, duel: Duel
    ) -> tuple[GateReport, Mapping[str, Any]]:
        refusal = refusal_of(TrainingProof(**(record.measurements or {})["proof"]))
        if refusal is None and duel.parent_rolled_back:
            refusal = Refusal.PARENT_ROLLED_BACK
        if refusal is not None:
            return refused(refusal), {}
        rows = await self._store.held_out_rows(line)
        now = self._rules  # the same for the evidence and the decision
        chosen = [(rows[index], recent) for index, recent in choose_evidence(len(rows), now.gate)]
        own = [
            HeldOut(row.id, row.task_type, recent, row.producer, row.category)
            for row, recent in chosen
        ]
        related = [
            row
            for task_type in now.learns_from(line)
            for row in await self._store.newest_held_out(task_type, now.gate.related_evidence)
            if own
        ]
        examples = own + [
            HeldOut(row.id, row.task_type, False, row.producer, row.category, related=True)
            for row in related
        ]
        champion: Sequence[Score] = ()
        candidate: Sequence[Score] = ()
        if examples:
            path = self._work_dir / record.run_id / "evaluation.jsonl"
            asked = [*(row for row, _ in chosen), *related]
            await asyncio.to_thread(write_examples, path, line, asked)
            try:
                champion, candidate = await self._score(line, duel, path, len(examples))
            finally:  # copies of examples, of other lines' too: nobody else looks for them here
                await asyncio.to_thread(path.unlink, missing_ok=True)
        reached("candidate scored")
        # The test imports a numeric library the first time, which takes a second.
        report = await asyncio.to_thread(decide, examples, champion, candidate, now.gate, duel.look)
        return report, {
            "examples": [example.id for example in examples],
            "champion": _columns(champion),
            "candidate": _columns(candidate),
            "measure": report.measure,
        }

    async def _score(
        self, line: ModelLine, duel: Duel, path: Path, n_examples: int
    ) -> tuple[Sequence[Score], Sequence[Score]]:
        """Both models on the same examples. A passing failure is tried again, in place.

        Raises JobFailedError and UnsoundScoresError.
        """
        models = {"champion": duel.champion, "candidate": duel.candidate}
        for failures in itertools.count(1):
            try:
                scores = await self._workbench(line).evaluator.score(models, path)
            except JobFailedError as error:
                if not error.retryable or failures >= self._rules.max_failures:
                    raise
                log.warning("evaluation failed, tried again", error=str(error))
                delay = retry_delay(failures, self._rules, self._draw)
                await asyncio.sleep(delay.total_seconds())
            else:
                champion, candidate = (sound(name, scores.get(name), n_examples) for name in models)
                return champion, candidate
        raise AssertionError("the loop above ends by itself")

    async def _fail(
        self, record: RunRecord, error: JobFailedError, *, maybe_a_job: bool = False
    ) -> None:
        """Record a failed attempt, with the time of the next one while failures are left."""
        current = await self._store.get(record.run_id)
        failures = current.failures + 1
        retried = (
            error.retryable
            and failures < self._rules.max_failures
            and current.state in (RunState.LAUNCHING, RunState.RUNNING)
        )
        now = self._clock()
        retry_at: datetime | None = None
        if retried:
            retry_at = now + retry_delay(failures, self._rules, self._draw)
        try:
            await self._store.fail(
                record.run_id,
                error.code,
                error.message,
                retry_at,
                now,
                maybe_a_job=maybe_a_job,
            )
        except IllegalMoveError as moved:  # cancelled meanwhile, for instance
            log.info("run was moved by another hand", run=record.run_id, reason=str(moved))
            return
        self._announce(
            RunFailed(
                record.line, record.run_id, current.attempt, error.code, error.message, retried
            )
        )

    async def _specify(self, record: RunRecord, line: ModelLine) -> RunSpec:
        """Everything the provider needs; the dataset files are written anew."""
        assert record.parent is not None, "begin() chose it"
        dataset = await self._write_dataset(record, line)
        return RunSpec(
            run_id=record.run_id,
            attempt=record.attempt,
            line=line.name,
            parent=record.parent,
            train_file=dataset.train_file,
            work_dir=self._work_dir / record.run_id,
            training=record.training or {},
            seed=record.seed,
            timeout=self._rules.timeout,
            validation_file=dataset.validation_file,
        )

    async def _write_dataset(self, record: RunRecord, line: ModelLine) -> Dataset:
        rows = await self._store.training_rows(record.batch_id)
        preferences = await self._store.preference_rows(record.batch_id)
        held_out = await self._store.held_out_rows(line)
        return await asyncio.to_thread(
            write_dataset,
            self._dataset_dir / record.run_id,
            run_id=record.run_id,
            batch_id=record.batch_id,
            seed=record.seed,
            line=line,
            training=rows,
            preferences=preferences,
            held_out=held_out,
        )

    def _workbench(self, line: ModelLine) -> Workbench:
        return self._workbenches[line.provider]


def _columns(scores: Sequence[Score]) -> Mapping[str, Any]:
    """Scores by column; a loss that is not finite is null, because JSON has no word for it."""
    return {
        "loss": [score.loss if score.loss - score.loss == 0 else None for score in scores],
        "match": [score.match for score in scores],
    }
