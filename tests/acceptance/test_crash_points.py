"""A daemon that dies at every named moment, one life after the other, and keeps its promises.

The moments are read from the source (tests/failpoints.py), so that none can be forgotten: a
transaction or a `reached(...)` that no scene here brings the daemon to fails the test. All
lives share one installation: each finds what the crash of the one before it has left, while
events keep coming. What is promised is checked in the files of each dead daemon.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import NullPool, Row, create_engine, text

from daemon.api.routes.webhooks import PATH as WEBHOOKS
from daemon.store.database import Database, address_of, sqlite_url
from finetune.artifacts import ArtifactError, verify
from tests.acceptance.audit import faults_of, require_none
from tests.contract.promises import broken_promises
from tests.failpoints import all_names
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.nursery import Crash, Nursery
from tests.services.postgres import PostgresServer
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.webhooks import KEY, SECRET, event

LINE = "coding"
BATCH_SIZE = 24
END_SECONDS = 180.0
"""The patience for all that the crashes have left to do."""
ELSEWHERE = {
    "Intake.rewind": "a recreated topic: tests/acceptance/test_kafka_source.py",
    "Queue.try_to_write": "changes nothing, and only after half a minute without events",
    "Interventions.resolve": "needs a provider without lookup: tests/contract/test_runner.py",
    "Forgettings.purge_feedback": "of a producer only: tests/contract/test_forgetting.py",
    "Forgettings.purge_letters": "of a producer only: tests/contract/test_forgetting.py",
    "Forgettings.retrain": "one transaction, asked for again: tests/contract/test_forgetting.py",
    "LiveVerdicts.keep": "a number that is shown: tests/contract/test_live_verdict.py",
    "Registry.step_back": "many verdicts: tests/contract/test_live_verdict.py",
    "Releases.release": "what the firewall stopped: tests/contract/test_firewall.py",
    "Intake.receipts": "an answer that is never sent: tests/acceptance/test_http_intake.py",
    "checkpoint": "in the trainer, not in the daemon: tests/unit/test_trainer_checkpoint.py",
}
"""Where moments are tested that no scene leads to, by how their names begin."""


@dataclass
class Installation:
    """One daemon's folder and topics, and all that was ever sent to it."""

    daemon: Learnd
    database_url: str
    kafka: KafkaBroker
    outputs: str
    new_name: Callable[[str], str]
    sent: list[str] = field(default_factory=list)
    undecodable: int = 0
    unknown: int = 0

    def rows(self, query: str) -> Sequence[Row[Any]]:
        """The answer to a query; each time from a connection of its own."""
        engine = create_engine(address_of(self.database_url), poolclass=NullPool)
        with engine.connect() as connection:
            return connection.execute(text(query)).all()

    def number(self, query: str) -> int:
        """The first number that a query answers."""
        return int(self.rows(query)[0][0])

    def feed(self, n: int = BATCH_SIZE) -> None:
        """Enough for a batch, and one of each kind that does not train."""
        numbers = range(len(self.sent), len(self.sent) + n)
        records = [_output(number, approved=True) for number in numbers]
        held, rejected = len(self.sent) + n, len(self.sent) + n + 1
        records += [_output(held), b"{", _output(held, task_type="chess", approved=True)]
        records.append(_output(rejected, approved=False, prompt=f"question {numbers[0]}"))
        self.sent += [f"e-{number}" for number in (*numbers, held, rejected)]
        self.undecodable += 1
        self.unknown += 1
        self.kafka.produce(self.outputs, records)

    def run_states(self) -> Counter[str]:
        return Counter(row.state for row in self.rows("select state from runs"))

    def wait_until(
        self, what: str, ask: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS
    ) -> bool:
        """Wait for what the daemon does; false when it died first, as it should."""
        wait_until(
            what,
            lambda: self.daemon.is_gone() or ask(),
            seconds=seconds,
            explain=self.daemon.log_tail,
        )
        return not self.daemon.is_gone()


# --- what a person does while a daemon approaches its end ------------------------------


Act = Callable[[Installation], None]


def nothing(_: Installation) -> None:
    """The daemon gets there by itself."""


def flush(here: Installation) -> None:
    here.daemon.post("/v1/queue/flush", {})


def cancel(here: Installation) -> None:
    """A run that is under way; one may be over before it can be cancelled."""

    def cancelled() -> bool:
        return any(
            here.daemon.post(f"/v1/runs/{row.id}/cancel", {"reason": "wrong data"}).is_success
            for row in here.rows("select id from runs where state = 'running'")
        )

    here.wait_until("a run to cancel", cancelled)


def give_up_node(here: Installation) -> None:
    """The one that works on a run."""
    if here.wait_until("a run under way", lambda: here.run_states()["running"]):
        (run,) = here.daemon.get("/v1/runs?state=running")["items"]
        here.daemon.post(f"/v1/nodes/{run['node']}/gone", {"reason": "burnt"})


def replay(here: Installation) -> None:
    """A record of a task type that is accepted by now."""
    open_letters = (
        "select id from dead_letters where reason = 'unknown_task_type' and replayed_at is null"
    )
    if here.wait_until("a dead letter", lambda: here.rows(open_letters)):
        here.daemon.post(f"/v1/dead-letters/{here.number(open_letters)}/replay")


def approve(here: Installation) -> None:
    held = "select id from events where state = 'held' order by id"
    if here.wait_until("a held event", lambda: here.rows(held)):
        verdict = {"approved": True, "reason": "seen"}
        here.daemon.post(f"/v1/events/{here.number(held)}/verdict", verdict)


def import_held_out(here: Installation) -> None:
    row = {"prompt": f"exam {len(here.sent)}", "output": "passed"}
    here.daemon.post(f"/v1/held-out?task_type={LINE}", content=json.dumps(row).encode())


def import_dataset(here: Installation) -> None:
    rows = [{"prompt": f"lesson {len(here.sent)} {n}", "completion": str(n)} for n in range(8)]
    content = "\n".join(json.dumps(row) for row in rows).encode()
    here.daemon.post(f"/v1/imports?line={LINE}&file=lessons.jsonl", content=content)


def release_size(here: Installation) -> None:
    """The batch size is to adapt again, from where it is."""
    here.daemon.post(f"/v1/queue/batch-sizes/{LINE}", {"size": None, "reason": "as it was"})


def change_a_setting(here: Installation) -> None:
    """One that changes nothing here: the epochs have no part in the price."""
    values = {"money.assumed_epochs": 1 + len(here.sent) % 1_000}
    here.daemon.post("/v1/settings", {"values": values, "reason": "another guess"})


def force(here: Installation) -> None:
    """A candidate that the gate refused, unless the champion moves just then."""

    def forced() -> bool:
        return any(
            here.daemon.post(
                f"/v1/models/{LINE}/promote",
                {"version": row.candidate, "force": True, "reason": "I know"},
            ).is_success
            for row in here.rows("select candidate from versions where state = 'refused'")
        )

    here.wait_until("a refused candidate", forced)


def roll_back(here: Installation) -> None:
    """Away from a champion that was trained."""
    here.wait_until(
        "a champion with a predecessor",
        lambda: here.daemon.post(f"/v1/models/{LINE}/rollback", {"reason": "worse"}).is_success,
    )


def forget(here: Installation) -> None:
    """An event that a version learned from; what a crash interrupted before is asked for again."""
    begun = "select name from forgettings where state = 'asked'"
    learned = (
        "select e.producer || '/' || e.event_id as name from events e"
        " join batch_members m on m.event_id = e.id join runs r on r.batch_id = m.batch_id"
        " where e.state = 'sealed' and m.role = 'train' and r.state = 'decided' order by e.id desc"
    )

    def name() -> str | None:
        return next((row.name for row in (*here.rows(begun), *here.rows(learned))), None)

    # The interrupted one may have only its end left, so that another one is needed.
    for _ in range(3):
        if here.wait_until("an event that a version learned from", name):
            here.daemon.post("/v1/forget", {"event": name(), "reason": "asked for"})


def reset_feedback(here: Installation) -> None:
    here.daemon.post("/v1/feedback/reset", {"task_type": LINE, "reason": "a prank"})


def tell(here: Installation) -> None:
    """The webhook that the life before this one may have stored already."""
    headers = KEY.sign("wh_1", datetime.now(UTC), event())
    here.daemon.post_signed(WEBHOOKS, event(), headers)


# --- how a daemon is brought to a moment -----------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What is done in a life, and the settings that differ in it."""

    act: Act = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    before: str | None = None
    """A moment at which the life before this one must die."""


def playing(plan: str, **settings: Any) -> Mapping[str, str]:
    return {"LEARND_FINETUNE__TRAINING": json.dumps({"plan": plan, **settings})}


CANCEL = Scene(cancel, playing("hang"))
SCENES: Mapping[str, Scene] = {
    # Its first thought is stored: that too few runs have ended to tell, or what they tell.
    "BatchSizes.change": Scene(environment={"LEARND_QUEUE__ADAPTIVE": "true"}),
    "BatchSizes.set_by_hand": Scene(release_size),
    "BatchSizes.follow_settings": Scene(environment={"LEARND_QUEUE__BATCH_SIZE": "25"}),
    "Intake.replay": Scene(replay, {"LEARND_POLICY__UNKNOWN_TASK_TYPES": "accept"}),
    "FeedbackDials.reset": Scene(reset_feedback),
    "Forgettings.": Scene(forget),
    "forgotten files removed": Scene(forget),
    "Interventions.cancel": CANCEL,
    "Runs.cancel": CANCEL,
    "job cancelled": CANCEL,
    "Leases.declare_gone": Scene(give_up_node, playing("improve", steps=20, step_seconds=0.1)),
    "Leases.renew": Scene(environment={"LEARND_FINETUNE__LEASE_SECONDS": "1"}),
    "Queue.expire": Scene(environment={"LEARND_POLICY__HOLD_DAYS": "0.0000001"}),
    "Queue.judge_by_hand": Scene(approve),
    "Queue.import_held_out": Scene(import_held_out),
    "Intake.append_unknown": Scene(import_dataset),
    "Registry.promote": Scene(force, playing("worsen")),
    "Registry.rollback": Scene(roll_back),
    "Webhooks.store": Scene(tell),
    "SettingChanges.change": Scene(change_a_setting),
    "Runs.interrupt": Scene(before="Runs.begin after its commit"),
    "Runs.fail": Scene(environment=playing("fail,improve")),
    "Runs.report": Scene(environment=playing("improve", steps=3, step_seconds=0.7)),
    "Runs.wait_for": Scene(environment={"LEARND_SIMULATION_MODE": "true"}),
}
"""By how the names of their moments begin; every other daemon only needs events."""
ONCE = "Registry.settle_artifacts"
"""In the life of a database, at its first start."""


def lives() -> Iterator[tuple[str, Scene]]:
    """Where each daemon dies, in an order in which the next one finds something to go on with."""
    names = [name for name in all_names() if not name.startswith(tuple(ELSEWHERE))]
    for name in sorted(names, key=lambda name: not name.startswith(ONCE)):
        scene = next((SCENES[start] for start in SCENES if name.startswith(start)), Scene())
        if scene.before is not None:
            yield scene.before, Scene()
        yield name, scene
    yield "Queue.seal after its commit", Scene(flush)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database of its own."""
    if request.param == "sqlite":
        (tmp_path / "data").mkdir()
        yield sqlite_url(tmp_path / "data" / "learnd.db")
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        with server.database() as url:
            yield url


@pytest.fixture
def here(
    database_url: str,
    kafka_broker: KafkaBroker,
    topic_names: Callable[[str], str],
    nursery: Nursery,
    tmp_path: Path,
) -> Iterator[Installation]:
    outputs, feedback, letters = (topic_names(stem) for stem in ("outputs", "feedback", "letters"))
    for topic in (outputs, feedback, letters):
        kafka_broker.create_topic(topic)
    settings = {
        "database_url": database_url,
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
            "dead_letter_topic": letters,
        },
        # The end is told by the size of a batch.
        "queue": {
            "batch_size": BATCH_SIZE,
            "max_queue_size": 4 * BATCH_SIZE,
            "adaptive": False,
        },
        "finetune": {
            "provider": "scripted",
            "base_model": "scripted-base",
            "retry_base_seconds": 0.05,
        },
        # So that each launch reserves money, which no crash may leak: tests/contract/promises.py.
        "money": {"prices": {"scripted": {"*": {"per_job": 1}}}, "cap_per_month": 100_000},
        # So that each batch has rejected outputs too, unless their prompts are held out.
        "lines": {LINE: {"learn_from_rejected": True, "training": {"objective": "dpo"}}},
        "remote": {"openai_webhook_secret": SECRET},
    }
    with Learnd(tmp_path, settings, nursery=nursery) as daemon:
        yield Installation(daemon, database_url, kafka_broker, outputs, topic_names)


@pytest.mark.timeout(900)
def test_a_crash_at_any_moment_breaks_no_promise(here: Installation) -> None:
    for name, scene in lives():
        here.feed()
        live_until(here, Crash(name), scene)
        require_none(faults(here), when=f"after {name!r}")

    here.daemon.launch(environment=group(here))
    here.wait_until("everything is done", lambda: nothing_is_left(here), seconds=END_SECONDS)
    assert here.daemon.stop().status == 0
    require_none(faults(here), when="at the end")
    stored = here.rows("select event_id from events where producer = 'studio'")
    assert Counter(row.event_id for row in stored) == Counter(here.sent)
    letters = here.rows("select reason from dead_letters")
    assert Counter(row.reason for row in letters)["not_json"] == here.undecodable
    assert n_unknown(here) == here.unknown
    assert list((here.daemon.data_dir / "artifacts").glob(".staging*")) == []
    assert here.number("select count(*) from batch_members where role = 'preference'") > 0
    assert here.number("select count(*) from webhook_deliveries") == 1


def live_until(here: Installation, crash: Crash, scene: Scene) -> None:
    """One daemon, from its start to its sudden end."""
    here.daemon.launch(crash, {**group(here), **scene.environment})
    if here.wait_until(f"a start before {crash.failpoint!r}", here.daemon.is_up):
        with contextlib.suppress(httpx.TransportError):  # it died while it was asked
            scene.act(here)
    here.daemon.wait_for_crash()


def group(here: Installation) -> Mapping[str, str]:
    """Another consumer group for each life: the broker would wait for the dead member's return."""
    return {"LEARND_KAFKA__GROUP_ID": here.new_name("learnd")}


def n_unknown(here: Installation) -> int:
    """Outputs of a foreign task type: those not accepted, and those that were, by replay or not."""
    letters = "select count(*) from dead_letters where reason = 'unknown_task_type'"
    accepted = here.number("select count(*) from events where producer = 'club'")
    return here.number(letters) + accepted - here.number(f"{letters} and replayed_at is not null")


def nothing_is_left(here: Installation) -> bool:
    """Whether every event is stored, and every run is over."""
    n_stored = here.number("select count(*) from events where producer = 'studio'")
    n_undecodable = here.number("select count(*) from dead_letters where reason = 'not_json'")
    over = here.run_states().keys() <= {"decided", "failed", "cancelled"}
    return (
        over
        and n_stored == len(here.sent)
        and n_undecodable == here.undecodable
        and n_unknown(here) == here.unknown
        and here.number("select count(*) from events where state = 'queued'") < BATCH_SIZE
    )


def faults(here: Installation) -> Iterator[str]:
    """Whatever a dead daemon left behind that breaks a promise."""
    yield from asyncio.run(promises_broken_in(here.database_url))
    yield from faults_of_jobs(here)
    yield from faults_of_versions(here)
    yield from faults_of_sizes(here)
    if here.database_url.startswith("sqlite"):
        yield from faults_of(here.daemon.data_dir)


def faults_of_versions(here: Installation) -> Iterator[str]:
    """P4: each version that exists has its files, as they were published."""
    for row in here.rows("select artifact, manifest_sha256 from versions where run_id is not null"):
        try:
            manifest = verify(here.daemon.data_dir / "artifacts" / row.artifact)
        except ArtifactError as error:
            yield str(error)
        else:
            if manifest.sha256 != row.manifest_sha256:
                yield f"{row.artifact} has another manifest than its version"


def faults_of_sizes(here: Installation) -> Iterator[str]:
    """Each batch size is the newest of its history."""
    for row in here.rows("select line, size from batch_sizes"):
        told = here.rows(
            "select to_state from transitions where kind = 'batch_size' order by id desc limit 1"
        )
        if told and told[0].to_state != str(row.size):
            yield f"the batch size of {row.line} is {row.size}, its history says {told[0]}"


async def promises_broken_in(url: str) -> list[str]:
    database = Database(url)
    try:
        return await database.read(broken_promises)
    finally:
        await database.close()


def faults_of_jobs(here: Installation) -> Iterator[str]:
    """P3, by the provider's own journal."""
    journal = here.daemon.data_dir / "providers" / "scripted" / "jobs.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    job_ids: dict[tuple[str, int], set[str]] = {}
    for job in map(json.loads, lines):
        job_ids.setdefault((job["run_id"], job["attempt"]), set()).add(job["job_id"])
    yield from (f"{attempt} got jobs {ids}" for attempt, ids in job_ids.items() if len(ids) > 1)


def _output(
    number: int,
    *,
    task_type: str = LINE,
    approved: bool | None = None,
    prompt: str | None = None,
) -> bytes:
    event = {
        "event_id": f"e-{number}",
        "producer": "studio" if task_type == LINE else "club",
        "task_type": task_type,
        "task_id": f"t-{number}",
        "prompt": prompt or f"question {number}",
        "output": f"answer {number}",
        "approved": approved,
    }
    return json.dumps({key: value for key, value in event.items() if value is not None}).encode()
