"""P1, P2 and P3 under SIGKILL: 20,000 outputs, 6 partitions, 30 kills, two broker restarts.

The judge is the producer's own log, which this test keeps: what was sent, where the broker
put it, and what may become of it. KILL_STORM_SEEDS=1,2,3 plays other storms than the usual.
"""

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.acceptance.audit import Books, faults_of, require_none
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.nursery import Nursery
from tests.waiting import StillWaitingError

SEEDS = [int(seed) for seed in os.environ.get("KILL_STORM_SEEDS", "1").split(",")]

N_OUTPUTS = 20_000
N_KILLS = 30
BROKER_DIES_BEFORE = (10, 20)
"""Numbers of kills; the broker is killed, too, while the daemon runs."""
PARTITIONS = {"outputs": 6, "feedback": 2}
CHUNK = 200
"""Records that are produced at once."""
LEAD = 600
"""So many records the producer is ahead of the next kill, at most: 30 leads are not the end."""
BATCH_SIZE = 120
LINES = ("coding", "normalize")
PLAN = "improve; equal; fail,improve; worsen; lose_reply; improve; die,improve; improve"
"""What the runs of each line come to; see finetune/scripted_provider.py."""

Key = tuple[str, str]
"""(producer, event_id)."""
Place = tuple[str, int, int]
"""(outputs or feedback, partition, offset)."""


@dataclass(frozen=True)
class Record:
    """One record, and what the daemon may make of it."""

    kind: str
    """output, feedback, copy (of an earlier record, byte for byte) or junk."""
    topic: str
    value: bytes | None
    key: Key | None = None
    """None: it has no id of its own, and is known by its place."""
    states: frozenset[str] = frozenset()
    """Those that it may end in."""
    reason: str = ""
    """Of junk: the dead letter's."""
    partition_key: bytes | None = None


# --- what is sent ---------------------------------------------------------------------


class Stream:
    """Outputs of all sorts, some hundred feedback, and what goes wrong in between."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._numbers = itertools.count(1)

    def early(self) -> tuple[Sequence[Record], Sequence[Record]]:
        """Feedback that says no before its output is there, and these outputs."""
        tasks = [(self._rng.choice(LINES), f"early-{number}") for number in range(20)]
        return (
            [self._feedback(*task, {"joined"}, approved=False) for task in tasks],
            [self._output(*task, {"withdrawn"}, approved=True) for task in tasks],
        )

    def rest(self) -> Iterator[Record]:
        """Everything else, in the order in which it is sent."""
        earlier: list[Record] = []
        for number in range(N_OUTPUTS):
            records = list(self._task(self._rng.choice(LINES), f"task-{number}"))
            yield from records
            earlier += [record for record in records if record.key is not None]
            if self._rng.random() < 0.012:
                again = self._rng.choice(earlier)
                yield Record("copy", again.topic, again.value, again.key)
            if self._rng.random() < 0.01:
                yield self._junk()
            if self._rng.random() < 0.002:
                yield self._reused_id(self._rng.choice(earlier))
        for number in range(10):
            yield self._feedback(self._rng.choice(LINES), f"never-{number}", {"waiting"})

    def late(self, tasks: Sequence[tuple[str, str]]) -> Sequence[Record]:
        """Feedback that says no to outputs that are sealed."""
        return [self._feedback(*task, {"late"}, approved=False) for task in tasks]

    def _task(self, task_type: str, task_id: str) -> Iterator[Record]:
        """An output, with the feedback that some of them get."""
        task = (task_type, task_id)
        draw = self._rng.random()
        trains = {"queued", "sealed"}
        heard = {"joined", "late"}
        if draw < 0.02:
            yield self._output(*task, {"rejected"}, approved=False)
        elif draw < 0.05:
            yield self._output(*task, {"held"}, confidence=0.9)
        elif draw < 0.07:
            yield self._output(*task, {"held"}, approved=True, confidence=0.3)
        elif draw < 0.08:
            yield self._output(*task, {"quarantined"}, approved=True, output=" ")
        elif draw < 0.10:
            yield self._output(*task, trains, approved=True, confidence=0.2)
            yield self._feedback(*task, {"joined"}, approved=True)
        elif draw < 0.11:
            yield self._output(*task, {"rejected"}, confidence=0.8)
            yield self._feedback(*task, {"joined"}, approved=False)
        elif draw < 0.14:
            # Withdrawn while it waits; too late once it is sealed.
            yield self._output(*task, trains | {"withdrawn"}, approved=True)
            yield self._feedback(*task, heard, approved=False)
        elif draw < 0.15:
            yield self._output(*task, trains, approved=True)
            yield self._feedback(*task, heard, approved=True)
        elif draw < 0.20:
            yield self._output(*task, trains, approved=True, event_id=None)
        else:
            yield self._output(*task, trains, approved=True, confidence=0.95)

    def _output(self, task_type: str, task_id: str, states: set[str], **fields: Any) -> Record:
        number = next(self._numbers)
        prompt, group = f"Name  number {number}", None
        if number % 10 == 0:  # a prompt that was sent before, in other white space and case
            prompt = f"name number {self._rng.randrange(number) // 10 * 10 + 1} "
        elif number % 10 > 1 and number % 7 < 2:
            group = f"group-{number // 7}"
        event: dict[str, Any] = {
            "event_id": f"o-{number}",
            "producer": self._rng.choice(("studio", "annex")),
            "task_type": task_type,
            "task_id": task_id,
            "prompt": prompt,
            "output": f"It is number {number}.",
            "split_group": group,
        }
        return self._record("output", states, **(event | fields))

    def _feedback(
        self, task_type: str, task_id: str, states: set[str], *, approved: bool = True
    ) -> Record:
        return self._record(
            "feedback",
            states,
            event_id=f"f-{next(self._numbers)}",
            producer="audience",
            task_type=task_type,
            task_id=task_id,
            approved=approved,
        )

    def _record(self, kind: str, states: set[str], **fields: Any) -> Record:
        event = {name: value for name, value in fields.items() if value is not None}
        key = (event["producer"], event["event_id"]) if "event_id" in event else None
        return Record(
            kind,
            "feedback" if kind == "feedback" else "outputs",
            json.dumps(event).encode(),
            key,
            frozenset(states),
            partition_key="/".join(key).encode() if key is not None else None,
        )

    def _junk(self) -> Record:
        number = next(self._numbers)
        stray: dict[str, object] = {
            "producer": "studio",
            "task_id": f"{number}",
            "task_type": "nobodys",
        }
        fields: dict[str, dict[str, object]] = {
            "outputs": {"prompt": "p", "output": "o"},
            "feedback": {"approved": True},
        }
        topic = self._rng.choice(tuple(PARTITIONS))
        reason, value = self._rng.choice(
            [
                ("not_json", b"{junk %d" % number),
                ("bad_utf8", b'{"number": %d, "text": "\xff"}' % number),
                ("not_an_object", b"[%d]" % number),
                ("invalid", b'{"approved": "yes", "number": %d}' % number),
                ("empty", b" "),
                ("tombstone", None),
                ("unknown_task_type", json.dumps(stray | fields[topic]).encode()),
            ]
        )
        return Record("junk", topic, value, reason=reason)

    def _reused_id(self, earlier: Record) -> Record:
        """Another body under an id that is taken: after the first, in the same partition."""
        event = json.loads(earlier.value or b"{}") | {"model_version": "another"}
        return Record(
            "junk",
            earlier.topic,
            json.dumps(event).encode(),
            reason="id_reused",
            partition_key=earlier.partition_key,
        )


@dataclass
class Producer:
    """Sends the stream a little ahead of the store, and writes down where each record went."""

    broker: KafkaBroker
    topics: Mapping[str, str]
    books: Books
    log: dict[Place, Record] = field(default_factory=dict)
    _n_expected: int = 0

    def send(self, records: Sequence[Record]) -> None:
        """Send them; they are on the broker's disk, and in the log, when this returns."""
        for topic in PARTITIONS:
            chosen = [record for record in records if record.topic == topic]
            places = self.broker.produce(
                self.topics[topic],
                [record.value for record in chosen],
                keys=[record.partition_key for record in chosen],
            )
            for record, place in zip(chosen, places, strict=True):
                self.log[topic, place.partition, place.offset] = record
            self._n_expected += sum(record.kind != "copy" for record in chosen)

    def keep_ahead(self, stream: Iterator[Record], of_row: int) -> None:
        """Send the next records, unless there are enough for so many rows and a lead."""
        if self.n_expected() < of_row + LEAD:
            self.send(list(itertools.islice(stream, CHUNK)))

    def n_expected(self) -> int:
        """Of all that was sent, what should leave a row: everything but the copies."""
        return self._n_expected

    def of_kind(self, kind: str) -> Mapping[Place, Record]:
        """The log's records of one kind."""
        return {place: record for place, record in self.log.items() if record.kind == kind}


def rows_stored(books: Books) -> int:
    """Rows of all three kinds; 0 while there is no database."""
    if not books.exist():
        return 0
    return books.number(
        "select (select count(*) from events) + (select count(*) from feedback)"
        " + (select count(*) from dead_letters)"
    )


# --- when it is killed ----------------------------------------------------------------


class Moment:
    """A kill: when `n_stored` rows are there and, from then on, something has happened."""

    KINDS: Mapping[str, str] = {
        "at once": "select 1",
        "something more is stored": "select sum(n) from tallies",
        "a batch is sealed": "select count(*) from batches",
        "a run is under way": "select count(*) from runs where job_id is not null"
        " and state not in ('decided', 'failed')",
        "a job is adopted": "select count(*) from run_attempts where job_id is not null",
        "a run is decided": "select count(*) from runs where state = 'decided'",
    }

    def __init__(self, n_stored: int, kind: str) -> None:
        self.n_stored = n_stored
        self.from_row = n_stored
        """So many rows were there when it began to look; one transaction may store many more."""
        self._kind = kind
        self._before: int | None = None

    def __str__(self) -> str:
        return f"{self.n_stored} are stored, then {self._kind}"

    def reached(self, books: Books) -> bool:
        """Whether it is time."""
        n_rows = rows_stored(books)
        if n_rows < self.n_stored:
            return False
        now = books.number(self.KINDS[self._kind])
        if self._before is None:
            self._before, self.from_row = now, n_rows
        if self._kind in ("at once", "a run is under way"):
            return now > 0
        return now > self._before


def moments(rng: random.Random) -> list[Moment]:
    """When to kill, in order."""
    # Not near the end, where nothing more would happen.
    counts = sorted(rng.sample(range(100, N_OUTPUTS * 4 // 5), N_KILLS))
    return [Moment(count, rng.choice(list(Moment.KINDS))) for count in counts]


# --- the oracle -----------------------------------------------------------------------


class Rows:
    """What the database has, by key and by place."""

    def __init__(self, books: Books, topics: Mapping[str, str]) -> None:
        names = {name: stem for stem, name in topics.items()}
        self.by_key: dict[tuple[str, Key], list[Any]] = {}
        self.by_place: dict[Place, list[Any]] = {}
        for kind, table in (("output", "events"), ("feedback", "feedback")):
            for row in books.rows(f"select * from {table}"):  # noqa: S608 - two fixed names
                key = (kind, (row["producer"], row["event_id"]))
                self.by_key.setdefault(key, []).append(row)
                place = (names[row["topic"]], row["partition"], row["offset"])
                self.by_place.setdefault(place, []).append(row)
        self.letters: dict[Place, list[Any]] = {}
        for row in books.rows("select * from dead_letters"):
            place = (names[row["topic"]], row["partition"], row["offset"])
            self.letters.setdefault(place, []).append(row)
        self.next_offsets = next_offsets(books, names)

    def of(self, place: Place, record: Record) -> list[Any]:
        """The rows that a record of the log should be found in."""
        if record.kind == "junk":
            return self.letters.get(place, [])
        if record.key is None:
            return self.by_place.get(place, [])
        kind = "feedback" if record.topic == "feedback" else "output"
        return self.by_key.get((kind, record.key), [])


def next_offsets(books: Books, names: Mapping[str, str]) -> dict[tuple[str, int], int]:
    """The stored positions; `names` has the stem of each topic."""
    return {
        (names[row["topic"]], row["partition"]): row["next_offset"] or 0
        for row in books.rows("select * from positions")
    }


def faults_of_intake(producer: Producer) -> Iterator[str]:
    """P1, at any time: below a stored position everything is stored, above it nothing."""
    rows = Rows(producer.books, producer.topics)
    early = {  # of a record and its copies the first that was read counts
        (record.topic, record.key)
        for place, record in producer.log.items()
        if record.key is not None and place[2] < rows.next_offsets.get(place[:2], 0)
    }
    for place, record in producer.log.items():
        found = rows.of(place, record)
        below = place[2] < rows.next_offsets.get(place[:2], 0)
        wanted = 1 if below or (record.topic, record.key) in early else 0
        if len(found) != wanted:
            yield f"{record.kind} {record.key} at {place}: {len(found)} rows, not {wanted}"


def faults_of_commits(producer: Producer, group: str) -> Iterator[str]:
    """What Kafka was told is stored is stored."""
    asked = [
        TopicPartition(producer.topics[topic], partition)
        for topic, n_partitions in PARTITIONS.items()
        for partition in range(n_partitions)
    ]
    names = {name: stem for stem, name in producer.topics.items()}
    stored = next_offsets(producer.books, names)
    consumer = Consumer({"bootstrap.servers": producer.broker.bootstrap, "group.id": group})
    try:
        for told in consumer.committed(asked, timeout=30):
            position = stored.get((names[told.topic], told.partition), 0)
            if told.offset > position:  # negative: nothing was committed
                yield f"{told.topic}[{told.partition}] is committed to {told.offset} > {position}"
    finally:
        consumer.close()


def faults_of_the_end(producer: Producer) -> Iterator[str]:
    """Everything that was sent has become what it may become, and nothing else is there."""
    yield from faults_of_intake(producer)
    rows = Rows(producer.books, producer.topics)
    ends = {
        (topic, partition): end
        for topic in PARTITIONS
        for partition, end in producer.broker.end_offsets(producer.topics[topic]).items()
    }
    if rows.next_offsets != ends:
        yield f"the stored positions are {rows.next_offsets}, the ends {ends}"
    for kind, tables in (("output", rows.by_key), ("feedback", rows.by_key)):
        n_rows = sum(len(found) for (of, _), found in tables.items() if of == kind)
        n_sent = len(producer.of_kind(kind))
        if n_rows != n_sent:
            yield f"{n_sent} of kind {kind} were sent, {n_rows} are stored"
    for place, letters in rows.letters.items():
        record = producer.log[place]
        told = [(letter["reason"], letter["raw"]) for letter in letters]
        if told != [(record.reason, record.value or b"")]:
            yield f"dead letter at {place}: {told}, and sent was {record}"
    outputs = {}
    for place, record in producer.of_kind("output").items():
        for row in rows.of(place, record):
            outputs[row["task_type"], row["task_id"]] = row["state"]
            sent = json.loads(record.value or b"{}")
            stored = json.loads(row["payload"])
            if {name: stored.get(name) for name in sent} != sent:
                yield f"{record.key} is not stored as it was sent: {row['payload']}"
            if row["state"] not in record.states:
                yield f"{record.key} is {row['state']}, and should be {sorted(record.states)}"
    for place, record in producer.of_kind("feedback").items():
        for row in rows.of(place, record):
            if row["state"] not in record.states:
                yield f"{record.key} is {row['state']}, and should be {sorted(record.states)}"
            output = outputs.get((row["task_type"], row["task_id"]))
            refused = row["approved"] == 0 and output in ("queued", "sealed")
            if refused and row["state"] != "late":
                yield f"{record.key} said no, is {row['state']}, and its output is {output}"
            if row["state"] == "late" and output != "sealed":
                yield f"{record.key} is late, and its output is {output}"


def faults_of_jobs(books: Books) -> Iterator[str]:
    """P3, by the journal of the provider: one job for each attempt, and that one was adopted."""
    journal = books.data_dir / "providers" / "scripted" / "jobs.jsonl"
    jobs = [json.loads(line) for line in journal.read_text().splitlines()]
    for attempt, n in Counter((job["run_id"], job["attempt"]) for job in jobs).items():
        if n != 1:
            yield f"{attempt} got {n} jobs"
    adopted = {
        row["job_id"]
        for row in books.rows("select job_id from run_attempts where job_id is not null")
    }
    made = {job["job_id"] for job in jobs}
    if made != adopted:
        yield f"made and not adopted: {made - adopted}; adopted and not made: {adopted - made}"


class Numbers:
    """The version numbers that were seen: none may ever name another version."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[int, str | None]] = {}

    def look(self, books: Books) -> Iterator[str]:
        """Read them again; yields those that moved or went away."""
        now = {
            (row["line"], number): (row["id"], row["run_id"])
            for row in books.rows("select * from versions")
            for number in (row["candidate"], row["release"])
            if number is not None
        }
        for number, version in self._seen.items():
            if now.get(number) != version:
                yield f"{number} was {version}, and is {now.get(number)}"
        self._seen |= now


# --- the storm ------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_doubled_however_often_the_daemon_is_killed(
    seed: int,
    kafka_broker: KafkaBroker,
    topic_names: Callable[[str], str],
    nursery: Nursery,
    tmp_path: Path,
) -> None:
    rng = random.Random(seed)
    topics = {stem: topic_names(stem) for stem in PARTITIONS}
    for stem, n_partitions in PARTITIONS.items():
        kafka_broker.create_topic(topics[stem], n_partitions)
    group = topic_names("learnd")
    with Learnd(tmp_path, _settings(kafka_broker, topics, group), nursery=nursery) as daemon:
        books = Books(daemon.data_dir)
        producer = Producer(kafka_broker, topics, books)
        numbers = Numbers()
        stream = Stream(rng)
        feedback, outputs = stream.early()
        records = stream.rest()
        daemon.start()
        producer.send(feedback)
        daemon.wait_until("early feedback", lambda: rows_stored(books) == len(feedback))
        producer.send(outputs)

        for number, moment in enumerate(moments(rng), start=1):
            if number in BROKER_DIES_BEFORE:
                kafka_broker.restart()

            def send_until(moment: Moment = moment, begun_at: int = rows_stored(books)) -> bool:
                producer.keep_ahead(records, max(moment.from_row, begun_at))
                return moment.reached(books)

            daemon.wait_until(str(moment), send_until, poll_seconds=0.002)
            daemon.kill()
            require_none(
                faults_of_intake(producer),
                faults_of_commits(producer, group),
                faults_of(daemon.data_dir),
                numbers.look(books),
                when=f"after a kill when {moment}",
            )
            daemon.start()

        def send_to_the_end() -> bool:
            producer.keep_ahead(records, rows_stored(books))
            return rows_stored(books) >= producer.n_expected() and _is_idle(books)

        try:
            daemon.wait_until("the end", send_to_the_end, seconds=180)
            producer.send(stream.late(_sealed_tasks(books)))
            daemon.wait_until("late feedback", send_to_the_end)
        except StillWaitingError as error:
            error.add_note("\n".join(faults_of_the_end(producer)))
            raise
        assert daemon.stop().status == 0

    require_none(
        faults_of_the_end(producer),
        faults_of_commits(producer, group),
        faults_of(daemon.data_dir),
        faults_of_jobs(books),
        numbers.look(books),
        when="at the end",
    )
    _require_that_it_was_a_storm(books, producer)


def _settings(broker: KafkaBroker, topics: Mapping[str, str], group: str) -> Mapping[str, Any]:
    return {
        "kafka": {
            "bootstrap_servers": broker.bootstrap,
            "group_id": group,
            "session_timeout_seconds": 1.0,  # so long a killed daemon keeps its partitions
            "outputs_topics": [topics["outputs"]],
            "feedback_topics": [topics["feedback"]],
        },
        "queue": {
            "batch_size": BATCH_SIZE,
            "max_queue_size": 2 * BATCH_SIZE,
            "adaptive": False,  # the end is told by the size of a batch
        },
        "finetune": {
            "provider": "scripted",
            "base_model": "scripted-base",
            "training": {"plan": PLAN, "steps": 4, "step_seconds": 0.05},
            "retry_base_seconds": 0.05,
        },
        "lines": {line: {} for line in LINES},
    }


def _sealed_tasks(books: Books) -> Sequence[tuple[str, str]]:
    """Some sealed outputs that nobody has given feedback on."""
    return [
        (row["task_type"], row["task_id"])
        for row in books.rows(
            "select task_type, task_id from events where state = 'sealed'"
            " and (task_type, task_id) not in (select task_type, task_id from feedback)"
            " order by id limit 20"
        )
    ]


def _is_idle(books: Books) -> bool:
    """Whether no run is under way and no batch is due."""
    queued = {
        row["task_type"]: row["n"]
        for row in books.rows(
            "select task_type, count(*) n from events where state = 'queued' group by 1"
        )
    }
    unfinished = books.number("select count(*) from runs where state not in ('decided', 'failed')")
    return not unfinished and all(queued.get(line, 0) < BATCH_SIZE for line in LINES)


def _require_that_it_was_a_storm(books: Books, producer: Producer) -> None:
    """Otherwise the checks above have proved nothing."""
    kinds = Counter(record.kind for record in producer.log.values())
    assert kinds["output"] == N_OUTPUTS + 20
    assert kinds["feedback"] > 250
    assert kinds["copy"] > 25
    assert kinds["junk"] > 25
    for question in (
        "select count(*) from versions where release is not null and run_id is not null",
        "select count(*) from batch_members where role = 'retry'",
        "select count(*) from batch_members where role = 'replay'",
        "select count(*) from batch_members where role = 'held_out'",
        "select count(*) from runs where attempt > 1",
    ):
        assert books.number(question) > 0, question
