"""Simulations of histories that the real store made: both databases, driven as a daemon drives."""

import asyncio
import hashlib
import random
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import insert

from daemon.api.ports import SimulationAnswer
from daemon.loops import Sealer
from daemon.settings import Settings
from daemon.simulating import SimulationError, order, perform
from daemon.simulations import SimulationRunsError, Simulations, SimulationTooLongError
from daemon.store.database import address_of, sqlite_url
from daemon.store.read_only import NothingStoredError, OtherSchemaError, opened
from daemon.store.setting_changes import SettingChanges
from daemon.store.tables import model_lines
from learning.budget import Price, Quote, Use
from learning.gate import Outcome
from learning.lifecycle import EventState
from learning.lines import ModelLines
from learning.policy import Verdict
from learning.ports import StoreUnavailableError
from learning.sampling import SplitRules
from learning.simulation import Became, Change
from tests.builders import NOON, feedback, output, outputs
from tests.contract.driver import LINE, Driver, everything

SPLIT = SplitRules(replay_share=0.0, cross_task_learning=False)


@pytest.fixture
def settings(store_url: str) -> Settings:
    """Those of the daemon that made the history."""
    return Settings(
        database_url=store_url,
        policy={"max_output_characters": 1_000, "hold_days": 1},
        queue={"batch_size": 5, "max_queue_size": 12, "adaptive": False},
        split={"replay_share": 0.0, "cross_task_learning": False},
        finetune={"provider": "scripted", "base_model": "tiny"},
    )


def simulated(
    drive: Driver,
    settings: Settings,
    values: Mapping[str, Any] | None = None,
    *,
    since: str = "30d",
    until: str | None = None,
    **more: Any,
) -> SimulationAnswer:
    asked: dict[str, Any] = {"line": None, "task_type": None, "run_seconds": 300.0, **more}
    return perform(order(settings, values or {}, now=drive.now, since=since, until=until, **asked))


class History:
    """Half a week of a line: outputs, feedback, verdicts by hand, batches, runs and expiry."""

    def __init__(self, drive: Driver, settings: Settings, seed: int) -> None:
        self.drive = drive
        self.settings = settings
        self.chance = random.Random(seed)
        self.sealer = Sealer(
            drive.store,
            ModelLines([LINE]),
            settings.batch_rules,
            lambda line: SPLIT,
            lambda fact: None,
            drive.clock,
        )
        self.sent = 0

    async def pass_by(self, steps: int) -> None:
        size = self.settings.queue.batch_size
        await self.drive.store.batch_sizes.set_by_hand(LINE.name, size, "", "ann", self.drive.now)
        for _ in range(steps):
            self.drive.wait(seconds=5)
            await self._something()
            self.drive.wait(seconds=1)
            await self._clockwork()
            await self._wait(timedelta(minutes=self.chance.choice([1, 5, 20, 80])))
            await self._clockwork()
        self.drive.wait(seconds=5)

    async def _wait(self, duration: timedelta) -> None:
        """Let time pass, and look whenever the oldest that waits has waited long enough."""
        target = self.drive.now + duration
        while True:
            queue = await self.drive.store.queue.look(LINE)
            if queue.busy or queue.oldest_waiting is None:
                break
            due_at = queue.oldest_waiting + self.settings.batch_rules().max_wait
            if due_at >= target:
                break
            self.drive.clock.now = max(due_at, self.drive.now)
            await self.sealer.seal_due()
        self.drive.clock.now = target

    async def _clockwork(self) -> None:
        now = self.drive.now
        await self.drive.store.queue.expire(now - self.settings.policy_rules().hold, now)
        for run in await self.drive.store.runs.due(now):
            if self.chance.random() < 0.5:
                await self.drive.finish(run.run_id, Outcome.ABSTAIN)
        await self.sealer.seal_due()

    async def _something(self) -> None:
        what = self.chance.random()
        if what < 0.6:
            await self.drive.send(*(self._output() for _ in range(self.chance.choice([1, 2, 9]))))
        elif what < 0.9 and self.sent:
            await self.drive.send(*(self._feedback() for _ in range(3)))
        else:
            await self._by_hand()

    def _output(self) -> Any:
        self.sent += 1
        return output(
            f"t-{self.sent}",
            approved=self.chance.choice([True, True, True, False, None]),
            confidence=self.chance.choice([None, 0.5, 0.72, 0.95]),
            output="x" * self.chance.choice([10, 10, 10, 2_000]),
        )

    def _feedback(self) -> Any:
        # Some of it comes before its output.
        task = self.chance.randint(max(1, self.sent - 8), self.sent + 3)
        return feedback(f"t-{task}", approved=self.chance.choice([True, True, False, None]))

    async def _by_hand(self) -> None:
        states = await self.drive.states()
        waiting = [task for task, state in states.items() if state in ("held", "quarantined")]
        if waiting:
            row = await self.drive.event(self.chance.choice(waiting))
            state = self.chance.choice([EventState.QUEUED, EventState.REJECTED])
            await self.drive.store.queue.judge_by_hand(
                row.id, Verdict(state, "I looked", by_human=True), "cli:ann", self.drive.now
            )


@pytest.mark.parametrize("seed", range(2))
async def test_without_a_change_the_simulation_is_what_happened(
    drive: Driver, settings: Settings, seed: int
) -> None:
    await History(drive, settings, seed).pass_by(70)

    found = simulated(drive, settings)
    report = found.report
    assert found.setting_changes == 0
    assert report.control.differences == []
    assert report.control.reproduced == report.control.verdicts == report.arrived
    assert report.arrived == len(await drive.states()) > 80
    assert report.changes == []
    recorded, again = report.total.recorded, report.total.simulated
    assert min(getattr(recorded, kind) for kind in Became) > 0
    assert sum(recorded.batches.values()) > 5
    assert (again.batches, again.sealed) == (recorded.batches, recorded.sealed)
    # The run of the last batch is not launched yet.
    assert 0 <= again.launched - recorded.launched <= 1
    assert report.series.simulated.counts == report.series.recorded.counts


async def test_a_stretch_in_the_middle_begins_with_what_waited_then(
    drive: Driver, settings: Settings
) -> None:
    await History(drive, settings, 7).pass_by(70)
    for since, until in (("20h", None), ("20h", "9h"), ("30d", "12h")):
        report = simulated(drive, settings, since=since, until=until).report
        assert report.control.differences == []
        assert report.control.verdicts == report.arrived + report.carried
        assert (report.carried > 0) == (since != "30d")
        assert report.changes == []
        recorded, again = report.total.recorded, report.total.simulated
        assert sum(recorded.batches.values()) > 2
        assert (again.batches, again.sealed) == (recorded.batches, recorded.sealed)


async def test_feedback_that_waited_since_before_the_stretch_meets_its_output_in_it(
    drive: Driver, settings: Settings
) -> None:
    await drive.send(feedback("a"), feedback("b", approved=False))
    drive.wait(hours=2)
    await drive.send(output("a", approved=None), output("b"))
    drive.wait(seconds=1)
    for since in ("1h", "30d"):
        report = simulated(drive, settings, since=since).report
        assert (report.total.recorded.accepted, report.total.recorded.withdrawn) == (1, 1)
        assert (report.changes, report.control.reproduced) == ([], 2)


async def test_it_touches_nothing(
    drive: Driver, settings: Settings, store_url: str, kind: str
) -> None:
    await History(drive, settings, 1).pass_by(40)
    before = await everything(drive.store.database)
    marks = _marks(store_url)

    values = {"policy.min_confidence": 0.4, "policy.max_output_characters": 5_000}
    simulated(drive, settings, values)

    assert _marks(store_url) == marks
    assert await everything(drive.store.database) == before
    row = {"name": "x", "base_model": "x", "created_at": NOON}
    with opened(store_url) as database, pytest.raises(StoreUnavailableError, match=r"read-?only"):
        database.read(lambda tx: tx.execute(insert(model_lines), row))
    assert await everything(drive.store.database) == before


def _marks(url: str) -> Any:
    """What any write would change: the file's bytes and times, or the rows that were written."""
    address = address_of(url)
    if address.get_backend_name() == "sqlite":
        file = Path(str(address.database))
        files = (file, Path(f"{file}-wal"))
        return [
            (hashlib.sha256(one.read_bytes()).digest(), one.stat().st_mtime_ns) for one in files
        ]
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("SELECT pg_stat_force_next_flush()")
        written = "sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del)"
        return session.execute(f"SELECT {written} FROM pg_stat_user_tables").fetchone()  # noqa: S608  # our own names


async def test_a_lower_bar_is_asked_with_the_validators_that_were_not_asked_then(
    drive: Driver, settings: Settings
) -> None:
    await drive.send(
        output("short", confidence=0.5),
        output("long", confidence=0.5, output="x" * 2_000),
        output("stopped", output="x" * 3_000),
    )
    lower = {"policy.min_confidence": 0.4}
    report = simulated(drive, settings, lower, until="now").report
    assert report.arrived == 0  # what arrives at the end of a stretch is not in it

    drive.wait(seconds=1)
    report = simulated(drive, settings, lower).report
    assert report.changes == [
        Change(Became.HELD, Became.ACCEPTED, 1),
        Change(Became.HELD, Became.QUARANTINED, 1),
    ]
    longer = {**lower, "policy.max_output_characters": 2_500}
    assert simulated(drive, settings, longer).report.changes == [
        Change(Became.HELD, Became.ACCEPTED, 2)
    ]
    shorter = {"policy.max_output_characters": 5}
    assert simulated(drive, settings, shorter).report.changes == []
    assert simulated(drive, settings, shorter).report.control.reproduced == 3


async def test_a_longer_hold_asks_the_validators_of_what_had_expired(
    drive: Driver, settings: Settings
) -> None:
    await drive.send(
        output("good", approved=None), output("long", approved=None, output="x" * 2_000)
    )
    drive.wait(days=2)
    await drive.store.queue.expire(drive.now - timedelta(days=1), drive.now)
    await drive.send(feedback("good"), feedback("long"))
    drive.wait(seconds=1)

    assert simulated(drive, settings).report.changes == []
    assert simulated(drive, settings, {"policy.hold_days": 3}).report.changes == [
        Change(Became.EXPIRED, Became.ACCEPTED, 1),
        Change(Became.EXPIRED, Became.QUARANTINED, 1),
    ]


async def test_settings_that_changed_meanwhile_are_told_and_what_happened_stays(
    drive: Driver, settings: Settings
) -> None:
    await drive.send(output("before", confidence=0.8))
    drive.wait(seconds=1)
    await SettingChanges(drive.store.database).change(
        0, {("policy", "min_confidence"): 0.9}, reason="", actor="ann", now=drive.now
    )
    drive.wait(seconds=1)
    higher = settings.model_copy(
        update={"policy": settings.policy.model_copy(update={"min_confidence": 0.9})}
    )
    found = simulated(drive, higher)
    assert found.setting_changes == 1
    assert found.report.total.recorded.accepted == 1
    assert found.report.total.simulated.held == 1
    assert (found.report.control.reproduced, found.report.control.verdicts) == (0, 1)


async def test_costs_are_those_of_the_record_beside_what_the_tokens_of_the_line_would_cost(
    drive: Driver, settings: Settings
) -> None:
    price = Price(per_million_tokens=Decimal(10))
    drive.quote = Quote("tiny", "USD", price, Use(1_000_000, timedelta(hours=1)))
    prices = {"scripted": {"tiny": {"per_million_tokens": 10}}}
    priced = Settings(**{**settings.model_dump(exclude_unset=True), "money": {"prices": prices}})
    await drive.finish(await drive.run_of(*outputs(range(5)), size=5), Outcome.REJECT)
    drive.wait(seconds=1)

    report = simulated(drive, priced).report
    assert report.total.recorded.spent == Decimal(10)
    flushed = report.total.simulated
    assert (flushed.batches, flushed.trained) == ({"flush": 1}, 2)
    # 1,000,000 tokens for 5 rows then; 2 of them would train.
    assert flushed.spent == Decimal(4)
    twice = {"money.prices.scripted.tiny.per_million_tokens": 20}
    assert simulated(drive, priced, twice).report.total.simulated.spent == Decimal(8)


async def test_one_line_or_task_type_is_simulated_alone(drive: Driver, settings: Settings) -> None:
    await drive.send(output("a"), output("b", task_type="audio"))
    drive.wait(seconds=1)
    assert simulated(drive, settings, line="audio").report.lines.keys() == {"audio"}
    assert simulated(drive, settings, task_type="normalize").report.arrived == 1
    assert simulated(drive, settings).report.arrived == 2


async def test_an_import_is_no_part_of_the_stream(drive: Driver, settings: Settings) -> None:
    empty = simulated(drive, settings).report
    assert (empty.arrived, empty.carried, empty.feedback) == (0, 0, 0)


async def test_a_daemon_runs_one_at_a_time_and_not_for_ever(
    drive: Driver, settings: Settings
) -> None:
    await drive.send(output())
    drive.wait(seconds=1)
    asked: dict[str, Any] = {
        "since": "1h",
        "until": None,
        "line": None,
        "task_type": None,
        "run_seconds": 300.0,
    }
    simulations = Simulations(lambda: settings, drive.clock)
    first = asyncio.create_task(simulations.simulate({}, **asked))
    await asyncio.sleep(0)
    with pytest.raises(SimulationRunsError):
        await simulations.simulate({}, **asked)
    assert (await first).report.arrived == 1

    hasty = Simulations(lambda: settings, drive.clock, most_seconds=0.001)
    with pytest.raises(SimulationTooLongError):
        await hasty.simulate({}, **asked)
    narrow = Simulations(lambda: settings, drive.clock, most_events=0)
    with pytest.raises(SimulationError, match="about 1 events"):
        await narrow.simulate({}, **asked)


async def test_more_than_a_daemon_replays_is_refused(drive: Driver, settings: Settings) -> None:
    await drive.send(*outputs(range(12)))
    drive.wait(seconds=1)
    told = order(
        settings,
        {},
        now=drive.now,
        since="1h",
        until=None,
        line=None,
        task_type=None,
        run_seconds=1.0,
        most_events=10,
    )
    with pytest.raises(SimulationError, match="about 12 events"):
        perform(told)


def test_looking_makes_no_database_and_migrates_none(
    tmp_path: Path, empty_url: str, kind: str
) -> None:
    file = tmp_path / "none.db"
    with pytest.raises(NothingStoredError), opened(sqlite_url(file)):
        pass
    assert not file.exists()
    if kind == "sqlite":
        Path(str(address_of(empty_url).database)).touch()
    with pytest.raises(OtherSchemaError, match="learnd run"), opened(empty_url):
        pass
