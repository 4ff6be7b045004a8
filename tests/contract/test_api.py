"""The HTTP API on the real application and a real database; only the operations are scripted."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from consumers.pressure import Pressure
from daemon.api.app import LONGEST_BODY_BYTES, OPEN_PATHS, create_app
from daemon.api.ports import ForgetOrder
from daemon.probes import DaemonMetrics, DaemonProbes
from daemon.recent_facts import RecentFacts
from daemon.store.database import Database
from daemon.store.releases import Which
from daemon.store.views import Views
from learning.errors import ConflictError, IllegalMoveError, NotFoundError
from learning.facts import EventsExpired, Promoted
from learning.firewall import Rule
from learning.lines import ModelLine, ModelLines
from learning.ports import StoreUnavailableError
from monitoring.metrics import Metrics
from tests.http_intake import http_source
from tests.rows import START, Generations, Past
from tests.scripted_operations import ScriptedOperations
from tests.settings_desk import settings_desk

LINES = ModelLines([ModelLine("audio", frozenset({"audio"}), "models/tiny", "scripted")])
TOKEN = "a-token-of-the-tests"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


class Source:
    """A consumer that is as the test says."""

    trouble = ""
    stuck: Mapping[tuple[str, int], int] = {}

    def lag(self) -> Mapping[tuple[str, int], int]:
        return {("learnd.outputs", 0): 12}


@pytest.fixture
async def made(database: Database) -> Generations:
    return await database.write(lambda tx: Generations(Past(tx)))


@pytest.fixture
def operations() -> ScriptedOperations:
    return ScriptedOperations()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def probes(views: Views, source: Source) -> DaemonProbes:
    return DaemonProbes(views.overview, source, Pressure(time.monotonic), lambda: START)


@pytest.fixture
def views(database: Database, tmp_path: Path) -> Views:
    return Views.of(
        database,
        lines=LINES,
        artifacts_dir=tmp_path / "artifacts",
        wanted_held_out=lambda: 32,
        clock=lambda: START,
    )


@pytest.fixture
def facts() -> RecentFacts:
    return RecentFacts(lambda: START)


@pytest.fixture
def app(
    database: Database,
    views: Views,
    operations: ScriptedOperations,
    source: Source,
    probes: DaemonProbes,
    facts: RecentFacts,
) -> FastAPI:
    return create_app(
        views=views,
        operations=operations,
        forgetter=operations,
        settings=settings_desk(database, lambda: START),
        http_source=http_source(database, LINES, lambda: START),
        health=probes,
        metrics=DaemonMetrics(Metrics(), views.overview, source, probes),
        facts=facts,
        token=TOKEN,
    )


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://learnd", headers=WITH_TOKEN
    ) as opened:
        yield opened


def problem_of(answer: httpx.Response, status: int) -> str:
    """The detail of a problem document of that status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert document["type"] == "about:blank"
    assert document["title"]
    return str(document["detail"])


# --- the token ------------------------------------------------------------------------


async def test_every_address_but_the_open_ones_refuses_without_the_token(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    asked = 0
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            address = path.format(
                row_id=1,
                run_id="r-1",
                letter_id=1,
                line="audio",
                version="1.0.0",
                text="1",
                node="alpha",
                task_type="audio",
            )
            answer = await client.request(method, address, headers={"Authorization": ""})
            asked += 1
            if path in OPEN_PATHS:
                assert answer.status_code != 401, path
            else:
                assert "Authorization: Bearer" in problem_of(answer, 401), path
                assert answer.headers["www-authenticate"].startswith("Bearer"), path
    assert asked >= 20


@pytest.mark.parametrize(
    "header",
    [
        "Bearer wrong",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer",
        "Bearer \xe9",
        TOKEN,
    ],
)
async def test_another_token_is_no_token(client: httpx.AsyncClient, header: str) -> None:
    answer = await client.get("/v1/stats", headers=[(b"authorization", header.encode("latin-1"))])
    # The client's own header is sent too where httpx does not replace it.
    assert answer.request.headers.get_list("authorization") == [header]
    problem_of(answer, 401)


async def test_an_address_that_does_not_exist_is_told_only_with_the_token(
    client: httpx.AsyncClient,
) -> None:
    problem_of(await client.get("/v1/nothing", headers={"Authorization": ""}), 401)
    assert "/v1/nothing" in problem_of(await client.get("/v1/nothing"), 404)
    problem_of(await client.get("/docs"), 404)


async def test_the_description_of_the_api_needs_the_token(client: httpx.AsyncClient) -> None:
    problem_of(await client.get("/openapi.json", headers={"Authorization": ""}), 401)
    described = (await client.get("/openapi.json")).json()
    assert "/v1/queue/flush" in described["paths"]


async def test_answers_carry_careful_headers(client: httpx.AsyncClient) -> None:
    for path in ("/livez", "/v1/stats", "/v1/nothing"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("address", ["/v1/models/a%00b/champion", "/v1/runs?before=%00"])
async def test_an_address_with_a_null_character_is_refused(
    client: httpx.AsyncClient, address: str
) -> None:
    assert "U+0000" in problem_of(await client.get(address), 400)


# --- probes ---------------------------------------------------------------------------


async def test_probes_say_what_they_found(
    client: httpx.AsyncClient, source: Source, probes: DaemonProbes
) -> None:
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).json()["checks"]["store"] == "ok"
    source.trouble = "the broker has not answered for 20 s"
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "broker" in answer.json()["checks"]["consumer"]
    assert (await client.get("/livez")).status_code == 200
    source.trouble = ""
    probes.drain()
    assert "stopping" in (await client.get("/readyz")).json()["checks"]["running"]


async def test_a_store_that_is_away_is_not_ready_and_not_dead(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_query: Any) -> None:
        raise StoreUnavailableError("the database did not answer: locked")

    monkeypatch.setattr(database, "read", away)
    assert (await client.get("/livez")).status_code == 200
    assert "locked" in (await client.get("/readyz")).json()["checks"]["store"]
    health = (await client.get("/healthz")).json()
    assert not health["healthy"]
    assert health["checks"]["store"]["detail"].endswith("locked")
    assert "learnd_ready 0.0" in (await client.get("/metrics")).text
    answer = await client.get("/v1/status")
    problem_of(answer, 503)
    assert int(answer.headers["retry-after"]) > 0


async def test_health_has_the_shape_of_op2(
    client: httpx.AsyncClient, made: Generations, source: Source
) -> None:
    source.stuck = {("learnd.outputs", 2): 17}
    health = (await client.get("/healthz")).json()
    assert set(health) == {"healthy", "metrics", "finetune", "timestamp", "checks"}
    assert health["metrics"]["success_rate"] is None
    assert (health["metrics"]["approved"], health["metrics"]["needed"]) == (6, 20)
    assert health["finetune"]["success_rate"] == 1.0
    assert not health["healthy"]
    assert "learnd.outputs[2] at offset 17" in health["checks"]["partitions"]["detail"]


async def test_the_metrics_page_is_read_from_the_store(
    client: httpx.AsyncClient, made: Generations
) -> None:
    answer = await client.get("/metrics", headers={"Authorization": ""})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["learnd_champion_info", ("1.0.3", "audio")] == 1
    assert samples["learnd_held_out_loss", ("1.0.3", "audio")] == 0.4
    assert samples["learnd_held_out_loss", ("1.0.2", "audio")] == 0.8
    assert samples["learnd_consumer_lag_records", ("0", "learnd.outputs")] == 12
    assert samples["learnd_runs", ("decided",)] == 4


# --- reading --------------------------------------------------------------------------


async def test_statistics_have_the_shape_of_qb1(
    client: httpx.AsyncClient, made: Generations
) -> None:
    stats = (await client.get("/v1/stats")).json()
    of_qb1 = {name: stats[name] for name in ("queue", "active", "completed", "models")}
    assert set(stats["queue"]) == {"total", "by_type"}
    assert set(stats["active"]) == {"total", "jobs"}
    assert set(stats["completed"]) == {"total", "success_rate", "jobs"}
    assert stats["models"] == {"audio": "v1.0.3"}
    assert (await client.get("/v1/status")).json()["stats"] == of_qb1


async def test_statistics_have_the_shape_of_lp7(
    client: httpx.AsyncClient, made: Generations
) -> None:
    stats = (await client.get("/v1/stats", params={"window": "7d"})).json()
    learned = stats["learning"]
    assert (learned["outputs"], learned["approved"], learned["rejected"]) == (6, 6, 0)
    assert (learned["finetune_jobs"], learned["success_rate"]) == (4, None)
    assert learned["avg_confidence"] == pytest.approx(0.9)
    assert learned["by_task_type"]["audio"]["outputs"] == 6
    assert learned["last_updated"].startswith("2026-05-04T12:")
    told = stats["feedback"]
    assert set(told) == {"total", "recent", "avg_rating", "common_issues", "improvement_trends"}
    assert {one["direction"] for one in told["improvement_trends"]} == {"too little data"}
    assert stats["recommendations"] == []


async def test_statistics_are_told_of_one_task_type_that_is_known(
    client: httpx.AsyncClient, made: Generations, database: Database
) -> None:
    await database.write(lambda tx: Past(tx).event(task_type="coding"))
    stats = (await client.get("/v1/stats", params={"task_type": "coding"})).json()
    assert (stats["learning"]["outputs"], [*stats["learning"]["by_task_type"]]) == (1, ["coding"])
    assert "`learnd stats`" in problem_of(
        await client.get("/v1/stats", params={"task_type": "poems"}), 404
    )


@pytest.mark.parametrize("window", ["0h", "1w", "h", "181d", "-1d", ""])
async def test_a_window_is_some_hours_or_days(client: httpx.AsyncClient, window: str) -> None:
    problem_of(await client.get("/v1/stats", params={"window": window}), 422)


async def test_lists_come_in_pages(client: httpx.AsyncClient, made: Generations) -> None:
    for path in ("/v1/events", "/v1/runs", "/v1/models/audio/versions"):
        first = (await client.get(path, params={"limit": 2})).json()
        assert len(first["items"]) == 2
        second = (await client.get(path, params={"limit": 2, "before": first["next"]})).json()
        known = {json.dumps(item) for item in first["items"]}
        assert known.isdisjoint(json.dumps(item) for item in second["items"])


async def test_things_are_shown_one_by_one(
    client: httpx.AsyncClient, made: Generations, database: Database
) -> None:
    letter = await database.write(lambda tx: Past(tx).dead_letter(raw=b"\xff"))
    event = (await client.get(f"/v1/events/{made.old}")).json()
    assert event["summary"]["id"] == made.old
    assert event["payload"]["prompt"] == "say it"
    run = (await client.get(f"/v1/runs/{made.runs[0]}")).json()
    assert run["summary"]["version"] == "1.0.1"
    shown = (await client.get(f"/v1/dead-letters/{letter}")).json()
    assert shown["text"] == "\ufffd"
    (line,) = (await client.get("/v1/models")).json()
    assert line["champion"] == "1.0.3"


async def test_a_version_tells_where_it_lies(
    client: httpx.AsyncClient, made: Generations, tmp_path: Path
) -> None:
    champion = (await client.get("/v1/models/audio/champion")).json()
    served = {name: champion.pop(name) for name in ("predecessor", "canary_share")}
    assert served == {"predecessor": "1.0.2", "canary_share": 0.2}
    assert champion == (await client.get("/v1/models/audio/versions/v1.0.3")).json()
    assert champion["loading"]["base_model"] == "models/tiny"
    assert champion["loading"]["artifact_dir"].startswith(str(tmp_path / "artifacts"))
    moves = (await client.get("/v1/models/audio/champion/history")).json()
    assert moves[0]["after"] == "1.0.3"


@pytest.mark.parametrize(
    ("text", "kind"),
    [("1", "event"), ("studio/e-3", "event"), ("audio@champion", "version")],
)
async def test_lineage_takes_every_kind_of_id(
    client: httpx.AsyncClient, made: Generations, text: str, kind: str
) -> None:
    assert (await client.get(f"/v1/lineage/{text}")).json()["kind"] == kind


async def test_an_event_is_explained_by_either_of_its_names(
    client: httpx.AsyncClient, made: Generations
) -> None:
    found = (await client.get("/v1/explanations/studio/e-3")).json()
    event = found["lineage"]["event"]
    assert event["event_id"] == "e-3"
    assert found == (await client.get(f"/v1/explanations/{event['id']}")).json()


async def test_lineage_of_a_batch_and_of_its_run_is_one(
    client: httpx.AsyncClient, made: Generations
) -> None:
    by_batch = (await client.get(f"/v1/lineage/{made.batches[0]}")).json()
    assert by_batch["kind"] == "batch"
    assert by_batch == (await client.get(f"/v1/lineage/{made.runs[0]}")).json()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/events/77", "learnd events list"),
        ("/v1/runs/r-77", "learnd runs"),
        ("/v1/runs?before=r-77", "learnd runs"),
        ("/v1/dead-letters/77", "learnd dead-letters list"),
        ("/v1/models/game/versions", "learnd versions"),
        ("/v1/models/audio/versions/9.9.9", "learnd versions audio"),
        ("/v1/lineage/what", "LINE@VERSION"),
        ("/v1/explanations/what", "PRODUCER/EVENT_ID"),
    ],
)
async def test_what_is_not_there_is_answered_with_how_to_find_what_is(
    client: httpx.AsyncClient, made: Generations, path: str, said: str
) -> None:
    assert said in problem_of(await client.get(path), 404)


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/v1/events?limit=0", "limit"),
        ("/v1/events?limit=501", "limit"),
        ("/v1/events?stat=held", "stat"),
        ("/v1/events?state=hold", "state"),
        ("/v1/events/0", "row_id"),
        ("/v1/events/99999999999999999999", "row_id"),
        ("/v1/events/x", "row_id"),
        ("/v1/runs?state=done", "state"),
        ("/v1/models/audio/versions/one", "semantic version"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_name(
    client: httpx.AsyncClient, made: Generations, path: str, where: str
) -> None:
    assert where in problem_of(await client.get(path), 422)


# --- doing ----------------------------------------------------------------------------


async def test_what_feedback_has_changed_is_listed_shown_and_taken_back(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    (listed,) = (await client.get("/v1/feedback/loop")).json()
    assert listed == (await client.get("/v1/feedback/loop/audio")).json()
    assert (listed["min_confidence"], listed["trust"], listed["weight"]) == (0.7, 0.5, 1.0)
    problem_of(await client.get("/v1/feedback/loop/nowhere"), 404)
    assert (await client.get("/v1/feedback/effects")).json() == {"items": [], "next": None}
    problem_of(await client.get("/v1/feedback/effects/7"), 404)

    answer = await client.post("/v1/feedback/reset", json={"task_type": "audio", "reason": "spam"})
    assert answer.json()["dials"] == 2
    assert operations.asked == [("reset_feedback", "audio", "spam", "api")]


async def test_batch_sizes_are_listed_shown_and_set(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    listed = (await client.get("/v1/queue/batch-sizes")).json()
    assert [(one["line"], one["size"], one["cause"]) for one in listed] == [
        ("audio", 20, "configured")
    ]
    shown = (await client.get("/v1/queue/batch-sizes/audio")).json()
    assert (shown["current"]["pinned"], shown["rules"]["most"], shown["history"]) == (
        False,
        100,
        [],
    )
    problem_of(await client.get("/v1/queue/batch-sizes/nowhere"), 404)

    answer = await client.post("/v1/queue/batch-sizes/audio", json={"size": 8, "reason": "fewer"})
    assert answer.json()["after"] == 8
    await client.post("/v1/queue/batch-sizes/audio", json={"size": None})
    assert operations.asked == [
        ("set_batch_size", "audio", 8, "fewer", "api"),
        ("set_batch_size", "audio", None, "", "api"),
    ]


async def test_the_last_facts_are_told_newest_first(
    client: httpx.AsyncClient, facts: RecentFacts
) -> None:
    facts(EventsExpired(3))
    facts(Promoted("audio", "1.0.4", "1.0.3", forced=False, actor="runner"))

    assert (await client.get("/v1/facts")).json() == [
        {
            "at": START.isoformat().replace("+00:00", "Z"),
            "kind": "Promoted",
            "text": "audio: 1.0.4 promoted by runner, it replaces 1.0.3",
        },
        {
            "at": START.isoformat().replace("+00:00", "Z"),
            "kind": "EventsExpired",
            "text": "3 held events expired without a verdict",
        },
    ]


async def test_a_flush_says_what_it_did_line_by_line(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    answer = await client.post("/v1/queue/flush", json={"task_type": "audio"})
    assert answer.json()[0]["batch"]["batch_id"] == "b-1"
    assert answer.json()[1] == {"line": "game", "batch": None, "reason": "nothing is waiting"}
    await client.post("/v1/queue/flush", json={})
    assert operations.asked == [("flush", "audio", "api"), ("flush", None, "api")]


async def test_operations_are_asked_as_they_were_told(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    for path, body in (
        ("/v1/models/audio/promote", {"version": "v1.0.4", "force": True, "reason": " tested "}),
        ("/v1/models/audio/rollback", {}),
        ("/v1/models/audio/rollback", {"to": "1.0.1", "reason": "worse"}),
        ("/v1/events/5/verdict", {"approved": False, "reason": "rude"}),
        (
            "/v1/firewall/release",
            {"producer": "web", "rule": "repeat", "most": 7, "reason": "ours"},
        ),
        ("/v1/nodes/alpha/gone", {"reason": "its disk burnt"}),
    ):
        answer = await client.post(path, json=body, headers={"X-Actor": "cli:me"})
        assert answer.status_code == 200, answer.text
    assert operations.asked == [
        ("promote", "audio", "v1.0.4", True, "tested", "cli:me"),
        ("rollback", "audio", None, "", "cli:me"),
        ("rollback", "audio", "1.0.1", "worse", "cli:me"),
        ("judge", 5, False, "rude", "cli:me"),
        ("release", Which("web", Rule.REPEAT), 7, "ours", "cli:me"),
        ("give_up_node", "alpha", "its disk burnt", "cli:me"),
    ]


async def test_what_is_to_be_forgotten_is_passed_on(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    body = {"producer": "mole", "reason": "it left", "retrain": True, "dry_run": True}
    answer = await client.post("/v1/forget", json=body, headers={"X-Actor": "cli:me"})
    assert answer.json()["counts"]["outputs"] == 12
    order = ForgetOrder(producer="mole", reason="it left", retrain=True, dry_run=True)
    assert operations.asked == [("forget", order, "cli:me")]


@pytest.mark.parametrize("body", [{}, {"producer": "mole", "event": "1"}, {"producer": "a b"}])
async def test_one_thing_at_a_time_is_forgotten(
    client: httpx.AsyncClient, operations: ScriptedOperations, body: dict[str, str]
) -> None:
    assert (await client.post("/v1/forget", json=body)).status_code == 422
    assert operations.asked == []


async def test_the_name_of_an_actor_is_cut_to_what_a_history_can_hold(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    await client.post("/v1/queue/flush", json={}, headers={"X-Actor": "a <b>" + "x" * 99})
    assert operations.asked == [("flush", None, ("a__b_" + "x" * 99)[:64])]


async def test_a_replay_says_what_became_of_the_letter(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/dead-letters/3/replay")
    assert answer.json()["outputs"] == {"audio queued": 1}


async def test_held_out_rows_are_passed_as_they_came(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    rows = b'{"prompt": "a"}\n{"prompt": "\xff"}\n'
    answer = await client.post("/v1/held-out", params={"task_type": "audio"}, content=rows)
    assert answer.json() == {
        "added": 2,
        "duplicates": 1,
        "refused": [[2, "its prompt has trained already"]],
    }
    assert operations.asked == [("import_held_out", rows, "audio", "api")]


async def test_a_dataset_file_is_passed_as_it_came(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    rows = b'{"prompt": "a"}\n\xff'
    query = {"line": "audio", "file": "a b.jsonl", "approved": "true"}
    answer = await client.post("/v1/imports", params=query, content=rows)
    assert answer.json()["batch"]["n_held_out"] == 26
    assert answer.json()["refused"] == [[4, "empty_text: no word"]]
    assert operations.asked == [("import_dataset", rows, "audio", None, "a b.jsonl", True, "api")]
    assert (await client.post("/v1/imports", params={"lin": "x"})).status_code == 422


async def test_a_run_is_cancelled_in_the_name_of_who_asks(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    answer = await client.post(
        "/v1/runs/r-1/cancel", json={"reason": " wrong data "}, headers={"X-Actor": "ann"}
    )
    assert answer.json() == {
        "line": "audio",
        "run_id": "r-1",
        "cancelled": False,
        "actor": "ann",
        "reason": "wrong data",
    }
    assert operations.asked == [("cancel_run", "r-1", "wrong data", "ann")]


@pytest.mark.parametrize("job_id", ["ftjob-7", None])
async def test_what_became_of_a_launch_is_passed_on(
    client: httpx.AsyncClient, operations: ScriptedOperations, job_id: str | None
) -> None:
    answer = await client.post("/v1/runs/r-1/resolve", json={"job_id": job_id})
    assert answer.json()["job_id"] == job_id
    assert operations.asked == [("resolve_run", "r-1", job_id, "api")]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFoundError("no such line"), 404),
        (ConflictError("the gate did not promote it"), 409),
        (IllegalMoveError("version", "refused", "superseded"), 409),
        (StoreUnavailableError("the database did not answer"), 503),
    ],
)
async def test_an_operation_that_is_refused_is_a_problem_with_its_own_words(
    client: httpx.AsyncClient, operations: ScriptedOperations, error: Exception, status: int
) -> None:
    operations.error = error
    answer = await client.post("/v1/models/audio/promote", json={"version": "1.0.4"})
    assert problem_of(answer, status) == str(error)
    assert ("retry-after" in answer.headers) == (status == 503)


async def test_a_defect_is_a_problem_that_tells_nothing_of_the_inside(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    operations.error = RuntimeError("hunter2")
    answer = await client.post("/v1/queue/flush", json={})
    assert "log" in problem_of(answer, 500)
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/queue/flush", {"tasktype": "audio"}, "tasktype"),
        ("/v1/queue/flush", {"task_type": "a b"}, "task_type"),
        ("/v1/queue/flush", [], "body"),
        ("/v1/queue/batch-sizes/audio", {}, "size"),
        ("/v1/queue/batch-sizes/audio", {"size": 0}, "size"),
        ("/v1/queue/batch-sizes/audio", {"size": "8"}, "size"),
        ("/v1/feedback/reset", {}, "task_type"),
        ("/v1/events/1/verdict", {}, "approved"),
        ("/v1/events/1/verdict", {"approved": "yes"}, "approved"),
        ("/v1/events/1/verdict", {"approved": 1}, "approved"),
        ("/v1/firewall/release", {}, "producer or a rule"),
        ("/v1/firewall/release", {"rule": "nonsense"}, "rule"),
        ("/v1/firewall/release", {"producer": "web", "most": 501}, "most"),
        ("/v1/runs/r-1/cancel", {"why": "x"}, "why"),
        ("/v1/runs/r-1/resolve", {}, "job_id"),
        ("/v1/runs/r-1/resolve", {"job_id": " "}, "job_id"),
        ("/v1/models/audio/promote", {}, "version"),
        ("/v1/models/audio/promote", {"version": "1.0.1", "force": True}, "needs a reason"),
        ("/v1/models/audio/rollback", {"to": ""}, "to"),
        ("/v1/held-out", {}, "task_type"),
    ],
)
async def test_a_request_that_is_not_understood_does_nothing(
    client: httpx.AsyncClient,
    operations: ScriptedOperations,
    path: str,
    body: Any,
    where: str,
) -> None:
    assert where in problem_of(await client.post(path, json=body), 422)
    assert operations.asked == []


async def test_a_body_that_is_not_json_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/v1/queue/flush", content=b"{", headers=headers)
    problem_of(answer, 422)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_long_body_is_refused_whether_it_says_so_or_not(
    client: httpx.AsyncClient, operations: ScriptedOperations, declared: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(LONGEST_BODY_BYTES // 65_536 + 1):
            yield b" " * 65_536

    content = b" " * (LONGEST_BODY_BYTES + 1) if declared else pieces()
    answer = await client.post(
        "/v1/queue/flush", content=content, headers={"Content-Type": "application/json"}
    )
    assert str(LONGEST_BODY_BYTES) in problem_of(answer, 413)
    assert operations.asked == []


async def test_an_import_may_be_longer_than_other_bodies(
    client: httpx.AsyncClient, operations: ScriptedOperations
) -> None:
    rows = b"x" * (LONGEST_BODY_BYTES + 1)
    answer = await client.post("/v1/held-out", params={"task_type": "audio"}, content=rows)
    assert answer.status_code == 200
    assert operations.asked[0][1] == rows


async def test_another_method_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/v1/events/1")
    problem_of(answer, 405)
    assert "GET" in answer.headers["allow"]


# --- firewall --------------------------------------------------------------------------


async def test_an_untouched_firewall_says_that_it_stopped_nothing(
    client: httpx.AsyncClient,
) -> None:
    told = (await client.get("/v1/firewall")).json()
    assert (told["groups"], told["ever"], told["is_cut"]) == ([], {}, False)


# --- costs ----------------------------------------------------------------------------


async def test_costs_are_told_as_texts_and_by_known_accounts_only(
    client: httpx.AsyncClient,
) -> None:
    told = (await client.get("/v1/costs")).json()
    assert (told["currency"], told["periods"][0]["committed"]) == ("USD", "0")
    assert (await client.get("/v1/costs/accounts?by=month")).json() == []
    assert "by" in problem_of(await client.get("/v1/costs/accounts?by=week"), 422)
