"""Anything may happen to a store in any order; after each step every promise holds.

Hypothesis plays arrivals, feedback, sealing, verdicts, promotions and rollbacks against a
real database, and shrinks what breaks a promise to a story short enough to read. In CI it
takes at least STEPS_IN_CI steps, counted; on a laptop a tenth of them.
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from semver import Version
from sqlalchemy import Connection, Row, select

from daemon.api.ports import ForgetOrder
from daemon.forgetting import DaemonForgetter
from daemon.forgotten_files import ForgottenFiles
from daemon.store import Store
from daemon.store.database import Database, sqlite_url
from daemon.store.forgettings import Counts
from daemon.store.registry import (
    NothingToRollBackError,
    PromotionRefusedError,
    TaintedVersionError,
)
from daemon.store.tables import evaluation_examples, events, retired_examples, runs, versions
from daemon.store.views.lineage import Lineages
from finetune.artifacts import ArtifactStore
from learning.batching import Trigger
from learning.budget import Price, Quote, Use
from learning.errors import ConflictError, IllegalMoveError
from learning.events import OutputEvent, digest, prompt_key
from learning.gate import Outcome, Refusal
from learning.judge import Judge
from learning.lifecycle import UNFINISHED_RUN_STATES, EventState, RunState, VersionState
from learning.lines import ModelLines
from learning.policy import Policy, Verdict
from learning.ports import ChampionMovedError, Duel
from learning.sampling import ReplayStrategy, SplitRules
from learning.validators import built_in
from tests.builders import block, dead_letter, feedback, judged, output
from tests.contract.driver import LINE, Driver, StoppedClock
from tests.contract.promises import broken_promises

T = TypeVar("T")

STEPS_IN_CI = 10_000
STEPS_A_STORY = 50
ON_A_LAPTOP = 10
"""There, one story of so many is played."""

A_EURO = Quote(LINE.base_model or "", "EUR", Price(per_job=Decimal(1)), Use(0, timedelta(0)))
AUTO = Judge(lambda: Policy(enable_auto_approval=True), built_in(max_output_characters=20))
PLAIN = LINE
BY_KTO = replace(LINE, training={"epochs": 1, "objective": "kto"})
ARCADE = replace(
    LINE,
    name="arcade",
    task_types=frozenset({"audio", "game"}),
    training={"epochs": 1, "objective": "dpo"},
)
LINE_OF = {"normalize": LINE, "audio": ARCADE, "game": ARCADE}

task_ids = st.sampled_from([f"t{n}" for n in range(12)])
task_types = st.sampled_from(sorted(LINE_OF))
lines = st.sampled_from([PLAIN, BY_KTO, ARCADE])
verdicts = st.none() | st.booleans()
outcomes = st.sampled_from(Outcome)
split_rules = st.builds(
    SplitRules,
    held_out_share=st.sampled_from([0.0, 0.2, 1.0]),
    starting_share=st.just(0.5),
    wanted_held_out=st.just(3),
    replay_share=st.sampled_from([0.0, 0.5]),
    replay_strategy=st.sampled_from(ReplayStrategy),
)


@st.composite
def arrivals(draw: st.DrawFn) -> Any:
    """An output of one of a few tasks, prompts, groups and ids, so that all of them meet."""
    task_id, task_type = draw(task_ids), draw(task_types)
    return output(
        task_id,
        task_type=task_type,
        event_id=draw(st.none() | st.sampled_from(["e1", "e2"])),
        prompt=f"prompt {draw(st.integers(0, 8))}",
        output=draw(st.sampled_from(["fine", " ", "much longer than may be"])),
        approved=draw(st.sampled_from([True, True, True, None, False])),
        confidence=draw(st.none() | st.sampled_from([0.1, 0.7, 0.95])),
        split_group=draw(st.none() | st.sampled_from(["alice", "bob"])),
        subject=draw(st.none() | st.sampled_from(["carol", "dave"])),
    )


@st.composite
def opinions(draw: st.DrawFn) -> Any:
    return feedback(
        draw(task_ids),
        task_type=draw(task_types),
        event_id=draw(st.uuids()).hex,
        approved=draw(verdicts),
    )


@dataclass(frozen=True)
class Seen:
    """What one look at everything saw."""

    broken: Sequence[str] = ()
    frozen: tuple[Row[Any], ...] = ()
    retired: frozenset[int] = frozenset()
    run_states: frozenset[str] = frozenset()
    n_queued_by_type: Counter[str] = field(default_factory=Counter)

    @property
    def n_queued(self) -> int:
        """In both lines."""
        return self.n_queued_by_type.total()


def _look(tx: Connection) -> Seen:
    """One transaction for each of many thousand steps."""
    queued = select(events.c.task_type).where(events.c.state == EventState.QUEUED)
    return Seen(
        broken_promises(tx),
        tuple(tx.execute(select(evaluation_examples).order_by(evaluation_examples.c.id))),
        frozenset(tx.execute(select(retired_examples.c.id)).scalars()),
        frozenset(tx.execute(select(runs.c.state).distinct()).scalars()),
        Counter(tx.execute(queued).scalars()),
    )


class NumberedIds:
    """In place of `uuid.uuid4`: the same ids each time a story is played.

    Rows come back in the order of their ids, so that with others the same choice would mean
    another run, and Hypothesis a story that it cannot repeat.
    """

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> uuid.UUID:
        self.n += 1
        return uuid.UUID(bytes=digest(f"{self.n}"))


IDS = NumberedIds()


@pytest.fixture(autouse=True)
def numbered_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", IDS)


class LoopAtRandom(RuleBasedStateMachine):
    """One store, two lines, and whatever comes."""

    def __init__(self, url: str) -> None:
        super().__init__()
        IDS.n = 0
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        path = Path(self.folder.name)
        clock = StoppedClock()
        self.store = self.do(Store.open(url, artifacts_dir=path, judge=AUTO, clock=clock))
        self.drive = Driver(self.store, clock, quote=A_EURO)
        configured = ModelLines([LINE, ARCADE])
        artifacts, forgettings = ArtifactStore(path / "artifacts"), self.store.forgettings
        nowhere = path / "runs"
        files = ForgottenFiles(forgettings, artifacts, configured, nowhere, nowhere, clock)
        self.forgetter = DaemonForgetter(
            self.store,
            Lineages(self.store.database),
            files,
            configured,
            lambda _: SplitRules(),
            lambda _: None,
            clock,
        )
        self.position = self.do(self.store.intake.claim("test", [("topic", 0)]))[0]
        self.sent = 0
        self.duels: dict[str, Duel] = {}
        self.seen = Seen()
        self.numbers: dict[str, list[Version]] = {}

    def teardown(self) -> None:
        self.do(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def do(self, action: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await action

        return self.loop.run_until_complete(awaited())

    def runs_in(self, *states: RunState) -> list[Row[Any]]:
        return self.do(self.drive.rows(runs, runs.c.state.in_(states)))

    def set_line(self, name: str) -> None:
        self.drive.line = ARCADE if name == "arcade" else LINE

    # --- what may happen ---------------------------------------------------------------

    @initialize()
    def declare(self) -> None:
        self.do(self.store.registry.ensure_lines([LINE, ARCADE], self.drive.now))

    @rule(line=lines, outcome=outcomes, n=st.integers(1, 3), rules=split_rules)
    def a_batch_goes_all_the_way(
        self, line: Any, outcome: Outcome, n: int, rules: SplitRules
    ) -> None:
        """The usual course of things, unless the line works on another run."""
        self.drive.line = line
        for _ in range(n):
            self.sent += 1
            task_type = sorted(line.task_types)[self.sent % len(line.task_types)]
            self.do(self.drive.send(output(f"fresh-{self.sent}", task_type=task_type)))
        self.do(self.drive.seal(trigger=Trigger.SIZE, rules=rules))
        for record in self.do(self.store.runs.due(self.drive.now)):
            if record.line == line.name:
                decision = self.do(self.drive.finish(record.run_id, outcome))
                if decision.promoted is not None:
                    self.number_given(line.name, decision.promoted.version)

    @rule(sent=st.lists(arrivals() | opinions() | st.just(dead_letter()), min_size=1, max_size=8))
    def arrive(self, sent: list[Any]) -> None:
        arrived = block(*sent, at=self.drive.now)
        outputs = [each for each in sent if isinstance(each, OutputEvent)]
        arrived = replace(
            arrived, outputs=[judged(each, at=self.drive.now, judge=AUTO) for each in outputs]
        )
        stored = self.do(self.store.intake.append(arrived))
        n_told = sum(stored.outputs.values()) + sum(stored.feedback.values()) + stored.duplicates
        assert n_told + sum(stored.dead_letters.values()) == len(sent)

    @rule(minutes=st.integers(1, 60 * 24 * 4))
    def time_passes(self, minutes: int) -> None:
        self.drive.wait(minutes=minutes)

    @rule()
    def expire(self) -> None:
        hold = Policy().hold
        self.do(self.store.queue.expire(self.drive.now - hold, self.drive.now))

    @rule(data=st.data(), approved=st.booleans(), by_human=st.booleans())
    def judge_by_hand(self, data: st.DataObject, approved: bool, by_human: bool) -> None:
        rows = self.do(self.drive.rows(events))
        if not rows:
            return
        row = data.draw(st.sampled_from(rows))
        state = EventState.QUEUED if approved else EventState.REJECTED
        verdict = Verdict(state, "by hand", by_human)
        with contextlib.suppress(ConflictError):
            self.do(self.store.queue.judge_by_hand(row.id, verdict, "ann", self.drive.now))

    @rule(example=arrivals())
    def import_held_out(self, example: Any) -> None:
        rows = [(1, example, prompt_key(example))]
        self.do(self.store.queue.import_held_out(rows, example.task_type, "ann", self.drive.now))

    @precondition(lambda self: self.seen.n_queued)
    @rule(
        line=lines,
        size=st.integers(1, 8),
        trigger=st.sampled_from([Trigger.SIZE, Trigger.FLUSH]),
        rules=split_rules,
    )
    def seal(self, line: Any, size: int, trigger: Trigger, rules: SplitRules) -> None:
        queue = self.do(self.store.queue.look(line))
        assert queue.waiting == sum(self.seen.n_queued_by_type[name] for name in line.task_types)
        batch = self.do(self.drive.seal(size=size, trigger=trigger, rules=rules, line=line))
        if batch is not None:
            assert trigger is Trigger.FLUSH or not queue.busy
            assert 1 <= batch.n_train + batch.n_held_out <= size

    @precondition(lambda self: RunState.PLANNED in self.seen.run_states)
    @rule(data=st.data(), ends=st.sampled_from(["train", "interrupt", "retry", "fail", "unheard"]))
    def work(self, data: st.DataObject, ends: str) -> None:
        due = self.do(self.store.runs.due(self.drive.now))
        if not due:
            return
        record = data.draw(st.sampled_from(due))
        self.set_line(record.line)
        match ends:
            case "train":
                self.do(self.drive.train(record.run_id))
                self.duels[record.run_id] = self.do(self.drive.enter(record.run_id))
            case "interrupt":
                self.do(self.drive.begin(record.run_id))
                self.do(self.store.runs.interrupt(record.run_id, "stopped", self.drive.now))
            case "unheard":
                self.do(self.drive.begin(record.run_id))
                self.do(self.store.runs.wait_for(record.run_id, "who knows", self.drive.now))
            case _:
                self.do(self.drive.begin(record.run_id))
                retry_at = self.drive.now if ends == "retry" else None
                self.do(self.store.runs.fail(record.run_id, "oom", "x", retry_at, self.drive.now))

    @precondition(lambda self: UNFINISHED_RUN_STATES & self.seen.run_states)
    @rule(data=st.data(), job_ends=st.booleans())
    def cancel(self, data: st.DataObject, job_ends: bool) -> None:
        run = data.draw(st.sampled_from(self.runs_in(*UNFINISHED_RUN_STATES)))
        self.do(self.store.interventions.cancel(run.id, "", "ann", self.drive.now))
        if job_ends and RunState(run.state).active:
            self.do(self.store.runs.cancel(run.id, self.drive.now))

    @precondition(lambda self: RunState.WAITING in self.seen.run_states)
    @rule(data=st.data(), found=st.booleans())
    def resolve(self, data: st.DataObject, found: bool) -> None:
        run = data.draw(st.sampled_from(self.runs_in(RunState.WAITING)))
        self.set_line(run.line)
        job_id = f"job of {run.id}" if found else None
        try:
            self.do(self.store.interventions.resolve(run.id, job_id, "ann", self.drive.now))
        except IllegalMoveError:
            assert found  # the line works on another run by now
        else:
            if found and run.cancel_asked_at is None:
                self.do(self.store.runs.fail(run.id, "x", "x", self.drive.now, self.drive.now))

    @precondition(lambda self: RunState.EVALUATING in self.seen.run_states)
    @rule(data=st.data(), outcome=outcomes, parent_blamed=st.booleans())
    def decide(self, data: st.DataObject, outcome: Outcome, parent_blamed: bool) -> None:
        run = data.draw(st.sampled_from(self.runs_in(RunState.EVALUATING)))
        self.set_line(run.line)
        refusal = Refusal.PARENT_ROLLED_BACK if parent_blamed else None
        try:
            decision = self.do(
                self.drive.decide(run.id, outcome, duel=self.duels[run.id], refusal=refusal)
            )
        except ChampionMovedError:
            self.duels[run.id] = self.do(self.drive.enter(run.id))
        except IllegalMoveError:
            assert run.cancel_asked_at is not None
        else:
            if decision.promoted is not None:
                self.number_given(run.line, decision.promoted.version)

    @precondition(lambda self: RunState.DECIDED in self.seen.run_states)
    @rule(data=st.data(), line=lines)
    def force(self, data: st.DataObject, line: Any) -> None:
        self.drive.line = line
        rows = self.do(self.drive.rows(versions, versions.c.line == line.name))
        row = data.draw(st.sampled_from(rows))
        try:
            promoted = self.do(self.drive.promote(row.candidate or row.release))
        except TaintedVersionError:
            assert row.state == VersionState.TAINTED
        except PromotionRefusedError:
            assert row.release is not None
        else:
            self.number_given(line.name, promoted.version)

    @precondition(lambda self: RunState.DECIDED in self.seen.run_states)
    @rule(data=st.data(), line=lines, default=st.booleans())
    def roll_back(self, data: st.DataObject, line: Any, default: bool) -> None:
        self.drive.line = line
        rows = self.do(
            self.drive.rows(versions, versions.c.line == line.name, versions.c.release.is_not(None))
        )
        tainted = {row.release for row in rows if row.state == VersionState.TAINTED}
        to = None if default else data.draw(st.sampled_from([row.release for row in rows]))
        before = self.do(self.drive.champion())
        try:
            done = self.do(self.drive.rollback(to))
        except NothingToRollBackError:
            assert default
        except TaintedVersionError:
            assert to in tainted
        except PromotionRefusedError:
            assert to == before
        else:
            assert done.left == before
            assert done.version not in tainted
            assert to is None or done.version == to

    @rule(data=st.data(), subject=st.sampled_from([None, None, "carol"]), retrain=st.booleans())
    def forget(self, data: st.DataObject, subject: str | None, retrain: bool) -> None:
        rows = self.do(self.drive.rows(events))
        if not rows:
            return
        sealed = [row for row in rows if row.state == EventState.SEALED]
        event = None if subject else str(data.draw(st.sampled_from(sealed or rows)).id)
        order = ForgetOrder(event=event, subject=subject, retrain=retrain)
        would = self.do(self.forgetter.forget(replace(order, dry_run=True), actor="ann"))
        done = self.do(self.forgetter.forget(order, actor="ann"))
        assert done.counts.outputs == would.counts.outputs
        assert done.counts.held_out == would.counts.held_out
        assert done.versions == would.versions
        again = self.do(self.forgetter.forget(order, actor="ann"))
        assert again.counts == Counts(0, 0, 0, 0)
        assert not any(one.batch for one in again.learned_again)

    # --- what must hold ----------------------------------------------------------------

    def number_given(self, line: str, number: str) -> None:
        """A release number is higher than all before it, so none is ever given twice."""
        given = self.numbers.setdefault(line, [Version(1, 0, 0)])
        assert Version.parse(number) > max(given)
        given.append(Version.parse(number))

    @invariant()
    def every_promise_holds(self) -> None:
        before, self.seen = self.seen, self.do(self.store.database.read(_look))
        assert self.seen.broken == []
        kept = tuple(row for row in before.frozen if row.id not in self.seen.retired)
        assert self.seen.frozen[: len(kept)] == kept, "it only grows, but by forgetting"


@pytest.fixture
def new_file() -> Iterator[Callable[[], str]]:
    """Each call gives a new database with its schema in place.

    In memory where there is a place for that: what a power cut would leave is not asked here.
    """
    memory = Path("/dev/shm")  # noqa: S108 - only the place; the folder's name is made up
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        empty = Path(folder, "empty.db")
        asyncio.run(_make(empty))
        number = 0

        def new() -> str:
            nonlocal number
            # Only one is in use at a time.
            for suffix in ("", "-wal", "-shm"):
                Path(folder, f"{number}.db{suffix}").unlink(missing_ok=True)
            number += 1
            return sqlite_url(Path(shutil.copy(empty, Path(folder, f"{number}.db"))))

        yield new


class InThisThread(Executor):
    """Runs everything at once: nothing here is concurrent, and a thread costs half the time."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, work: Callable[..., T], /, *args: Any, **named: Any) -> Future[T]:
        """Run it."""
        done: Future[T] = Future()
        try:
            done.set_result(work(*args, **named))
        except BaseException as error:  # its caller gets it
            done.set_exception(error)
        return done


async def _make(file: Path) -> None:
    database = Database(sqlite_url(file))
    await database.migrate()
    await database.close()


@pytest.mark.timeout(900)
def test_whatever_happens_in_whatever_order_every_promise_holds(
    new_file: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.store.database.ThreadPoolExecutor", InThisThread)
    n_steps = 0

    class Counted(LoopAtRandom):
        def __init__(self) -> None:
            super().__init__(new_file())

        @invariant()
        def another_step(self) -> None:
            nonlocal n_steps
            n_steps += 1

    wanted = STEPS_IN_CI if os.environ.get("CI") == "true" else STEPS_IN_CI // ON_A_LAPTOP
    run_state_machine_as_test(
        Counted,
        settings=settings(
            # Some stories end early: Hypothesis begins with the simplest.
            max_examples=wanted * 5 // 4 // STEPS_A_STORY,
            stateful_step_count=STEPS_A_STORY,
        ),
    )

    assert n_steps >= wanted, f"only {n_steps} steps were taken"


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
def test_a_server_keeps_every_promise_too(new_store_url: Callable[[], str]) -> None:
    """Fewer steps: what differs from a file is its types, its locks and its order of text."""

    class OnOneDatabase(LoopAtRandom):
        def __init__(self) -> None:
            super().__init__(new_store_url())

    run_state_machine_as_test(
        OnOneDatabase, settings=settings(max_examples=15, stateful_step_count=30)
    )
