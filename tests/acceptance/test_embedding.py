"""The loop as functions: in this very process, and over HTTP, with a real model that answers."""

import json
import re
import runpy
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.embedding import open_learner
from daemon.generation import NobodyAnswersError
from daemon.learner import BadEventError, EventIdReusedError, Learner, LearningTask
from daemon.settings import Settings
from learning.errors import NotFoundError
from tests.services.fake_chat import SURE, FakeChat, Logprobs, last_words
from tests.services.kafka import KafkaBroker
from tests.services.learnd import Learnd
from tests.services.loopback import on_loopback

GUIDE = Path(__file__).parents[2] / "docs" / "embedding.md"
BATCH = 3


def settings(folder: Path, **changed: Any) -> Settings:
    """A line with a base model, of which no training is launched."""
    told: dict[str, Any] = {
        "data_dir": folder / "data",
        "http": {"port": 0},
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "simulation_mode": True,
        "queue": {"batch_size": BATCH},
        "lines": {"coding": {"system_prompts": {"coding": "Be brief."}}},
    }
    return Settings(**told | changed)


@pytest.fixture
async def learner(tmp_path: Path) -> AsyncIterator[Learner]:
    async with open_learner(settings(tmp_path)) as opened:
        yield opened


async def test_the_output_that_fills_a_batch_has_its_run(learner: Learner) -> None:
    results = [
        await learner.process_output("coding", f"p{n}", f"x + {n}", approved=True, confidence=0.9)
        for n in range(BATCH)
    ]

    assert [one.processed for one in results] == [True] * BATCH
    assert [one.metrics.waiting for one in results] == [1, 2, 0]
    assert {one.metrics.batch_size for one in results} == {BATCH}
    assert [one.fine_tune_job_id is None for one in results] == [True, True, False]
    stats = await learner.get_stats()
    assert [run.id for run in stats.active.jobs] == [results[-1].fine_tune_job_id]
    assert stats.models["coding"] == "v1.0.0"


async def test_an_output_that_its_batchs_screening_stops_is_told_as_stopped(
    tmp_path: Path,
) -> None:
    told = settings(
        tmp_path, queue={"batch_size": 1}, screening={"banned_patterns": ["internal use"]}
    )
    async with open_learner(told) as learner:
        done = await learner.process_output("coding", "p", "for internal use", approved=True)

    assert (done.processed, done.fine_tune_job_id) == (False, None)
    assert done.learning_update.state == "quarantined"
    assert "banned_patterns" in done.learning_update.reason


async def test_what_nobody_judged_waits_until_feedback_approves_it(learner: Learner) -> None:
    held = await learner.process_output("coding", "p", "x + 1", confidence=0.9)
    assert (held.processed, held.learning_update.state) == (False, "held")
    assert held.learning_update.reason == "no verdict yet, and auto-approval is off"

    said = await learner.process_feedback("coding", held.task_id, approved=True, user_rating=5)

    assert said.state == "joined"
    assert (await learner.get_stats()).queue.by_type == {"coding": 1}


async def test_feedback_may_come_before_its_output(learner: Learner) -> None:
    said = await learner.process_feedback("coding", "later", approved=False)
    assert said.state == "waiting"

    rejected = await learner.process_output("coding", "p", "x", approved=True, task_id="later")

    # The verdict of its arrival; the feedback that waited has the last word.
    assert (await learner.get_stats()).queue.total == 0
    assert rejected.learning_update.state == "withdrawn"
    assert not rejected.processed


async def test_a_call_may_be_repeated_under_its_id_and_another_body_may_not(
    learner: Learner,
) -> None:
    first, again = [
        await learner.process_output("coding", "p", "x", approved=True, event_id="o-1")
        for _ in range(2)
    ]
    assert (first.id, first.task_id) == (again.id, again.task_id)
    assert again.metrics.waiting == 1

    with pytest.raises(EventIdReusedError, match="o-1"):
        await learner.process_output("coding", "p", "y", approved=True, event_id="o-1")
    assert (await learner.get_stats()).queue.total == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"confidence": 1.5}, "confidence"),
        ({"confidence": float("nan")}, "not_json"),
        ({"output": {"a": object()}}, "not_json"),
        ({"context": {"n": "\x00"}}, "nul"),
        ({"task_type": "unheard-of"}, "unknown_task_type"),
    ],
)
async def test_what_is_no_event_is_refused_and_not_stored(
    learner: Learner, changed: dict[str, Any], reason: str
) -> None:
    event: dict[str, Any] = {
        "task_type": "coding",
        "prompt": "p",
        "output": "x",
        "approved": True,
    }
    with pytest.raises(BadEventError) as refused:
        await learner.process_output(**event | changed)
    assert reason in str(refused.value)
    assert (await learner.get_stats()).queue.total == 0


async def test_a_learning_configuration_is_changed_under_its_short_name_and_undone(
    learner: Learner,
) -> None:
    before = await learner.process_output("coding", "p", "x", confidence=0.9)
    change = await learner.update_learning_config({"enable_auto_approval": True}, reason="a try")
    after = await learner.process_output("coding", "q", "x", confidence=0.9)

    assert [move.path for move in change.moves] == [("policy", "enable_auto_approval")]
    assert (before.processed, after.processed) == (False, True)
    assert after.learning_update.reason == "auto-approved, confidence 0.9 >= 0.7"
    with pytest.raises(NotFoundError, match="did you mean"):
        await learner.update_learning_config({"feedback_treshold": 0.8})


async def test_a_flush_says_what_it_sealed(learner: Learner) -> None:
    done = await learner.process_output("coding", "p", "x", approved=True)
    (flushed,) = await learner.force_flush_queue("coding")
    assert flushed.batch is not None
    again = await learner.process_output(
        "coding", "p", "x", approved=True, event_id=done.event_id, task_id=done.task_id
    )
    assert again.fine_tune_job_id == flushed.batch.run_id


@pytest.mark.parametrize("logprobs", [Logprobs.OFFERED, Logprobs.REFUSED])
async def test_a_service_answers_and_what_it_is_sure_of_is_learned(
    tmp_path: Path, logprobs: Logprobs
) -> None:
    chat = FakeChat({"gpt": 1.0}, lambda said: last_words(said).upper(), logprobs=logprobs)
    with on_loopback(chat.app()) as service:
        remote = {"llm_endpoint": service, "llm_model": "gpt"}
        auto = {"enable_auto_approval": True}
        async with open_learner(settings(tmp_path, remote=remote, policy=auto)) as learner:
            cycle = await learner.run_batch_learning_cycle(
                [
                    *(LearningTask("coding", f"say {n}") for n in range(BATCH)),
                    LearningTask("unheard-of", "?"),
                ]
            )

    assert [one.output for one in cycle.results] == ["SAY 0", "SAY 1", "SAY 2"]
    assert {one.model_version for one in cycle.results} == {"gpt"}
    assert chat.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [one.index for one in cycle.failed] == [BATCH]
    assert cycle.processed == BATCH
    if logprobs is Logprobs.OFFERED:
        assert cycle.avg_confidence == pytest.approx(SURE)
        assert (cycle.approved, len(cycle.fine_tune_jobs)) == (BATCH, 1)
    else:
        assert (cycle.avg_confidence, cycle.approved, cycle.fine_tune_jobs) == (None, 0, [])


async def test_without_a_model_a_task_says_what_to_set(tmp_path: Path) -> None:
    told = settings(tmp_path, finetune={"provider": "scripted"})
    async with open_learner(told) as learner:
        with pytest.raises(NobodyAnswersError, match=r"finetune\.base_model"):
            await learner.process_task("coding", "?")


async def test_the_guide_runs_as_it_stands(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny model of random weights; so the answers are nonsense, and everything is real."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    script = tmp_path / "guide.py"
    script.write_text(code)

    await runpy.run_path(str(script))["main"](tmp_path / "data", str(base_model))

    printed = capsys.readouterr().out.splitlines()
    said = [line for line in printed if not re.match(r"\d{4}-\d\d-\d\d ", line)]  # the log
    assert said[0] == "approved, confidence 0.93 >= 0.7"
    assert re.fullmatch(r"r-[0-9a-f]{12}", said[1])
    assert said[2:4] == ["late", "coding@1.0.0"]
    confidence, _, reason = said[4].partition(" ")
    assert 0 < float(confidence) <= 1
    assert reason == "no verdict yet, and auto-approval is off"
    processed, approved, *_ = said[5].split()
    assert (processed, approved) == ("2", "0")


def test_the_functions_over_http(tmp_path: Path) -> None:
    told = {
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {"coding": {}},
        "queue": {"batch_size": 1},
        "simulation_mode": True,
    }
    output = {"task_type": "coding", "prompt": "p", "output": {"x": 3}, "approved": True}
    with Learnd(tmp_path, told) as daemon:
        daemon.start()
        done = daemon.post("/v1/process/output", output)
        assert done.status_code == 200, done.text
        assert done.json()["processed"]
        assert done.json()["fine_tune_job_id"].startswith("r-")

        task_id = done.json()["task_id"]
        said = daemon.post(
            "/v1/process/feedback",
            {"task_type": "coding", "task_id": task_id, "approved": True, "user_rating": 5},
        )
        assert said.json()["state"] == "late"

        unknown = daemon.post("/v1/process/output", {**output, "task_type": "unheard-of"})
        assert unknown.status_code == 422
        assert "unknown_task_type" in unknown.json()["detail"]
        strange = daemon.post("/v1/process/output", {**output, "aproved": True})
        assert strange.status_code == 422
        assert daemon.stop().status == 0


def test_the_functions_and_a_stream_from_kafka_fill_the_same_batch(
    kafka_broker: KafkaBroker, topic_names: Callable[[str], str], tmp_path: Path
) -> None:
    outputs, feedback = topic_names("outputs"), topic_names("feedback")
    for topic in (outputs, feedback):
        kafka_broker.create_topic(topic)
    held = {"producer": "studio", "task_type": "coding", "output": "x", "confidence": 0.9}
    kafka_broker.produce(
        outputs,
        [
            json.dumps(
                {**held, "event_id": f"o-{n}", "task_id": f"t-{n}", "prompt": f"p{n}"}
            ).encode()
            for n in range(BATCH - 1)
        ],
    )
    told = {
        "kafka": {
            "bootstrap_servers": kafka_broker.bootstrap,
            "group_id": topic_names("learnd"),
            "outputs_topics": [outputs],
            "feedback_topics": [feedback],
        },
        "finetune": {"provider": "scripted", "base_model": "scripted-base"},
        "lines": {"coding": {}},
        "queue": {"batch_size": BATCH},
    }
    with Learnd(tmp_path, told) as daemon:
        daemon.start()
        daemon.wait_until(
            "the held outputs",
            lambda: len(daemon.get("/v1/events?state=held")["items"]) == BATCH - 1,
        )
        for n in range(BATCH - 1):
            said = {"task_type": "coding", "task_id": f"t-{n}", "approved": True}
            assert daemon.post("/v1/process/feedback", said).json()["state"] == "joined"
        last = {"task_type": "coding", "prompt": "last", "output": "x", "approved": True}
        done = daemon.post("/v1/process/output", last).json()

        run_id = done["fine_tune_job_id"]
        run = daemon.wait_until(
            "the end of its run",
            lambda: [one for one in daemon.get("/v1/runs")["items"] if one["state"] == "decided"],
        )
        assert [one["id"] for one in run] == [run_id]
        known = daemon.get("/v1/lineage/studio/o-0")["uses"]
        assert [one["run_id"] for one in known] == [run_id]
        assert daemon.stop().status == 0
