"""The loop with real weights: Kafka to a promoted adapter, through SIGKILL and SIGTERM.

The model is tiny and random, and the task as easy as can be: one answer to everything.
What is tested is that the training is real, is interrupted, goes on, and is proven.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.acceptance.audit import Books, faults_of, require_none
from tests.services.kafka import KafkaBroker
from tests.services.learnd import STOP_SECONDS, Learnd
from tests.waiting import wait_until

LINE = "coding"
ANSWER = "seven"
BATCH_SIZE = 48
TRAINING = {"minibatch_size": 12, "gradient_accumulation": 1, "learning_rate": 0.005}
"""After 120 such steps the answer to each of these prompts is right, whatever the seed."""
TRAINING_SECONDS = 120.0
"""The training libraries alone take ten seconds to load, on a machine with nothing else to do."""


@pytest.fixture
def install(
    base_model: Path,
    kafka_broker: KafkaBroker,
    topic_names: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Callable[[Mapping[str, Any]], Learnd]]:
    """`install(training)` is a daemon with one full batch waiting for it in Kafka."""
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    kafka_broker.produce(outputs, [_output(number) for number in range(BATCH_SIZE)])
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
        },
        "queue": {"batch_size": BATCH_SIZE},
        "lines": {LINE: {}},
    }
    with contextlib.ExitStack() as stack:

        def install(training: Mapping[str, Any]) -> Learnd:
            finetune = {"provider": "local", "base_model": str(base_model), "training": training}
            return stack.enter_context(Learnd(tmp_path, {**settings, "finetune": dict(finetune)}))

        yield install


@pytest.mark.timeout(300)
def test_events_become_a_promoted_adapter_and_one_command_takes_it_back(
    install: Callable[[Mapping[str, Any]], Learnd],
) -> None:
    daemon = install({**TRAINING, "max_steps": 120})
    daemon.start()
    run = wait_for_decision(daemon)
    assert run["summary"]["version"] == "1.0.1", run["summary"]["message"]
    measured = run["measurements"]
    assert measured["steps"] == 120
    assert measured["final_loss"] < 0.7 * measured["first_loss"]

    report = json.loads(daemon.command("runs", "report", run["summary"]["id"], "--json"))
    assert report["curve"]["steps"] == list(range(1, 121))
    assert report["curve"]["loss"][-1] == pytest.approx(measured["final_loss"])
    assert report["evaluation"]["verdict"] == "promote"

    champion = daemon.get(f"/v1/models/{LINE}/champion")
    with safe_open(
        Path(champion["loading"]["adapter"], "adapter_model.safetensors"), framework="numpy"
    ) as weights:
        assert all("lora" in name for name in weights.keys())  # noqa: SIM118 - it is no mapping

    answered = daemon.command("chat", LINE, "-p", "which number is 7?", "--max-new-tokens", "8")
    assert answered.strip() == ANSWER

    of_event = json.loads(daemon.command("lineage", "studio/e-0", "--json"))
    of_version = json.loads(daemon.command("lineage", f"{LINE}@1.0.1", "--json", "--limit", "500"))
    trained = {one["event_id"] for one in of_version["events"]["items"]}
    assert len(trained) == of_version["n_events"] == run["members"]["train"]
    is_known = [(one["version"], one["directly"]) for one in of_event["known_by"]]
    assert is_known == ([("1.0.1", True)] if "e-0" in trained else [])
    assert ("e-0" in trained) != of_event["held_out"]

    told = json.loads(daemon.command("rollback", LINE, "--reason", "a test", "--json"))
    assert (told["version"], told["left"]) == ("1.0.0", "1.0.1")
    assert daemon.get("/v1/stats")["models"][LINE] == "v1.0.0"
    assert daemon.stop().status == 0
    require_none(faults_of(daemon.data_dir), when="at the end")


@pytest.mark.timeout(300)
def test_a_training_goes_on_after_sigkill_and_after_sigterm(
    install: Callable[[Mapping[str, Any]], Learnd],
) -> None:
    daemon = install({**TRAINING, "max_steps": 200, "checkpoint_every_steps": 5})
    books = Books(daemon.data_dir)

    daemon.start()
    killed_at = wait_for_checkpoint(daemon, after=0)
    trainer = trainer_of(daemon)
    daemon.kill()
    wait_until("the end of the trainer", lambda: not is_alive(trainer))

    daemon.start()
    stopped_at = wait_for_checkpoint(daemon, after=killed_at)
    trainer = trainer_of(daemon)
    stopped = daemon.stop()
    assert stopped.status == 0
    assert stopped.seconds < STOP_SECONDS
    assert not is_alive(trainer)
    require_none(faults_of(daemon.data_dir), when="after SIGTERM")

    daemon.start()
    run = wait_for_decision(daemon)
    assert run["summary"]["version"] == "1.0.1", run["summary"]["message"]
    assert run["measurements"]["resumed_from_step"] >= stopped_at
    assert run["measurements"]["steps"] == 200
    assert [one["result"] for one in run["attempts"]] == ["interrupted", "interrupted", "succeeded"]
    assert run["summary"]["failures"] == 0
    assert daemon.stop().status == 0
    require_none(faults_of(daemon.data_dir), when="at the end")
    assert books.number("select count(*) from runs") == 1
    assert books.number("select count(*) from versions where run_id is not null") == 1


def wait_for_decision(daemon: Learnd) -> Any:
    """The only run, when it is decided."""

    def decided() -> Any:
        runs = daemon.get("/v1/runs")["items"]
        failed = [run for run in runs if run["state"] in ("failed", "waiting")]
        assert not failed, failed
        return [run for run in runs if run["state"] == "decided"]

    [run] = daemon.wait_until("a decided run", decided, seconds=TRAINING_SECONDS, poll_seconds=0.1)
    return daemon.get(f"/v1/runs/{run['id']}")


def wait_for_checkpoint(daemon: Learnd, *, after: int) -> int:
    """The step of the newest checkpoint, when it is a later one."""

    def newest() -> int:
        steps = [
            int(folder.name.removeprefix("step-"))
            for folder in (daemon.data_dir / "runs").glob("*/checkpoint/step-*")
        ]
        return max((step for step in steps if step > after), default=0)

    return daemon.wait_until("a checkpoint", newest, seconds=TRAINING_SECONDS)


def trainer_of(daemon: Learnd) -> int:
    """The process id of the trainer that the daemon started last."""
    started = re.findall(r'^.*"trainer started".*$', daemon.log_tail(10_000), re.MULTILINE)
    return int(json.loads(started[-1])["pid"])


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path("/proc", str(pid), "stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def _output(number: int) -> bytes:
    event = {
        "event_id": f"e-{number}",
        "producer": "studio",
        "task_type": LINE,
        "task_id": f"t-{number}",
        "prompt": f"which number is {number}?",
        "output": ANSWER,
        "approved": True,
    }
    return json.dumps(event).encode()
