"""How fast events become durable, beside what else could read them: `python -m bench.intake`.

Each round makes a topic and lets every contender read it, one after the other, in a process
of its own; a figure is the median over the rounds of a ratio within one round. A round in
which a contender's counts are wrong is no round: the run ends with an error.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.contenders import Task
from bench.stream import Expected, make, send, started_at
from tests.services.kafka import KafkaBroker
from tests.services.ports import free_ports
from tests.services.postgres import PostgresServer

PARTITIONS = 4
FULL = {"events": 200_000, "rounds": 3, "stored": 2_000_000}
QUICK = {"events": 20_000, "rounds": 1, "stored": 40_000}
RUN_SECONDS = 1_800
READY_SECONDS = 60.0
STARTS = 3
SETTLE_SECONDS = 5.0
CONTENDERS = {
    "raw": "aiokafka getmany, counting",
    "validate": "decode and validate, no store",
    "sqlite": "learnd, SQLite",
    "postgres": "learnd, PostgreSQL",
    "loaded": "learnd, SQLite with events stored before",
    "faststream": "FastStream batch=2000, SQLite by hand",
}


class WrongCountsError(Exception):
    """A contender did not end with what the stream holds, so its speed means nothing."""


@dataclass(frozen=True)
class Result:
    """What one contender did in one round."""

    rate: float
    """Events in a second."""
    cpu_microseconds: float
    """Of its processes, for each event."""
    peak_mib: float


class Bench:
    """One run: servers and folders that every round uses."""

    def __init__(self, broker: KafkaBroker, postgres: PostgresServer, folder: Path) -> None:
        self._broker = broker
        self._postgres = postgres
        self._folder = folder
        self._loaded = folder / "loaded"
        self.results: defaultdict[str, list[Result]] = defaultdict(list)

    def load(self, n: int) -> None:
        """Store `n` events, by way of the intake, in the folder that `loaded` works in."""
        self._loaded.mkdir()
        _run("load", self._task("unused", n, self._loaded))

    def round(self, number: int, n_events: int) -> None:
        """Let every contender read a new topic of the same events."""
        topic = f"bench-{number}"
        self._broker.create_topic(topic, PARTITIONS)
        self._broker.create_topic(f"{topic}-feedback", 1)
        records, expected = make(n_events, number, started_at())
        send(self._broker.bootstrap, topic, PARTITIONS, records)
        del records
        names = list(CONTENDERS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            self._contend(name, topic, expected)

    def _contend(self, name: str, topic: str, expected: Expected) -> None:
        with ExitStack() as stack:
            folder = (
                self._loaded
                if name == "loaded"
                else Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self._folder)))
            )
            url = stack.enter_context(self._postgres.database()) if name == "postgres" else ""
            task = self._task(topic, expected.records, folder, url)
            program = name if name in ("raw", "validate", "faststream") else "learnd"
            told = _run(program, task)
        _check(program, told["counts"], expected)
        result = Result(
            rate=told["timed"] / told["seconds"],
            cpu_microseconds=told["cpu_seconds"] / told["timed"] * 1e6,
            peak_mib=told["peak_mib"],
        )
        self.results[name].append(result)
        print(f"  {name:<11}{result.rate:>10,.0f}/s", flush=True)

    def _task(self, topic: str, n: int, folder: Path, url: str = "") -> Task:
        return Task(self._broker.bootstrap, topic, PARTITIONS, n, str(folder), url)

    def idle_mib(self) -> float:
        """Memory of `learnd run` that has its partitions and nothing to do."""
        topic = "bench-idle"
        self._broker.create_topic(topic, PARTITIONS)
        self._broker.create_topic(f"{topic}-feedback", 1)
        kafka = {
            "bootstrap_servers": self._broker.bootstrap,
            "outputs_topics": [topic],
            "feedback_topics": [f"{topic}-feedback"],
        }
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            daemon = _Daemon(Path(folder), {"kafka": kafka})
            try:
                daemon.wait_until_ready()
                time.sleep(SETTLE_SECONDS)
                return daemon.resident_mib()
            finally:
                daemon.end()

    def start_seconds(self) -> float:
        """From `learnd run` to ready, on the database with events in it, without Kafka."""
        seconds = []
        for _ in range(STARTS):
            began = time.perf_counter()
            daemon = _Daemon(self._loaded, {})
            try:
                daemon.wait_until_ready()
                seconds.append(time.perf_counter() - began)
            finally:
                daemon.end()
        return statistics.median(seconds)

    def ratio(self, name: str, to: str) -> float:
        """The median over the rounds of one contender's rate over another's."""
        pairs = zip(self.results[name], self.results[to], strict=True)
        return statistics.median(one.rate / other.rate for one, other in pairs)


class _Daemon:
    """`learnd run` as a process, ended by whoever started it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        config = folder / "learnd.yaml"
        config.write_text(
            yaml.safe_dump({"data_dir": str(folder / "data"), "http": {"port": port}, **settings})
        )
        self._log = (folder / "learnd.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", "--config", str(config)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait_until_ready(self) -> None:
        """Ask until /readyz says yes."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self._url}/readyz", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.01)
        raise TimeoutError("learnd did not become ready; see learnd.log")

    def resident_mib(self) -> float:
        """Its resident set."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise LookupError("VmRSS")

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


def _run(program: str, task: Task) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "bench.contenders", program, json.dumps(asdict(task))],
        stdout=subprocess.PIPE,
        text=True,
        timeout=RUN_SECONDS,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _check(program: str, counts: Mapping[str, int], expected: Expected) -> None:
    good = expected.queued + expected.held
    wanted = {
        "raw": {},
        "validate": {"good": good + expected.duplicates, "bad": expected.dead_letters},
        "learnd": {
            "queued": expected.queued,
            "held": expected.held,
            "dead_letters": expected.dead_letters,
            "duplicates": expected.duplicates,
        },
        "faststream": {
            "new": good,
            "dead_letters": expected.dead_letters,
            "duplicates": expected.duplicates,
        },
    }[program]
    if counts != wanted:
        raise WrongCountsError(f"{program}: {counts}, not {wanted}")


def _table(bench: Bench, stored: int) -> None:
    print(f"\n{'':<43}{'events/s':>10}{'spread':>8}{'CPU us':>8}{'peak MiB':>10}")
    for name, words in CONTENDERS.items():
        results = bench.results[name]
        rates = [result.rate for result in results]
        label = words.replace("events stored before", f"{stored:,} stored before")
        print(
            f"{label:<43}{statistics.median(rates):>10,.0f}"
            f"{(max(rates) - min(rates)) / statistics.median(rates):>8.0%}"
            f"{statistics.median(r.cpu_microseconds for r in results):>8.1f}"
            f"{max(r.peak_mib for r in results):>10.0f}"
        )


def main() -> None:
    """Run the benchmark; the last line is JSON with the figures of the issue."""
    parser = argparse.ArgumentParser(prog="python -m bench.intake", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, and less sure")
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else FULL
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="learnd-bench-")))
        broker = stack.enter_context(KafkaBroker())
        postgres = stack.enter_context(PostgresServer())
        bench = Bench(broker, postgres, folder)
        print(f"{size['events']:,} events of 1.2 kB, {PARTITIONS} partitions, lz4", flush=True)
        print(f"storing {size['stored']:,} events beforehand ...", flush=True)
        bench.load(size["stored"])
        for number in range(size["rounds"]):
            print(f"round {number + 1} of {size['rounds']}", flush=True)
            bench.round(number, size["events"])
        figures = {
            "learnd_over_raw": bench.ratio("sqlite", "raw"),
            "learnd_over_validate": bench.ratio("sqlite", "validate"),
            "learnd_over_faststream": bench.ratio("sqlite", "faststream"),
            "postgres_over_raw": bench.ratio("postgres", "raw"),
            "two_million_over_empty": bench.ratio("loaded", "sqlite"),
            "rss_mib_peak": max(result.peak_mib for result in bench.results["sqlite"]),
            "rss_mib_idle": bench.idle_mib(),
            "start_to_ready_seconds": bench.start_seconds(),
        }
        _table(bench, size["stored"])
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores, load {load:.1f} (its own included),"
        f" {time.monotonic() - began:.0f} s, {shutil.disk_usage('/').free >> 30} GiB free\n"
    )
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
