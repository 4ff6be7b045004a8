"""A store that cannot store and a queue that is too long: intake waits, says so, and goes on.

Seen as an operator sees it: the command, its probes, its metrics and its log.
"""

import json
import os
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.services import require
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

TopicNames = Callable[[str], str]


def output(name: str, task_type: str = "normalize") -> bytes:
    event = {
        "producer": "studio",
        "event_id": name,
        "task_id": name,
        "task_type": task_type,
        "prompt": f"say {name}",
        "output": f"normal {name}",
        "approved": True,
    }
    return json.dumps(event).encode()


def no_to(name: str) -> bytes:
    said = {"producer": "crowd", "task_id": name, "task_type": "normalize", "approved": False}
    return json.dumps(said).encode()


class Bench:
    """One daemon and its topics, with one partition each."""

    def __init__(self, broker: KafkaBroker, topic_names: TopicNames) -> None:
        self.broker = broker
        self.outputs, self.feedback = topic_names("outputs"), topic_names("feedback")
        self.group = topic_names("group")
        for topic in (self.outputs, self.feedback):
            broker.create_topic(topic)

    def settings(self, data_dir: Path, **sections: Any) -> dict[str, Any]:
        return {
            "data_dir": str(data_dir),
            "database_url": f"sqlite:///{data_dir}/learnd.db?timeout=0.5",
            **sections,
            "kafka": {
                "bootstrap_servers": self.broker.bootstrap,
                "group_id": self.group,
                "outputs_topics": [self.outputs],
                "feedback_topics": [self.feedback],
                **sections.get("kafka", {}),
            },
        }

    def send(self, *values: bytes) -> None:
        self.broker.produce(self.outputs, values)

    def lag(self, daemon: Learnd) -> float:
        return daemon.metric(f'learnd_consumer_lag_records{{partition="0",topic="{self.outputs}"}}')


@pytest.fixture
def bench(kafka_broker: KafkaBroker, topic_names: TopicNames) -> Bench:
    return Bench(kafka_broker, topic_names)


def stored(data_dir: Path) -> Counter[str]:
    with sqlite3.connect(f"file:{data_dir / 'learnd.db'}?mode=ro", uri=True) as connection:
        return Counter(row[0] for row in connection.execute("SELECT task_id FROM events"))


def unready_because(daemon: Learnd, *words: str) -> bool:
    answer = daemon.probe("/readyz")
    said = " ".join(str(check) for check in answer.json()["checks"].values())
    return answer.status_code == 503 and all(word in said for word in words)


@contextmanager
def lock_of_another(database: Path) -> Iterator[None]:
    connection = sqlite3.connect(database)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


@contextmanager
def moved_away(folder: Path) -> Iterator[None]:
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(folder)


@contextmanager
def no_room_on(folder: Path) -> Iterator[None]:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        step = 1_000_000
        while step:
            try:
                file.write(bytes(step))
            except OSError:
                step //= 2
    try:
        yield
    finally:
        ballast.unlink()


def small_file_systems_missing() -> str | None:
    return None if os.geteuid() == 0 else "only root may mount a small file system"


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    require("a small file system", small_file_systems_missing())
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "learnd", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def check_outage(
    bench: Bench, folder: Path, data_dir: Path, outage: Callable[[], Any], words: str
) -> None:
    with Learnd(folder, bench.settings(data_dir)) as daemon:
        daemon.start()
        bench.send(*(output(f"a{number}") for number in range(10)))
        daemon.wait_until("the first", lambda: len(stored(data_dir)) == 10)
        daemon.wait_until("ready", lambda: daemon.probe("/readyz").status_code == 200)
        with outage():
            bench.send(*(output(f"b{number}" + "b" * 200) for number in range(100)))
            daemon.wait_until("not ready", lambda: unready_because(daemon, words))
            assert daemon.probe("/livez").status_code == 200
            assert daemon.metric('learnd_intake_waits{reason="store"}') == 1
            daemon.wait_until("the lag", lambda: bench.lag(daemon) == 100)
            bench.send(output("last"))
            daemon.wait_until("the lag grows", lambda: bench.lag(daemon) == 101)
        daemon.wait_until("the rest", lambda: len(stored(data_dir)) == 111)
        daemon.wait_until("ready again", lambda: daemon.probe("/readyz").status_code == 200)
        assert daemon.metric('learnd_intake_waits{reason="store"}') == 0
        assert set(stored(data_dir).values()) == {1}
        assert daemon.metric('learnd_duplicates_total{source="kafka"}') == 0
        assert daemon.stop().status == 0


def test_a_database_that_another_process_locks_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    check_outage(
        bench, tmp_path, data_dir, lambda: lock_of_another(data_dir / "learnd.db"), "locked"
    )


def test_a_data_directory_that_is_gone_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"

    @contextmanager
    def outage() -> Iterator[None]:
        with moved_away(data_dir):
            yield

    check_outage(bench, tmp_path, data_dir, outage, "is gone")


def test_a_full_disk_is_waited_for(bench: Bench, tmp_path: Path, small_file_system: Path) -> None:
    data_dir = small_file_system / "data"
    check_outage(bench, tmp_path, data_dir, lambda: no_room_on(small_file_system), "full")


def test_above_the_high_water_mark_outputs_wait_in_kafka_and_feedback_goes_on(
    bench: Bench, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    settings = bench.settings(
        data_dir,
        kafka={"max_records": 20},
        queue={"batch_size": 5, "max_queue_size": 5, "high_water": 100, "low_water": 20},
    )
    waits = 'learnd_intake_waits{reason="high_water"}'
    with Learnd(tmp_path, settings) as daemon:
        daemon.start()
        bench.send(*(output(f"a{number}") for number in range(40)))
        bench.send(*(output(f"c{number}", "coding") for number in range(10)))
        daemon.wait_until(
            "what comes behind a queue that is full", lambda: len(stored(data_dir)) == 50
        )
        assert daemon.metric(waits) == 0

        bench.send(*(output(f"b{number}") for number in range(150)))
        daemon.wait_until("the high-water mark", lambda: daemon.metric(waits) == 1)
        daemon.wait_until("the lag", lambda: bench.lag(daemon) > 0)
        n_stored = len(stored(data_dir))
        assert 100 <= n_stored < 200
        bench.send(*(output(f"d{number}") for number in range(7)))
        daemon.wait_until("the lag grows", lambda: bench.lag(daemon) == 207 - n_stored)
        assert len(stored(data_dir)) == n_stored
        assert daemon.probe("/readyz").status_code == 200
        assert "events wait for a batch" in json.dumps(daemon.probe("/healthz").json())

        names = [name for name in stored(data_dir) if not name.startswith("c")]
        bench.broker.produce(bench.feedback, [no_to(name) for name in names])
        daemon.wait_until("the rest", lambda: len(stored(data_dir)) == 207)
        assert set(stored(data_dir).values()) == {1}
        assert daemon.metric('learnd_duplicates_total{source="kafka"}') == 0
        assert daemon.stop().status == 0


def test_a_broker_that_went_away_is_told_and_does_not_fill_the_log(
    bench: Bench, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    with Learnd(tmp_path, bench.settings(data_dir)) as daemon:
        daemon.start()
        bench.send(output("before"))
        daemon.wait_until("the first", lambda: len(stored(data_dir)) == 1)
        daemon.wait_until("ready", lambda: daemon.probe("/readyz").status_code == 200)
        with bench.broker.outage():
            daemon.wait_until(
                "not ready", lambda: unready_because(daemon, "the broker has not answered")
            )
            assert daemon.probe("/livez").status_code == 200
            lines = daemon.log_tail(10_000).splitlines()
            assert len([line for line in lines if '"aiokafka' in line]) < 20
        daemon.wait_until("ready again", lambda: daemon.probe("/readyz").status_code == 200)
        bench.send(output("after"))
        daemon.wait_until("the rest", lambda: len(stored(data_dir)) == 2)
        assert daemon.stop().status == 0
