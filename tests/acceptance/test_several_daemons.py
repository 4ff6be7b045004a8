"""Two and three daemons on one PostgreSQL database and one consumer group, as processes.

They are put to sleep, killed and stopped; what they share is looked at with plain SQL.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.nursery import Nursery
from tests.services.postgres import PostgresServer

TopicNames = Callable[[str], str]
Row = dict[str, Any]

PARTITIONS = 6
SESSION_SECONDS = 2.0
LEASE_SECONDS = 2.0
BATCH_SIZE = 20


@dataclass
class Fleet:
    """Daemons that share a database, a group, a directory of artifacts and a provider."""

    broker: KafkaBroker
    database_url: str
    folder: Path
    topics: Mapping[str, str]
    training: Mapping[str, Any]
    nursery: Nursery
    sent: int = 0

    def __post_init__(self) -> None:
        self.stack = ExitStack()
        (self.folder / "provider").mkdir(parents=True)

    def daemon(self, node: str, **settings: Any) -> Learnd:
        """One daemon, not yet started."""
        home = self.folder / node
        (home / "data").mkdir(parents=True)
        # The scripted provider is a service elsewhere: the same one for every daemon.
        (home / "data" / "providers").symlink_to(self.folder / "provider")
        return self.stack.enter_context(
            Learnd(
                home,
                {
                    "node": node,
                    "database_url": f"{self.database_url}?application_name={node}",
                    "artifacts_dir": str(self.folder / "artifacts"),
                    "kafka": {
                        "bootstrap_servers": self.broker.bootstrap,
                        "group_id": self.topics["group"],
                        "outputs_topics": [self.topics["outputs"]],
                        "feedback_topics": [self.topics["feedback"]],
                        "session_timeout_seconds": SESSION_SECONDS,
                        "max_records": 20,
                    },
                    "queue": {
                        "adaptive": False,
                        "batch_size": BATCH_SIZE,
                        "max_queue_size": 10_000,
                    },
                    "split": {"starting_share": 0.0, "held_out_share": 0.0},
                    "finetune": {
                        "provider": "scripted",
                        "base_model": "tiny",
                        "lease_seconds": LEASE_SECONDS,
                        "training": dict(self.training),
                    },
                    **settings,
                },
                nursery=self.nursery,
            )
        )

    def produce(self, count: int) -> None:
        """Send approved outputs with new ids, over all partitions."""
        values = [
            json.dumps(
                {
                    "producer": "studio",
                    "event_id": f"o-{number}",
                    "task_id": f"t-{number}",
                    "task_type": "coding",
                    "prompt": f"number {number}",
                    "output": f"it is {number}",
                    "approved": True,
                }
            ).encode()
            for number in range(self.sent, self.sent + count)
        ]
        for partition in range(PARTITIONS):
            self.broker.produce(
                self.topics["outputs"], values[partition::PARTITIONS], partition=partition
            )
        self.sent += count

    # --- looking ----------------------------------------------------------------------

    def rows(self, query: Any) -> list[Row]:
        with psycopg.connect(self.database_url, row_factory=dict_row) as session:
            return session.execute(query).fetchall()

    def stored(self) -> int:
        return int(self.rows("select count(*) as n from events")[0]["n"])

    def positions(self) -> dict[int, Row]:
        """Of the outputs' topic, by partition."""
        rows = self.rows("select * from positions")
        return {r["partition"]: r for r in rows if r["topic"] == self.topics["outputs"]}

    def lease(self) -> Row | None:
        """Of the oldest run that was begun."""
        found = self.rows("select * from run_leases order by run_id limit 1")
        return found[0] if found else None

    def is_in_a_transaction(self, node: str) -> bool:
        sessions = self.rows("select application_name, state from pg_stat_activity")
        return any(s["application_name"] == node and s["state"] != "idle" for s in sessions)

    def require_everything_once(self) -> None:
        """Each record is stored once, and each position is at its partition's end."""
        rows = self.rows("select producer, event_id from events")
        assert len(rows) == len({(r["producer"], r["event_id"]) for r in rows}) == self.sent
        ends = self.broker.end_offsets(self.topics["outputs"])
        assert {p: row["next_offset"] for p, row in self.positions().items()} == ends
        roles = Counter(
            r["event_id"]
            for r in self.rows(
                "select event_id from batch_members where role in ('train', 'held_out')"
            )
        )
        assert set(roles.values()) <= {1}


@pytest.fixture
def fleet(
    kafka_broker: KafkaBroker,
    postgres_server: PostgresServer,
    topic_names: TopicNames,
    nursery: Nursery,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Fleet]:
    topics = {stem: topic_names(stem) for stem in ("group", "outputs", "feedback")}
    kafka_broker.create_topic(topics["outputs"], PARTITIONS)
    kafka_broker.create_topic(topics["feedback"])
    training = getattr(request, "param", {"plan": "improve"})
    with postgres_server.database() as url:
        made = Fleet(kafka_broker, url, tmp_path, topics, training, nursery)
        with made.stack:
            yield made


def partitions_of(daemon: Learnd) -> list[str]:
    """What it claimed last."""
    claims = daemon.told(event="partitions claimed")
    return list(claims[-1]["partitions"]) if claims else []


# --- the consumer group ---------------------------------------------------------------


def test_three_daemons_share_a_group_whoever_joins_leaves_or_dies(fleet: Fleet) -> None:
    alpha, beta, gamma = (fleet.daemon(node) for node in ("alpha", "beta", "gamma"))
    fleet.produce(300)
    alpha.start()
    alpha.wait_until("a first daemon reads", lambda: fleet.stored() == 300)
    beta.start()
    gamma.start()
    fleet.produce(600)
    for daemon in (beta, gamma):
        daemon.wait_until("its share", partial(partitions_of, daemon))
    assert gamma.wait_until("all is stored", lambda: fleet.stored() == 900)
    claimed = [name for daemon in (alpha, beta, gamma) for name in partitions_of(daemon)]
    assert len(claimed) == len(set(claimed)) == PARTITIONS + 1  # and the one of feedback

    gamma.kill()
    assert beta.stop().status == 0
    fleet.produce(300)
    alpha.wait_until("the last one reads all", lambda: fleet.stored() == 1_200)
    fleet.require_everything_once()


def test_a_daemon_that_slept_through_its_session_writes_nothing_late(fleet: Fleet) -> None:
    alpha, beta = fleet.daemon("alpha"), fleet.daemon("beta")
    alpha.start()
    beta.start()
    for daemon in (alpha, beta):
        daemon.wait_until("its share", partial(partitions_of, daemon))

    # Whether it was about to write when it was put to sleep is up to chance: again, if not.
    while not alpha.told(kind="PartitionFenced"):
        put_to_sleep_while_it_reads(fleet, alpha, beta)

    refused = alpha.told(kind="PartitionFenced")[0]
    assert refused["level"] == "warning"
    assert "another consumer owns the partition now" in refused["event"]
    assert alpha.metric("learnd_fenced_writes_total") >= 1
    for daemon in (alpha, beta):
        daemon.wait_until("all is stored", lambda: fleet.stored() == fleet.sent, seconds=120)
    alpha.wait_until("it is ready", lambda: alpha.metric("learnd_ready") == 1)
    fleet.require_everything_once()


def put_to_sleep_while_it_reads(fleet: Fleet, alpha: Learnd, beta: Learnd) -> None:
    """Stop alpha until beta has claimed its partitions; then both go on.

    Unless it was in a transaction: the server would have to end that first.
    """
    n_claims, n_stored = len(alpha.told(event="partitions claimed")), fleet.stored()
    fleet.produce(3_000)
    alpha.wait_until("it reads", lambda: fleet.stored() > n_stored + 100)
    own = {int(name.partition("[")[2][:-1]) for name in partitions_of(alpha)}
    with alpha.asleep():
        if fleet.is_in_a_transaction("alpha"):
            return
        before = fleet.positions()

        def are_claimed() -> bool:
            now = fleet.positions()
            return all(now[n]["epoch"] > before[n]["epoch"] for n in own & now.keys())

        beta.wait_until("the other one claims them", are_claimed)
    alpha.wait_until(
        "it joins again by itself",
        lambda: len(alpha.told(event="partitions claimed")) > n_claims,
    )


# --- runs -----------------------------------------------------------------------------

SLOW = {"plan": "improve", "steps": 60, "step_seconds": 0.1}


def begin_at_alpha(fleet: Fleet) -> tuple[Learnd, Learnd]:
    """Alpha works on a run, beta stands by."""
    alpha, beta = fleet.daemon("alpha"), fleet.daemon("beta")
    alpha.start()
    fleet.produce(BATCH_SIZE)
    alpha.wait_until("its run is under way", lambda: alpha.told(kind="RunLaunched"))
    beta.start()
    return alpha, beta


def require_one_job(fleet: Fleet) -> None:
    """P3: the run has one attempt, and the provider made one job for it."""
    (attempt,) = fleet.rows("select * from run_attempts")
    assert attempt["result"] == "succeeded"
    journals = list((fleet.folder / "provider").glob("scripted/*"))
    lines = [line for file in journals for line in file.read_text().splitlines()]
    jobs = {json.loads(line)["job_id"] for line in lines}
    assert jobs == {attempt["job_id"]}


@pytest.mark.parametrize("fleet", [SLOW], indirect=True)
def test_the_run_of_a_daemon_that_sleeps_is_taken_over_and_what_it_writes_late_is_refused(
    fleet: Fleet,
) -> None:
    alpha, beta = begin_at_alpha(fleet)
    with alpha.asleep():
        beta.wait_until("it takes the run over", lambda: beta.told(kind="RunTakenOver"))
        (run,) = json.loads(beta.command("runs", "--json"))
        assert (run["node"], run["silent_since"]) == ("beta", None)

    alpha.wait_until("it learns of it", lambda: alpha.told(kind="RunLost"))
    assert alpha.metric("learnd_runs_lost_total") == 1
    assert beta.metric("learnd_runs_taken_over_total") == 1
    beta.wait_until("the gate speaks", lambda: beta.told(kind="CandidateDecided"))

    assert alpha.told(kind="CandidateDecided") == []
    assert fleet.lease() is not None
    require_one_job(fleet)


@pytest.mark.parametrize("fleet", [SLOW], indirect=True)
def test_the_run_of_a_daemon_that_was_killed_is_taken_over(fleet: Fleet) -> None:
    alpha, beta = begin_at_alpha(fleet)
    alpha.kill()

    beta.wait_until("the gate speaks", lambda: beta.told(kind="CandidateDecided"))

    assert [fact["kind"] for fact in beta.told(kind="RunTakenOver")] == ["RunTakenOver"]
    require_one_job(fleet)


@pytest.mark.parametrize("fleet", [SLOW], indirect=True)
def test_a_daemon_that_stops_hands_its_run_over_at_once(fleet: Fleet) -> None:
    alpha, beta = begin_at_alpha(fleet)
    assert alpha.stop().status == 0
    lease = fleet.lease()
    assert lease is not None

    beta.wait_until("the gate speaks", lambda: beta.told(kind="CandidateDecided"))

    require_one_job(fleet)


# --- what two daemons may not share, and what they must ---------------------------------


def test_a_second_daemon_on_a_sqlite_file_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with (
        Learnd(_made(tmp_path / "a"), {"database_url": url}) as first,
        Learnd(_made(tmp_path / "b"), {"database_url": url}) as second,
    ):
        first.start()
        second.launch()
        assert second.wait_for_end().status != 0
        assert "a SQLite file serves one" in second.log_tail()
        assert "PostgreSQL" in second.log_tail()


def test_a_daemon_with_other_artifacts_than_its_database_is_refused(fleet: Fleet) -> None:
    first = fleet.daemon("alpha")
    second = fleet.daemon("beta", artifacts_dir=str(fleet.folder / "elsewhere"))
    first.start()
    second.launch()
    assert second.wait_for_end().status != 0
    assert "need the same artifacts_dir" in second.log_tail()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
