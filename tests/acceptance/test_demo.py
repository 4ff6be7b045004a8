"""`learnd demo` as a user types it: a real model, real training, and the database to prove it."""

import os
import signal
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.settings_sources import load
from tests.services.process import TiedProcess
from tests.waiting import wait_until

pytestmark = [pytest.mark.timeout(960)]

LIMIT_SECONDS = 900.0
WIDEST = 100
LINES = ("coding", "normalize")


@dataclass(frozen=True)
class Told:
    """A demo that has ended."""

    status: int | None
    output: str
    home: Path

    def query(self, sql: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        """Ask its database."""
        with closing(sqlite3.connect(self.home / "data" / "learnd.db")) as database:
            return database.execute(sql, values).fetchall()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The demo, once for all tests of this file."""
    folder = tmp_path_factory.mktemp("demo")
    home, output = folder / "learnd-demo", folder / "output.txt"
    process = TiedProcess(
        [Path(sys.executable).with_name("learnd"), "demo", "--data-dir", home],
        log=output,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )
    try:
        wait_until(
            "the demo's end",
            lambda: process.exit_status is not None,
            seconds=LIMIT_SECONDS,
            explain=process.log_tail,
        )
        status = process.exit_status
    finally:
        process.end(signal.SIGKILL, patience_seconds=10)
    return Told(status, output.read_text(encoding="utf-8"), home)


def test_everything_turns_out_as_it_is_told(told: Told) -> None:
    assert told.status == 0, told.output


def test_each_line_is_promoted_twice_by_the_gate(told: Told) -> None:
    for line in LINES:
        releases = told.query(
            "SELECT v.release FROM alias_history h JOIN versions v ON v.id = h.to_id"
            " WHERE h.line = ? AND h.cause = 'promote' ORDER BY h.id",
            line,
        )
        assert releases == [("1.0.1",), ("1.0.2",)]


def test_each_promotion_has_its_evidence(told: Told) -> None:
    evidence = told.query(
        "SELECT json_extract(e.report, '$.overall.champion_loss'),"
        " json_extract(e.report, '$.overall.candidate_loss'),"
        " json_extract(e.report, '$.overall.n_examples')"
        " FROM evaluations e WHERE e.outcome = 'promote'"
    )

    assert len(evidence) == 4
    for champion_loss, candidate_loss, n_examples in evidence:
        assert candidate_loss < 0.95 * champion_loss
        assert n_examples == 64


def test_the_poisoned_candidate_is_refused_with_numbers(told: Told) -> None:
    refused = told.query(
        "SELECT v.line, e.report ->> '$.overall.champion_loss',"
        " e.report ->> '$.overall.candidate_loss'"
        " FROM evaluations e JOIN versions v ON v.id = e.version_id WHERE e.outcome = 'reject'"
    )

    assert len(refused) == 1
    line, champion_loss, candidate_loss = refused[0]
    assert line == "coding"
    assert candidate_loss > champion_loss


def test_the_forced_version_is_rolled_back(told: Told) -> None:
    moves = told.query(
        "SELECT h.cause, v.release, v.state FROM alias_history h"
        " JOIN versions v ON v.id = h.to_id WHERE h.line = 'coding' ORDER BY h.id"
    )

    assert moves == [
        ("declare", "1.0.0", "superseded"),
        ("promote", "1.0.1", "superseded"),
        ("promote", "1.0.2", "released"),
        ("force", "1.0.3", "rolled_back"),
        ("rollback", "1.0.2", "released"),
    ]


def test_the_champion_learned_nothing_from_the_careless_producer(told: Told) -> None:
    knowing = told.query(
        "SELECT DISTINCT v.release FROM versions v JOIN runs r ON r.id = v.run_id"
        " JOIN batch_members m ON m.batch_id = r.batch_id JOIN events e ON e.id = m.event_id"
        " WHERE e.producer = 'careless-app'"
    )

    assert knowing == [("1.0.3",)]


def test_what_it_prints_reads_well_in_a_file(told: Told) -> None:
    assert "\x1b" not in told.output
    assert "\r" not in told.output
    assert [line for line in told.output.splitlines() if len(line.rstrip()) > WIDEST] == []


def test_the_settings_that_it_leaves_start_a_daemon_on_its_data(told: Told) -> None:
    settings = load(told.home / "learnd.yaml")

    assert settings.data_dir == told.home / "data"
    assert not settings.kafka.configured
    for line in settings.lines:
        found = settings.model_lines().get(line)
        assert found is not None
        assert found.base_model is not None
        assert (Path(found.base_model) / "config.json").is_file()
