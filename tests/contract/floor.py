"""The workshop floor: a runner at work on a real store, with a provider that plays a script.

What happens is awaited as the facts that the runner announces; nobody sleeps.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from finetune.artifacts import ArtifactStore
from finetune.providers import Workbench
from finetune.runner import Runner, RunnerRules
from finetune.scripted_provider import ScriptedEvaluator, ScriptedProvider
from learning.budget import Budget
from learning.facts import Fact
from learning.lines import ModelLines
from learning.ports import (
    Evaluator,
    FineTuneProvider,
    JobFailedError,
    JobHandle,
    Recovery,
    RunSpec,
)
from tests.builders import output
from tests.contract.driver import Driver

F = TypeVar("F", bound=Fact)

AT_ONCE = RunnerRules(retry_base=timedelta(0), max_failures=2)
"""Without a pause between attempts: the test's clock stands still."""
PATIENCE_SECONDS = 60.0
OUTPUTS = 16


@dataclass
class Floor:
    """One store, one line, one provider; `at_work` is a daemon's runner from start to stop."""

    drive: Driver
    folder: Path
    rules: RunnerRules = AT_ONCE
    recovery: Recovery = Recovery.LOOKUP
    evaluator: Evaluator | None = None
    provider: FineTuneProvider | None = None
    needs_node: bool = False
    budget: Budget = field(default_factory=Budget)
    facts: list[Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.artifacts = ArtifactStore(self.folder / "artifacts")
        self.drive.configure(training={})
        self._news = asyncio.Event()
        self._numbers = itertools.count(1)

    def play(self, plan: str, **settings: Any) -> None:
        """What the provider's jobs do, from the next run on; see finetune.scripted_provider."""
        self.drive.configure(training={"plan": plan, **settings})

    async def sealed(self, **sealing: Any) -> str:
        """A batch of new outputs is sealed; the id of its run."""
        return await self.drive.run_of(
            *(output(f"task-{next(self._numbers)}") for _ in range(OUTPUTS)), **sealing
        )

    def scripted(self) -> ScriptedProvider:
        """The provider as it is made at a daemon's start: its jobs are in its folder."""
        return ScriptedProvider(self.folder / "scripted", self.artifacts, recovery=self.recovery)

    def runner(self) -> Runner:
        """As it is made at a daemon's start."""
        bench = Workbench(
            self.provider or self.scripted(),
            self.evaluator or ScriptedEvaluator(self.artifacts),
            needs_node=self.needs_node,
        )
        return Runner(
            store=self.drive.store.runs,
            leases=self.drive.store.leases,
            lines=ModelLines([self.drive.line]),
            workbenches={self.drive.line.provider: bench},
            artifacts=self.artifacts,
            dataset_dir=self.folder / "datasets",
            work_dir=self.folder / "work",
            rules=lambda: self.rules,
            announce=self._hear,
            clock=self.drive.clock,
            budget=lambda: self.budget,
        )

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[Runner]:
        """The runner works inside; leaving stops it as a daemon does."""
        runner = self.runner()
        work = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    def facts_of(self, kind: type[F]) -> list[F]:
        """All facts of a kind so far."""
        return [fact for fact in self.facts if isinstance(fact, kind)]

    async def until(self, kind: type[F]) -> F:
        """The latest fact of a kind, as soon as there is one."""
        await self.until_true(lambda: bool(self.facts_of(kind)))
        return self.facts_of(kind)[-1]

    async def until_true(self, condition: Callable[[], bool]) -> None:
        """Return as soon as the facts so far make it true."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def until_one_of(self, *kinds: type[Fact]) -> Fact:
        """The latest fact of some kinds, as soon as there is one."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := [fact for fact in self.facts if isinstance(fact, kinds)]):
                self._news.clear()
                await self._news.wait()
        return found[-1]

    async def launch_unheard(self, run_id: str) -> None:
        """A daemon launched the run's job, and died before it heard the reply."""
        record = await self.drive.begin(run_id)
        train_file = self.folder / "rows.jsonl"
        train_file.write_text("{}\n")
        assert record.parent is not None
        spec = RunSpec(
            run_id=run_id,
            attempt=record.attempt,
            line=record.line,
            parent=record.parent,
            train_file=train_file,
            work_dir=self.folder / "work" / run_id,
            training=record.training or {},
            seed=record.seed,
            timeout=timedelta(hours=1),
        )
        await self.scripted().launch(spec)

    async def jobs(self) -> Sequence[JobHandle]:
        """Every job that the provider ever made."""
        return await self.scripted().jobs()

    async def is_cancelled(self, job: JobHandle) -> bool:
        """Whether the provider was told to cancel a job."""
        try:
            await self.scripted().wait(job, lambda _: None)
        except JobFailedError as error:
            return error.code == "cancelled"
        return False

    def _hear(self, fact: Fact) -> None:
        self.facts.append(fact)
        self._news.set()
