"""No statement of the loop reads a whole growing table: ten million events cost as few."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from daemon.store import Store
from daemon.store.feedback_effects import FeedbackEffects
from daemon.store.tables import events
from daemon.store.views import webhooks as views
from daemon.store.views.feedback import FeedbackLoop
from daemon.store.webhooks import Delivery
from learning.batch_sizing import SizeCause, Sizing
from learning.feedback import FeedbackRules
from learning.gate import Outcome
from learning.lifecycle import EventState
from learning.lines import ModelLines
from learning.policy import Policy, Verdict
from tests.builders import JUDGE, block, dead_letter, feedback, later, output, outputs
from tests.contract.driver import AS_SHIPPED, Driver, StoppedClock

GROWING = {
    "events",
    "feedback",
    "dead_letters",
    "transitions",
    "batches",
    "batch_members",
    "split_sides",
    "rejected_outputs",
    "replay_memory",
    "runs",
    "run_attempts",
    "run_leases",
    "versions",
    "alias_history",
    "evaluation_examples",
    "evaluations",
    "webhook_deliveries",
    "firewall_kinds",
    "firewall_bands",
    "firewall_stops",
    "feedback_dials",
    "feedback_effects",
    "feedback_moves",
}
PARTIAL = {
    # These hold only what waits or is under way, so reading all of one is no scan.
    "ix_dead_letters_unpublished",
    "ix_events_queued",
    "ix_events_queued_since",
    "ix_events_held",
    "ix_events_held_since",
    "ix_events_quarantined",
    "ix_firewall_stops_rule",
    "ix_firewall_stops_producer",
    "ix_feedback_undigested",
    "ix_feedback_waiting",
    "ix_runs_unfinished",
    "one_active_run",
}


class Statements:
    """Every statement that a store executes, once, with parameters to explain it by."""

    def __init__(self, store: Store) -> None:
        self.seen: dict[str, Any] = {}
        for engine in (store.database._writer, store.database._reader):
            event.listen(engine, "before_cursor_execute", self._note)

    def _note(
        self, connection: object, cursor: object, statement: str, parameters: Any, *_: object
    ) -> None:
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE", "WITH"):
            many = isinstance(parameters, list)
            self.seen.setdefault(statement, parameters[0] if many else parameters)

    def scans(self, tx: Connection) -> Iterator[str]:
        """Statements with a step that reads a growing table from end to end."""
        raw = tx.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        for statement, parameters in list(self.seen.items()):
            for *_, step in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters):
                scanned = re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", step)
                if scanned and scanned[1] in GROWING and scanned[2] not in PARTIAL:
                    yield f"{step}: {statement}"


@pytest.fixture(params=["sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """The plans that are read here are SQLite's."""
    return str(request.param)


@pytest.fixture
def statements(store: Store) -> Statements:
    return Statements(store)


async def test_nothing_that_the_loop_does_reads_a_whole_growing_table(
    drive: Driver, statements: Statements
) -> None:
    """The loop once around: every kind of arrival, move, batch, verdict and rollback."""
    store = drive.store
    await store.intake.claim("test", [("learnd.outputs", 0)])
    await store.intake.append(block(output("dead", event_id="e"), dead_letter()))
    await store.intake.append(block(output("reused", event_id="e")))
    await store.intake.dead_letter(1)
    await store.intake.replay(1, block(output("replayed")))
    await drive.send(feedback("early"), feedback("task-0"), *outputs(range(10)))
    await drive.send(*outputs(range(10, 14), approved=None), feedback("task-10"))
    yes = Verdict(EventState.QUEUED, "yes", by_human=True)
    await store.queue.judge_by_hand(15, yes, "ann", drive.now)
    await store.queue.expire(later(days=1), later(days=8))
    await store.queue.waiting_task_types()
    await store.queue.count_waiting()
    await store.queue.try_to_write()
    await store.outbox.mark([letter.id for letter in await store.outbox.take(5)])
    await store.queue.look(drive.line)
    await drive.send(output("x", approved=False, prompt="normalize a"), output("y", approved=False))
    await drive.send(feedback("task-11", approved=False))
    drive.configure(training={"objective": "dpo"})
    run_id = await drive.run_of(output("a"), rules=AS_SHIPPED)
    webhook = Delivery("wh_1", "fine_tuning.job.succeeded", "job-1")
    assert [await store.webhooks.store(webhook, drive.now) for _ in range(2)] == [1, None]
    await store.webhooks.hints()
    assert await store.webhooks.expire(later(days=-7)) == 0
    webhooks = views.Webhooks(store.database)
    assert await webhooks.page(types=[webhook.type]) == await webhooks.page()
    assert await webhooks.one(1) is not None
    await store.runs.due(drive.now)
    await store.runs.resume_waiting(drive.now)
    await drive.train(run_id)
    await store.leases.renew()
    await store.leases.lapsed()
    await store.leases.declare_gone("this-node", reason="test", actor="ann", now=drive.now)
    await store.leases.release_all()
    await store.leases.hold(run_id)
    await store.runs.held_out_rows(drive.line)
    await drive.decide(run_id, Outcome.REJECT)
    await drive.promote("1.0.1-rc.1")
    drive.configure(training={"objective": "kto"})
    batch = await drive.batch(output("b"), output("c"), rules=AS_SHIPPED)
    await store.runs.training_rows(batch.batch_id)
    assert await store.runs.preference_rows(batch.batch_id)
    assert batch.run_id is not None
    await drive.finish(batch.run_id, Outcome.PROMOTE)
    await drive.finish(await drive.run_of(output("d")), Outcome.ABSTAIN)
    await drive.rollback()
    await store.registry.loadable("normalize", "1.0.1")
    await store.queue.import_held_out([(1, output("x"), bytes(16))], "normalize", "ann", drive.now)
    for size in (30, 40):
        seen, _ = await store.batch_sizes.experience(drive.line, drive.now)
        await store.batch_sizes.change(seen, Sizing(size, 0, SizeCause.KEEP_UP, "x"), drive.now)
    await store.batch_sizes.set_by_hand("normalize", None, "", "ann", drive.now)
    await store.batch_sizes.current()
    assert len(statements.seen) > 40

    assert list(await store.database.write(lambda tx: list(statements.scans(tx)))) == []


async def test_nothing_that_feedback_changes_reads_a_whole_growing_table(
    store_url: str, tmp_path: Path, clock: StoppedClock
) -> None:
    store = await Store.open(
        store_url,
        artifacts_dir=tmp_path,
        judge=JUDGE,
        clock=clock,
        consequences=[FeedbackEffects(FeedbackRules)],
    )
    statements, drive = Statements(store), Driver(store, clock)
    for number in range(8):
        await drive.send(
            output(f"task-{number}"),
            feedback(
                f"task-{number}",
                producer=("ann", "bob")[number % 2],
                adaptation={"trust_delta": -1.0, "mood_adjustment": "calm"},
            ),
        )
        await store.digest.digest(drive.now)
    await store.dials.revision()
    await store.dials.standing(drive.now)
    assert await store.dials.style_of("normalize", drive.now) == {"calm": 0.1}
    assert (await store.dials.effects_of(8)).adaptations
    await drive.batch(output("a"), rules=AS_SHIPPED)
    view = FeedbackLoop(store.database, ModelLines([drive.line]), Policy, FeedbackRules, clock)
    assert await view.every_task_type() == [await view.one("normalize")]
    await view.effects(task_type="normalize", before=9, limit=1)
    await store.dials.reset("normalize", reason="", actor="ann", now=drive.now)

    assert list(await store.database.write(lambda tx: list(statements.scans(tx)))) == []
    await store.close()


async def test_the_check_itself_finds_a_scan(drive: Driver, statements: Statements) -> None:
    await drive.rows(events, events.c.reason == "x")

    (found,) = await drive.store.database.write(lambda tx: list(statements.scans(tx)))
    assert found.startswith("SCAN events")
