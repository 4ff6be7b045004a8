"""Approvals, rejections and corrections from Kafka, in a batch, a real training and a version.

One daemon with two lines: one learns from pairs (DPO), one from verdicts (KTO). The model is
tiny and the trainings are short: whether preferences are learned well is tested in
tests/unit/test_preferences.py, here what they are made of.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.audit import faults_of, require_none
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd

DPO, KTO = "coding", "audio"
GOOD, BAD = "seven", "eleven"
N_PROMPTS, N_CORRECTED = 24, 12
UNANSWERED = N_PROMPTS
"""The prompt whose only answer was approved, and then withdrawn by feedback."""
TRAINING = {
    "minibatch_size": 12,
    "gradient_accumulation": 1,
    "max_steps": 15,
    "learning_rate": 0.005,
    "lora_dropout": 0.0,
}
TRAINING_SECONDS = 120.0
"""The training libraries alone take ten seconds to load, on a machine with nothing else to do."""

Json = Mapping[str, Any]


@pytest.fixture
def daemon(
    base_model: Path,
    kafka_broker: KafkaBroker,
    topic_names: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Learnd]:
    """A daemon with all that was produced stored, and nothing sealed yet."""
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    kafka_broker.produce(outputs, [record for line in (DPO, KTO) for record in outputs_of(line)])
    kafka_broker.produce(feedback, [record for line in (DPO, KTO) for record in feedback_of(line)])
    settings = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
        },
        # The batches are flushed when everything is there.
        "queue": {"batch_size": 100, "max_queue_size": 100, "adaptive": False},
        "policy": {"learn_from_rejected": True},
        "finetune": {
            "provider": "local",
            "base_model": str(base_model),
            "training": {**TRAINING, "objective": "dpo"},
        },
        "lines": {DPO: {}, KTO: {"training": {"objective": "kto"}}},
    }
    with Learnd(tmp_path, settings) as daemon:
        daemon.start()
        judged = {"queued": N_PROMPTS, "rejected": N_CORRECTED, "withdrawn": 1}
        daemon.wait_until(
            "every verdict", lambda: all(states_of(daemon, line) == judged for line in (DPO, KTO))
        )
        yield daemon


@pytest.mark.timeout(300)
def test_rejections_and_corrections_become_a_version_that_tells_what_it_learned_from(
    daemon: Learnd,
) -> None:
    flushed = {one["line"]: one["batch"] for one in daemon.post("/v1/queue/flush", {}).json()}
    runs = {line: decided(daemon, flushed[line]["run_id"]) for line in (DPO, KTO)}
    by_pairs, by_verdicts = runs[DPO], runs[KTO]
    for line, run in runs.items():
        assert run["summary"]["version"].startswith("1.0.1"), run["summary"]["message"]
        assert run["measurements"]["final_loss"] < run["measurements"]["first_loss"]
        assert run["members"]["preference"] == flushed[line]["n_preference"] > 0

    pairs_are_those_whose_prompt_trains(daemon, by_pairs)
    verdicts_are_those_whose_prompt_does_not_judge(daemon, by_verdicts)
    lineage_tells_both_ways(daemon, by_pairs)
    report = json.loads(daemon.command("runs", "report", by_pairs["summary"]["id"], "--json"))
    assert report["settings"]["objective"] == "dpo"
    assert report["dataset"]["events of role preference"] == by_pairs["members"]["preference"]

    # All pairs are spent by now, or wait for an answer that may train.
    for n in range(4):
        record = json.loads(_output(DPO, 100 + n, GOOD, event=f"plain-{n}"))
        assert daemon.post("/v1/outputs", record).is_success
    sent = daemon.post("/v1/queue/flush", {"task_type": DPO})
    [plain] = [one["batch"] for one in sent.json() if one["batch"] is not None]
    run = decided(daemon, plain["run_id"])
    assert run["training"]["objective"] == "sft"
    assert "by sft, not dpo" in run["history"][0]["reason"]
    assert all("messages" in row for row in rows_of(daemon, run))

    assert daemon.stop().status == 0
    require_none(faults_of(daemon.data_dir), when="at the end")


def pairs_are_those_whose_prompt_trains(daemon: Learnd, run: Json) -> None:
    """DPO: the corrected prompts, as far as their corrections train; each once, beside them."""
    rows = rows_of(daemon, run)
    trained = {prompt_of(row) for row in rows if "messages" in row}
    pairs = [row for row in rows if "messages" not in row]
    assert sorted(row["prompt"][-1]["content"] for row in pairs) == sorted(
        trained & {_prompt(n) for n in range(N_CORRECTED)}
    )
    assert {(row["chosen"], row["rejected"]) for row in pairs} == {(GOOD, BAD)}
    assert {row["messages"][-1]["content"] for row in rows if "messages" in row} == {GOOD}
    assert not trained & held_out_prompts(daemon, run)
    assert run["training"]["objective"] == "dpo"
    assert run["measurements"]["rows"] == len(rows)
    metadata = metadata_of(daemon, run)
    assert len(metadata["sources"]["pairs"]) == len(pairs) == run["members"]["preference"]


def verdicts_are_those_whose_prompt_does_not_judge(daemon: Learnd, run: Json) -> None:
    """KTO: all rejected answers whose prompt is not held out, corrected or not."""
    rows = rows_of(daemon, run)
    bad = [row for row in rows if row["label"] is False]
    judging = held_out_prompts(daemon, run)
    rejected = {_prompt(n) for n in (*range(N_CORRECTED), UNANSWERED)} - judging
    # No more of them than of the others, the newest first.
    assert len(bad) == min(len(rejected), len(rows) - len(bad))
    assert {prompt_of(row) for row in bad} <= rejected
    assert {row["messages"][-1]["content"] for row in bad} <= {BAD, "nine"}
    assert {row["messages"][-1]["content"] for row in rows if row["label"]} == {GOOD}
    assert run["training"]["objective"] == "kto"


def lineage_tells_both_ways(daemon: Learnd, run: Json) -> None:
    version = f"{DPO}@{run['summary']['version']}"
    of_version = daemon.get(f"/v1/lineage/{version}?limit=500")
    roles = {one["event_id"]: one for one in of_version["events"]["items"]}
    rejected = {id: one for id, one in roles.items() if one["role"] == "preference"}
    assert len(rejected) == run["members"]["preference"]
    for event_id, one in rejected.items():
        better = event_id.replace("bad", "good")
        assert one["better"] == f"studio/{better}"
        assert roles[better]["role"] == "train"
    one = min(rejected)
    of_event = daemon.get(f"/v1/lineage/studio/{one}")
    assert [known["version"] for known in of_event["known_by"]] == [run["summary"]["version"]]
    told = daemon.command("lineage", f"studio/{one}")
    assert f"the better answer was studio/{one.replace('bad', 'good')}" in told
    correction = daemon.get(f"/v1/lineage/studio/{one.replace('bad', 'good')}")
    assert correction["uses"][0]["worse"] == [f"studio/{one}"]


# --- what is asked and sent -----------------------------------------------------------


def states_of(daemon: Learnd, line: str) -> Json:
    """How many outputs of a task type are in each state."""
    told = daemon.get("/v1/status")["outputs"].get(line, {"states": {}})
    return {state: n for state, n in told["states"].items() if n}


def decided(daemon: Learnd, run_id: str) -> Json:
    """A run, when the gate has spoken."""

    def over() -> bool:
        state = daemon.get(f"/v1/runs/{run_id}")["summary"]["state"]
        assert state not in ("failed", "waiting", "cancelled"), daemon.log_tail()
        return bool(state == "decided")

    daemon.wait_until("a decided run", over, seconds=TRAINING_SECONDS, poll_seconds=0.1)
    run: Json = daemon.get(f"/v1/runs/{run_id}")
    return run


def rows_of(daemon: Learnd, run: Json) -> Sequence[Json]:
    """What a run trained on, by its dataset file."""
    file = daemon.data_dir / "datasets" / run["summary"]["id"] / "train.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def metadata_of(daemon: Learnd, run: Json) -> Json:
    file = daemon.data_dir / "datasets" / run["summary"]["id"] / "metadata.json"
    found: Json = json.loads(file.read_text())
    return found


def held_out_prompts(daemon: Learnd, run: Json) -> set[str]:
    file = daemon.data_dir / "datasets" / run["summary"]["id"] / "validation.jsonl"
    found = {prompt_of(json.loads(line)) for line in file.read_text().splitlines()}
    assert found
    return found


def prompt_of(row: Json) -> str:
    prompt: str = row["messages"][-2]["content"]
    return prompt


def outputs_of(line: str) -> Sequence[bytes]:
    """Bad answers, half of them said to be bad, and a good one to each prompt."""
    half = N_CORRECTED // 2
    said_so = [_output(line, n, BAD, event=f"bad-{n}", approved=False) for n in range(half)]
    unjudged = [
        _output(line, n, BAD, event=f"bad-{n}", approved=None) for n in range(half, N_CORRECTED)
    ]
    good = [_output(line, n, GOOD, event=f"good-{n}") for n in range(N_PROMPTS)]
    return [*said_so, *unjudged, *good, _output(line, UNANSWERED, "nine", event="bad-24")]


def feedback_of(line: str) -> Sequence[bytes]:
    """A "no" to what nobody had judged, and to one that was approved."""
    names = [f"bad-{n}" for n in (*range(N_CORRECTED // 2, N_CORRECTED), UNANSWERED)]
    return [
        json.dumps(
            {
                "event_id": f"{line}-no-{name}",
                "producer": "audience",
                "task_type": line,
                "task_id": name,
                "approved": False,
            }
        ).encode()
        for name in names
    ]


def _output(
    line: str, number: int, answer: str, *, event: str, approved: bool | None = True
) -> bytes:
    told = {
        "event_id": f"{line}-{event}",
        "producer": "studio",
        "task_type": line,
        "task_id": event,
        "prompt": _prompt(number),
        "output": answer,
    }
    return json.dumps(told if approved is None else {**told, "approved": approved}).encode()


def _prompt(number: int) -> str:
    return f"which number is {number}?"
