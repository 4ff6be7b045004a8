"""`learnd simulate` from outside: on a record from Kafka, with no daemon, and on a file."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.exit_status import ExitStatus
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

HIGHER = "policy.min_confidence=0.9"
CONFIDENCES = [0.5] * 3 + [0.8] * 5 + [0.95] * 7
N = len(CONFIDENCES)
SETTINGS = {
    "queue": {"batch_size": 12, "max_queue_size": 50, "adaptive": False},
    "finetune": {"provider": "scripted", "base_model": "scripted-base"},
}


def output_of(number: int, confidence: float) -> dict[str, Any]:
    return {
        "event_id": f"e-{number}",
        "producer": "studio",
        "task_id": f"t-{number}",
        "task_type": "coding",
        "prompt": f"say {number}",
        "output": f"it is {number}",
        "approved": True,
        "confidence": confidence,
    }


def feedback_of(number: int, approved: bool) -> dict[str, Any]:
    return {
        "event_id": f"f-{number}",
        "producer": "audience",
        "task_id": f"t-{number}",
        "task_type": "coding",
        "approved": approved,
    }


def lines_of(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


def everything(file: Path) -> dict[str, list[Any]]:
    """All rows of all tables."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {
            name: database.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()  # noqa: S608
            for (name,) in tables.fetchall()
        }


def test_a_record_from_kafka_is_replayed_and_nothing_is_changed(
    kafka_broker: KafkaBroker, topic_names: Callable[[str], str], tmp_path: Path
) -> None:
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    kafka_broker.produce(outputs, lines_of(*map(output_of, range(N), CONFIDENCES)))
    # One that was held is approved by feedback; that counts whatever the bar is.
    kafka_broker.produce(feedback, lines_of(feedback_of(0, True)))
    kafka = {
        "bootstrap_servers": kafka_broker.bootstrap,
        "group_id": topic_names("learnd"),
        "outputs_topics": [outputs],
        "feedback_topics": [feedback],
    }
    with Learnd(tmp_path, {**SETTINGS, "kafka": kafka}) as learnd:
        learnd.start()

        def is_over() -> bool:
            rows = everything(learnd.database)
            decided = [run for run in learnd.get("/v1/runs")["items"] if run["finished_at"]]
            return bool(decided) and (len(rows["events"]), len(rows["feedback"])) == (N, 1)

        learnd.wait_until("every event and a run", is_over)
        before = everything(learnd.database)

        found = json.loads(
            learnd.command(
                "simulate", "--since", "1h", "--set", "policy.min_confidence=0.9", "--json"
            )
        )
        report = found["report"]
        assert report["control"]["reproduced"] == report["control"]["verdicts"] == N
        recorded, simulated = report["total"]["recorded"], report["total"]["simulated"]
        assert (recorded["accepted"], recorded["held"]) == (13, 2)
        assert (simulated["accepted"], simulated["held"]) == (8, 7)
        assert sum(recorded["batches"].values()) == 1
        assert (simulated["batches"], simulated["launched"]) == ({}, 0)
        assert report["changes"] == [{"recorded": "accepted", "simulated": "held", "events": 5}]
        assert found["settings"] == [
            {"key": "policy.min_confidence", "today": "0.7", "simulated": "0.9"}
        ]

        for body, status in (
            ({"settings": {"gate.margin": 0.1}}, 409),
            ({"settings": {"policy.min_confidnce": 1}}, 404),
            ({"settings": {"policy.min_confidence": 2}}, 422),
            ({"since": "yesterday"}, 422),
            ({"since": "1h", "until": "2h"}, 422),
            ({"line": "nowhere"}, 404),
            ({"until": "1h"}, 200),
        ):
            assert learnd.post("/v1/simulations", body).status_code == status, body
        sent = {"events": [output_of(1, 0.8), output_of(2, 0.95), {"junk": 1}]}
        tried = learnd.post("/v1/simulations", {**sent, "settings": {"policy.min_confidence": 0.9}})
        total = tried.json()["report"]["total"]
        assert (total["recorded"]["accepted"], total["simulated"]["accepted"]) == (2, 1)
        assert tried.json()["left_out"]["n_refused"] == 1
        assert everything(learnd.database) == before

        assert learnd.stop().status == 0
        digest = hashlib.sha256(learnd.database.read_bytes()).digest()
        changed_at = learnd.database.stat().st_mtime_ns
        page = tmp_path / "report.html"
        offline = learnd.command("simulate", "--offline", "--output", str(page))
        assert offline.splitlines()[0] == f"reproduces {N} of {N} verdicts"
        assert hashlib.sha256(learnd.database.read_bytes()).digest() == digest
        assert learnd.database.stat().st_mtime_ns == changed_at
        text = page.read_text()
        assert "<svg" in text
        assert "<script" not in text


def test_a_file_is_simulated_without_a_daemon_and_its_junk_is_named(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    good = lines_of(
        output_of(0, 0.8), output_of(1, 0.95), feedback_of(0, False), output_of(1, 0.95)
    )
    file.write_bytes(b"\n".join([*good, b"{", b"", b"junk", b"[1]"]))
    learnd = Learnd(tmp_path, SETTINGS)
    found = json.loads(
        learnd.command(
            "simulate", "--file", str(file), "--set", "policy.min_confidence=0.9", "--json"
        )
    )
    total = found["report"]["total"]
    assert (total["recorded"]["accepted"], total["recorded"]["withdrawn"]) == (1, 1)
    assert (total["simulated"]["accepted"], total["simulated"]["rejected"]) == (1, 1)
    assert found["left_out"]["duplicates"] == 1
    assert [line for line, _ in found["left_out"]["refused"]] == [5, 7, 8]

    file.write_bytes(b"\n".join(lines_of(feedback_of(3, True))))
    assert "nothing to simulate" in learnd.command("simulate", "--file", str(file))
    learnd.command("simulate", "--offline", status=ExitStatus.REFUSED)
    assert not learnd.data_dir.exists()
