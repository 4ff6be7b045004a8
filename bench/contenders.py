"""The programs that bench.intake runs, each in a process of its own.

`python -m bench.contenders NAME JSON` reads one topic from its start to its end and prints
one JSON object: seconds, records timed, the counts it ended with, and its peak memory.
The clock runs from the end of the first block to the end of the last, so that neither
start-up nor joining the group counts.
"""

import asyncio
import json
import os
import re
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from bench.stream import make
from consumers.ingest import Ingest
from consumers.reading import Record
from consumers.wire import Decoded, decode
from daemon.settings import Settings
from learning.clock import microseconds
from learning.events import OutputEvent
from learning.facts import EventsStored, Fact
from learning.judge import Judge
from learning.ports import EventKind, Origin
from learning.validators import built_in

BLOCK = 2_000
LONGEST_OUTPUT = 100_000
LOAD_SEED = 1_000


@dataclass(frozen=True)
class Task:
    """What a contender reads, and where it may write."""

    bootstrap: str
    topic: str
    partitions: int
    records: int
    folder: str
    database_url: str = ""


@dataclass
class Stopwatch:
    """Counts records, timed from the end of the first block on."""

    wanted: int
    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    _first: tuple[int, float, float] | None = None
    _last: tuple[float, float] = (0.0, 0.0)
    _peak_mib: float = 0.0

    def add(self, n: int) -> None:
        """A block of `n` records is done."""
        self.seen += n
        if self._first is None or self.done:  # in between, looking would take time
            self._last = (time.perf_counter(), _cpu_seconds())
            self._peak_mib = _peak_mib()
            self._first = self._first or (n, *self._last)

    @property
    def done(self) -> bool:
        """Whether every record was seen."""
        return self.seen >= self.wanted

    def result(self) -> dict[str, Any]:
        """What the parent process reads."""
        assert self._first is not None, "no record came"
        untimed, began, cpu_began = self._first
        return {
            "seconds": self._last[0] - began,
            "cpu_seconds": self._last[1] - cpu_began,
            "timed": self.seen - untimed,
            "counts": dict(self.counts),
            "peak_mib": self._peak_mib,
        }


async def raw(task: Task, watch: Stopwatch) -> None:
    """aiokafka's getmany, counting."""
    await _read(task, watch, lambda records: None)


async def validate(task: Task, watch: Stopwatch) -> None:
    """Decode and validate as learnd does, keep nothing."""
    now = microseconds(datetime.now(UTC))

    def look(records: Sequence[Any]) -> None:
        for record in records:
            origin = Origin("bench", record.topic, record.partition, record.offset)
            decoded = decode(EventKind.OUTPUT, record.value, origin, now)
            watch.counts["good" if isinstance(decoded, Decoded) else "bad"] += 1

    await _read(task, watch, look)


async def _read(task: Task, watch: Stopwatch, look: Callable[[Sequence[Any]], None]) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=task.bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    consumer.assign([TopicPartition(task.topic, number) for number in range(task.partitions)])
    await consumer.start()
    try:
        while not watch.done:
            fetched = await consumer.getmany(timeout_ms=200, max_records=BLOCK)
            for records in fetched.values():
                look(records)
            if n := sum(map(len, fetched.values())):
                watch.add(n)
    finally:
        await consumer.stop()


async def learnd(task: Task, watch: Stopwatch) -> None:
    """The whole daemon, its real database included; nothing trains, as no base model is set."""
    from daemon.app import build_daemon, tune_interpreter

    settings = Settings.model_validate(
        {
            "data_dir": Path(task.folder) / "data",
            "http": {"port": 0},
            "queue": {"high_water": 1_000_000_000},  # nothing trains, so all of them wait
            "kafka": {
                "bootstrap_servers": task.bootstrap,
                "group_id": f"learnd-{time.time_ns()}",
                "outputs_topics": [task.topic],
                "feedback_topics": [f"{task.topic}-feedback"],
            },
            **({"database_url": task.database_url} if task.database_url else {}),
        }
    )
    stopping = asyncio.Event()

    def count(fact: Fact) -> None:
        if not isinstance(fact, EventsStored):
            return
        for (_, state), n in fact.outputs.items():
            watch.counts[state] += n
        watch.counts["dead_letters"] += sum(fact.dead_letters.values())
        watch.counts["duplicates"] += fact.duplicates
        watch.add(sum(fact.outputs.values()) + sum(fact.dead_letters.values()) + fact.duplicates)
        if watch.done:
            stopping.set()

    async with build_daemon(settings) as daemon:
        tune_interpreter()
        daemon.announcer.listen(count)
        await daemon.run(stopping)


async def load(task: Task, watch: Stopwatch) -> None:
    """Not a contender: store events by way of the intake, to have them there."""
    from daemon.app import utc_now
    from daemon.store import Store
    from daemon.store.database import sqlite_url

    folder = Path(task.folder) / "data"
    folder.mkdir()
    settings = Settings()
    policy = settings.policy_rules()
    judge = Judge(lambda: policy, built_in(LONGEST_OUTPUT))
    store = await Store.open(
        sqlite_url(folder / "learnd.db"), artifacts_dir=folder, judge=judge, clock=utc_now
    )
    ingest = Ingest(store.intake, settings.model_lines(), judge, lambda fact: None, utc_now)
    template, _ = make(BLOCK, LOAD_SEED, utc_now())
    try:
        for start in range(0, task.records, BLOCK):
            # Other ids, the same texts: making texts takes longer than storing them.
            await ingest.store_block(
                "load",
                [
                    Record(EventKind.OUTPUT, _renamed(text), Origin("load", "load", 0, start + n))
                    for n, text in enumerate(template)
                ],
            )
            watch.add(BLOCK)
    finally:
        await store.close()


def _renamed(record: bytes) -> bytes:
    return re.sub(rb'_id":"[^"]*"', lambda _: b'_id":"%s"' % uuid.uuid4().hex.encode(), record)


async def faststream(task: Task, watch: Stopwatch) -> None:
    """The same work as a competent FastStream handler does it: batches into SQLite.

    Each batch is one transaction: verdict and reason on every row, one unique index on
    (producer, event_id), running counts, dead letters; acknowledged afterwards. Positions
    are the group's own, so after a crash it relies on the ids alone.
    """
    from faststream import AckPolicy, FastStream
    from faststream.kafka import KafkaBroker, KafkaMessage

    broker = KafkaBroker(task.bootstrap, logger=None)
    app = FastStream(broker, logger=None)
    store = _PlainStore(Path(task.folder) / "faststream.db")
    judge = Judge(Settings().policy_rules, built_in(LONGEST_OUTPUT))

    @broker.subscriber(
        task.topic,
        batch=True,
        max_records=BLOCK,
        group_id=f"faststream-{time.time_ns()}",
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        decoder=_values,
    )
    async def handle(values: list[Any], message: KafkaMessage) -> None:
        now = datetime.now(UTC)
        arrived = microseconds(now)
        rows, bad = [], []
        for record in message.raw_message:
            origin = Origin("faststream", record.topic, record.partition, record.offset)
            decoded = decode(EventKind.OUTPUT, record.value, origin, arrived)
            if isinstance(decoded, Decoded) and isinstance(decoded.event, OutputEvent):
                verdict = judge(decoded.event)
                rows.append((decoded, verdict, record))
            else:
                bad.append((record.value, record.partition, record.offset))
        watch.counts.update(await asyncio.to_thread(store.append, rows, bad, now))
        watch.add(len(values))
        if watch.done:
            app.exit()

    await app.run()
    store.close()


async def _values(message: Any) -> list[bytes]:
    """No second parse by FastStream: the handler decodes."""
    return [record.value for record in message.raw_message]


class _PlainStore:
    """What one writes by hand for such a handler: two tables, one unique index, counts."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.executescript(
            """
            pragma page_size = 16384;
            pragma journal_mode = wal;
            pragma synchronous = full;
            create table events (
              id integer primary key, producer text not null, event_id text not null,
              task_type text not null, task_id text not null, state text not null,
              reason text not null, by_human integer not null, approved integer,
              confidence real, payload text not null, model_version text,
              partition integer not null, offset integer not null,
              occurred_at text not null, received_at text not null,
              unique (producer, event_id));
            create index by_task on events (task_type, task_id);
            create index by_state on events (task_type, id) where state = 'queued';
            create table dead_letters (
              id integer primary key, raw blob, partition integer, offset integer);
            create table counts (task_type text, state text, n integer,
              primary key (task_type, state));
            """
        )

    def append(self, rows: Sequence[Any], bad: Sequence[Any], now: datetime) -> Counter[str]:
        """Store one batch in one transaction, and count what was new."""
        connection, stored = self._connection, Counter[str]()
        connection.execute("begin immediate")
        before = connection.total_changes
        connection.executemany(
            "insert or ignore into events (producer, event_id, task_type, task_id, state,"
            " reason, by_human, approved, confidence, payload, model_version, partition,"
            " offset, occurred_at, received_at) values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            [
                (
                    decoded.event.producer,
                    decoded.event_id,
                    decoded.event.task_type,
                    decoded.event.task_id,
                    verdict.state,
                    verdict.reason,
                    verdict.by_human,
                    decoded.event.approved,
                    decoded.event.confidence,
                    record.value.decode(),
                    decoded.event.model_version,
                    record.partition,
                    record.offset,
                    (decoded.event.timestamp or now).isoformat(),
                    now.isoformat(),
                )
                for decoded, verdict, record in rows
            ],
        )
        stored["new"] = connection.total_changes - before
        stored["duplicates"] = len(rows) - stored["new"]
        stored["dead_letters"] = len(bad)
        connection.executemany(
            "insert into dead_letters (raw, partition, offset) values (?,?,?)", bad
        )
        connection.executemany(
            "insert into counts values (?,?,?)"
            " on conflict (task_type, state) do update set n = n + excluded.n",
            [
                (*key, n)
                for key, n in Counter(
                    (decoded.event.task_type, verdict.state) for decoded, verdict, _ in rows
                ).items()
            ],
        )
        connection.execute("commit")
        return stored

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


# Of this process and its children: learnd may read in a process of its own.


def _family() -> list[Path]:
    tasks = Path("/proc/self/task").iterdir()
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return [Path("/proc", pid) for pid in ("self", *children)]


def _cpu_seconds() -> float:
    """What the family has used, itself waited for or not."""
    ticks = 0
    for process in _family():
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[_USER_TIME : _USER_TIME + 2]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_mib() -> float:
    """The sum of the largest resident sets so far."""
    return sum(
        int(line.split()[1]) / 1024
        for process in _family()
        for line in (process / "status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )


_USER_TIME = 11
"""Where user and system time stand in a process's stat, behind its name."""


CONTENDERS: dict[str, Callable[[Task, Stopwatch], Coroutine[Any, Any, None]]] = {
    "raw": raw,
    "validate": validate,
    "learnd": learnd,
    "load": load,
    "faststream": faststream,
}


def main() -> None:
    """Run one contender."""
    name, described = sys.argv[1:]
    task = Task(**json.loads(described))
    watch = Stopwatch(task.records)
    asyncio.run(CONTENDERS[name](task, watch))
    print(json.dumps(watch.result()))


if __name__ == "__main__":
    main()
