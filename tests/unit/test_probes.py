"""Live and ready are different questions, and a stop answers only one of them."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection

from consumers.pressure import Pressure
from daemon.probes import DaemonProbes
from daemon.store.database import Database
from daemon.store.views import Views
from learning.lines import ModelLines
from monitoring.health import all_ok
from tests.rows import START, Past


@pytest.fixture
def probes(database: Database, tmp_path: Path) -> DaemonProbes:
    views = Views.of(
        database,
        lines=ModelLines([]),
        artifacts_dir=tmp_path,
        wanted_held_out=lambda: 32,
        clock=lambda: START,
    )
    return DaemonProbes(views.overview, None, Pressure(time.monotonic), lambda: START)


async def test_a_loop_that_ended_is_not_live(probes: DaemonProbes) -> None:
    ended = asyncio.create_task(asyncio.sleep(0), name="sealer")
    works = asyncio.create_task(asyncio.Event().wait(), name="runner")
    probes.watch([ended, works])
    assert all_ok(probes.live())
    await ended
    assert {check.name: check.ok for check in probes.live()} == {"sealer": False, "runner": True}
    assert not all_ok(await probes.ready())
    assert not (await probes.health()).healthy
    works.cancel()


async def test_a_daemon_that_stops_is_live_and_not_ready(probes: DaemonProbes) -> None:
    leave = asyncio.Event()
    loop = asyncio.create_task(leave.wait(), name="sealer")
    probes.watch([loop])
    assert all_ok(await probes.ready())
    probes.drain()
    leave.set()
    await loop
    assert all_ok(probes.live())
    assert not all_ok(await probes.ready())


async def test_a_run_whose_daemon_is_silent_is_unhealthy_and_names_its_node(
    database: Database, probes: DaemonProbes
) -> None:
    def fill(tx: Connection) -> str:
        past = Past(tx)
        run_id = past.run(past.batch({past.event(state="sealed"): "train"}), state="running")
        past.lease(run_id, "alpha", until=START, bound=True)
        return run_id

    run_id = await database.write(fill)

    report = await probes.health()

    assert not report.healthy
    check = report.checks["run owners"]
    assert not check.ok
    assert run_id in check.detail
    assert "node alpha, silent since" in check.detail
    assert "learnd node-gone" in check.detail
    assert all_ok(await probes.ready())


async def test_a_run_whose_daemon_is_heard_is_no_finding(
    database: Database, probes: DaemonProbes
) -> None:
    def fill(tx: Connection) -> None:
        past = Past(tx)
        run_id = past.run(past.batch({past.event(state="sealed"): "train"}), state="running")
        past.lease(run_id, "alpha", until=START.replace(year=2999))

    await database.write(fill)

    assert (await probes.health()).checks["run owners"].ok


async def test_validators_that_cannot_be_run_are_unhealthy_and_say_why(
    database: Database, tmp_path: Path
) -> None:
    views = Views.of(
        database,
        lines=ModelLines([]),
        artifacts_dir=tmp_path,
        wanted_held_out=lambda: 32,
        clock=lambda: START,
    )
    pressure = Pressure(time.monotonic)
    probes = DaemonProbes(
        views.overview, None, pressure, lambda: START, screening=lambda: "a validator is missing"
    )
    report = await probes.health()
    assert not report.healthy
    assert report.checks["screening"].detail == "a validator is missing"
    assert all_ok(await probes.ready())
