"""Outputs from Kafka with broken code, a secret and an address: none of it gets into a dataset.

The same daemon then runs in simulation mode: everything happens up to the launch.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.audit import faults_of, require_none
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

N_CLEAN = 18
TOKEN = "ghp_" + "a8Kd93jfLq0ZmX71bVc5Rt2Yw6Ne4HuPo9Si"
EMAIL = "ann.lee@corp.de"
BROKEN = "def f(x:"
FENCE = "```"


def output(task_id: str, code: str) -> bytes:
    return json.dumps(
        {
            "producer": "editor",
            "event_id": task_id,
            "task_id": task_id,
            "task_type": "coding",
            "prompt": f"write the function {task_id}",
            "output": f"{FENCE}python\n{code}\n{FENCE}",
            "approved": True,
        }
    ).encode()


def outputs() -> list[bytes]:
    return [
        output("broken", BROKEN),
        output("secret", f"TOKEN = {TOKEN!r}"),
        output("mail", f"# by {EMAIL}\nx = 1"),
        *(output(f"f{n}", f"def f{n}(x):\n    return x + {n}") for n in range(N_CLEAN)),
    ]


@pytest.fixture
def settings(kafka_broker: KafkaBroker, topic_names: Callable[[str], str]) -> dict[str, Any]:
    """Of a daemon whose topic holds the outputs already."""
    topic, feedback = topic_names("outputs"), topic_names("feedback")
    for name in (topic, feedback):
        kafka_broker.create_topic(name)
    kafka_broker.produce(topic, outputs())
    return {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [topic],
            "feedback_topics": [feedback],
        },
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {"coding": {}},
        # One that is left over when two were stopped is flushed.
        "queue": {"batch_size": 19, "adaptive": False},
    }


def quarantined(daemon: Learnd) -> dict[str, str]:
    page = daemon.get("/v1/events?state=quarantined")
    return {one["task_id"]: one["reason"] for one in page["items"]}


def dataset(daemon: Learnd) -> str:
    """Every file of every dataset that the daemon has written."""
    files = sorted((daemon.data_dir / "datasets").rglob("*.jsonl"))
    return "\n".join(file.read_text() for file in files)


def test_what_is_broken_secret_or_personal_reaches_no_dataset(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with Learnd(tmp_path, settings) as daemon:
        daemon.start()
        daemon.wait_until(
            "a promoted version",
            lambda: daemon.get("/v1/models/coding/champion")["summary"]["version"] == "1.0.1",
        )
        stopped = quarantined(daemon)
        screened = {
            outcome: daemon.metric(f'learnd_screened_total{{outcome="{outcome}"}}')
            for outcome in ("stopped", "scrubbed")
        }
        log = daemon.log_tail(100_000)
        assert daemon.stop().status == 0
        require_none(faults_of(daemon.data_dir), when="at the end")
    assert stopped == {
        "broken": "syntax: python, line 2 of the answer: '(' was never closed",
        "secret": "secrets: GitHub Token in line 2 of the answer",
    }
    written = dataset(daemon)
    assert "return x + 7" in written
    assert "[EMAIL]" in written
    for never in (TOKEN, EMAIL, BROKEN):
        assert never not in written
        assert never not in log
    assert screened == {"stopped": 2, "scrubbed": 1}


def test_in_simulation_mode_everything_runs_up_to_the_launch(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with Learnd(tmp_path, {**settings, "simulation_mode": True}) as daemon:
        daemon.start()
        (run,) = daemon.wait_until(
            "a run that waits",
            lambda: [one for one in daemon.get("/v1/runs")["items"] if one["state"] == "waiting"],
        )
        stopped, champion = quarantined(daemon), daemon.get("/v1/models/coding/champion")
        assert daemon.stop().status == 0
    assert run["message"] == "simulation mode is on: no job is launched"
    assert stopped.keys() == {"broken", "secret"}
    assert champion["summary"]["version"] == "1.0.0"
    assert run["attempt"] == 0
