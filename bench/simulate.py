"""How fast a record is replayed, beside a plain read of its rows: `python -m bench.simulate`.

Stores a stream by way of the intake in SQLite, with feedback and sealed batches, and then reads
and simulates it in turns, each in a process of its own. A figure is the median over the rounds
of a ratio within one round, or of CPU seconds; what the machine does beside it counts little so.
A round whose counts are wrong is no round: the run ends with an error.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from consumers.reading import Reader, Record
from consumers.wire import STANDARD_LIMITS
from daemon.settings import Settings
from daemon.simulating import order, perform
from daemon.store import Store
from daemon.store.database import sqlite_url
from daemon.store.read_only import opened
from daemon.store.tables import events, feedback
from learning.batching import Due, Trigger
from learning.clock import microseconds
from learning.events import BUILT_IN_TASK_TYPES
from learning.judge import Judge
from learning.policy import Policy
from learning.ports import Block, EventKind, Origin
from learning.sampling import SplitRules
from learning.validators import installed

FULL = {"events": 1_000_000, "rounds": 3}
QUICK = {"events": 50_000, "rounds": 2}
FEEDBACK_SHARE = 0.1
GAP_SECONDS = 0.6
"""Between two events: a million in a week."""
BLOCK = 2_000
SEALED_BLOCKS = 20
"""So many of the first blocks are sealed into batches, so that the record has some."""
PAGE = 5_000
END = datetime(2026, 5, 8, tzinfo=UTC)
TASK_TYPES = BUILT_IN_TASK_TYPES[:6]
CHANGED = {"policy.min_confidence": 0.8, "queue.batch_size": 40}
RUN_SECONDS = 1_800


class WrongCountsError(Exception):
    """A round did not see the record as it is, so its speed means nothing."""


@dataclass(frozen=True)
class Round:
    """What one process measured."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_mib: float


def store(file: Path, n: int) -> None:
    """Store `n` events, a tenth of them feedback, that arrived in equal steps up to END."""
    asyncio.run(_store(file, n))


async def _store(file: Path, n: int) -> None:
    judge = Judge(Policy, installed(100_000))
    reader = Reader(judge, STANDARD_LIMITS)
    opened_store = await Store.open(
        sqlite_url(file), artifacts_dir=file.parent, judge=judge, clock=lambda: END
    )
    lines = Settings(finetune={"provider": "scripted", "base_model": "tiny"}).model_lines()
    try:
        for number, start in enumerate(range(0, n, BLOCK)):
            records = list(_records(start, min(n, start + BLOCK)))
            at = END - timedelta(seconds=GAP_SECONDS * (n - start))
            read = reader.read(records, microseconds(at))
            block = Block("bench", outputs=read.outputs, feedback=read.feedback, dead_letters=[])
            await opened_store.intake.append(block)
            if number < SEALED_BLOCKS:
                line = lines.owner(TASK_TYPES[number % len(TASK_TYPES)])
                assert line is not None
                due = Due(Trigger.SIZE, 100)
                await opened_store.queue.seal(line, due, SplitRules(), "sealer", at)
    finally:
        await opened_store.close()


def _records(start: int, end: int) -> Iterator[Record]:
    chance = random.Random(start)
    tasks: list[int] = []
    for number in range(start, end):
        origin = Origin("bench", "outputs", 0, number)
        is_feedback = chance.random() < FEEDBACK_SHARE and bool(tasks)
        about = chance.choice(tasks) if is_feedback else number
        event: dict[str, Any] = {
            "event_id": f"e-{number}",
            "producer": "bench",
            "task_id": f"t-{about}",
            "task_type": TASK_TYPES[about % len(TASK_TYPES)],
        }
        if is_feedback:
            event["approved"] = chance.random() < 0.8
            kind = EventKind.FEEDBACK
        else:
            tasks.append(number)
            event |= {
                "prompt": f"question {number}",
                "output": "an answer " * 40,
                "approved": chance.choice([True, True, True, None]),
                "confidence": round(chance.random(), 3),
            }
            kind = EventKind.OUTPUT
        yield Record(kind, json.dumps(event).encode(), origin)


def read_rows(file: Path) -> int:
    """Every column of events and feedback that a simulation reads, page by page."""
    seen = 0
    with opened(sqlite_url(file)) as database:
        for table in (events, feedback):
            names = [
                name
                for name in (
                    "id",
                    "task_type",
                    "state",
                    "by_human",
                    "approved",
                    "confidence",
                    "state_since",
                    "received_at",
                    "output_id",
                )
                if name in table.c
            ]
            key = 0
            while True:
                page = (
                    select(*(table.c[name] for name in names))
                    .where(table.c.id > key)
                    .order_by(table.c.id)
                    .limit(PAGE)
                )
                rows = database.read(lambda tx, page=page: tx.execute(page).all())  # type: ignore[misc]
                if not rows:
                    break
                key = rows[-1].id
                seen += len(rows)
    return seen


def simulate_rows(file: Path) -> int:
    """The whole record under other settings."""
    settings = Settings(
        database_url=sqlite_url(file), finetune={"provider": "scripted", "base_model": "tiny"}
    )
    asked: dict[str, Any] = {"line": None, "task_type": None, "run_seconds": 300.0}
    told = order(settings, CHANGED, now=END, since="1000d", until=None, **asked)
    found = perform(told)
    report = found.report
    if report.control.reproduced != report.control.verdicts or not report.changes:
        raise WrongCountsError(f"{report.control}")
    return report.arrived + report.feedback


def measure(what: str, file: Path) -> Round:
    """Do it in this process, and say what it took."""
    began, busy = time.perf_counter(), time.process_time()
    rows = {"read": read_rows, "simulate": simulate_rows}[what](file)
    return Round(
        rows,
        time.perf_counter() - began,
        time.process_time() - busy,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _in_a_process(what: str, file: Path) -> Round:
    done = subprocess.run(
        [sys.executable, "-m", "bench.simulate", "--one", what, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=RUN_SECONDS,
        check=True,
    )
    return Round(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run the benchmark; the last line is JSON with the figures of the issue."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, and less sure")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one is not None:
        what, name = chosen.one
        print(json.dumps(asdict(measure(what, Path(name)))))
        return
    size = QUICK if chosen.quick else FULL
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="learnd-bench-") as folder:
        file = Path(folder) / "learnd.db"
        print(f"storing {size['events']:,} events ...", flush=True)
        store(file, size["events"])
        rounds: list[tuple[Round, Round]] = []
        for number in range(size["rounds"]):
            read, simulated = (_in_a_process(what, file) for what in ("read", "simulate"))
            if read.rows != size["events"] or simulated.rows != size["events"]:
                raise WrongCountsError(f"{read.rows} read, {simulated.rows} simulated")
            rounds.append((read, simulated))
            print(
                f"round {number + 1}: read {read.cpu_seconds:.1f} s of CPU ({read.seconds:.1f} s),"
                f" simulated {simulated.cpu_seconds:.1f} s ({simulated.seconds:.1f} s),"
                f" peak {simulated.peak_mib:.0f} MiB",
                flush=True,
            )
    each = statistics.median(one.cpu_seconds for _, one in rounds) / size["events"]
    figures = {
        "events_per_second": 1 / each,
        "simulated_over_read": statistics.median(
            one.cpu_seconds / other.cpu_seconds for other, one in rounds
        ),
        "seconds_for_a_million": each * 1_000_000,
        "wall_seconds_for_a_million": statistics.median(one.seconds for _, one in rounds)
        / size["events"]
        * 1_000_000,
        "peak_mib": max(one.peak_mib for _, one in rounds),
    }
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (its own included),"
        f" {time.monotonic() - began:.0f} s; seconds are of CPU unless they are of the wall\n"
    )
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
