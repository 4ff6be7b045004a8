"""Events over HTTP, on the real server and a real database: answered when they are durable."""

import asyncio
import gzip
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from consumers import http_source as http_module
from consumers.http_source import Body, BodyTooSlowError, HttpLimits, Sender
from consumers.pressure import Pressure
from consumers.rate_limit import RateLimit
from consumers.wire import Limits
from daemon.api.app import create_app
from daemon.api.routes import intake as intake_routes
from daemon.api.server import ApiServer, listen
from daemon.probes import DaemonMetrics, DaemonProbes
from daemon.recent_facts import RecentFacts
from daemon.store import Store
from daemon.store.intake import Intake
from daemon.store.tables import dead_letters, events, feedback
from daemon.store.views import Views
from learning.events import FeedbackEvent, OutputEvent
from learning.facts import EventsRefused, EventsStored, Fact
from learning.lines import ModelLines
from learning.ports import Block, EventKind, StoreUnavailableError
from monitoring.metrics import Metrics
from tests.contract.driver import LINE, StoppedClock
from tests.http_intake import http_source
from tests.http_upload import Upload, upload
from tests.scripted_operations import ScriptedOperations
from tests.settings_desk import settings_desk

TOKEN = "a-token-of-the-tests"
LINES = ModelLines([LINE])
NDJSON = {"Content-Type": "application/x-ndjson"}


@dataclass
class Knobs:
    """What a test may set before it starts the server, or while it runs."""

    closed: str | None = None
    limits: HttpLimits = field(default_factory=HttpLimits)
    rate_limit: RateLimit | None = None
    facts: list[Fact] = field(default_factory=list)


@dataclass(frozen=True)
class House:
    """The server, a client of it, and what is behind it."""

    client: httpx.AsyncClient
    store: Store
    knobs: Knobs

    async def post(self, body: Any, path: str = "/v1/outputs", **headers: str) -> httpx.Response:
        """Send one event, or bytes as they are or as they come."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {"Content-Type": "application/json", **named(headers)}
        return await self.client.post(path, content=content, headers=given)

    async def stream(
        self, lines: Sequence[bytes], path: str = "/v1/outputs", **headers: str
    ) -> list[dict[str, Any]]:
        """Send lines; the lines of the answer."""
        content = b"\n".join(lines)
        answer = await self.client.post(path, content=content, headers=NDJSON | named(headers))
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.text.splitlines()]

    async def count(self, table: Any = events) -> int:
        """Rows of a table."""
        query = select(func.count()).select_from(table)
        return await self.store.database.read(lambda tx: int(tx.execute(query).scalar_one()))

    def upload(self, path: str = "/v1/outputs") -> Any:
        """An upload by hand."""
        return upload(str(self.client.base_url), path, TOKEN)


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


Serve = Callable[[Knobs], Any]


@pytest.fixture
def serve(store: Store, clock: StoppedClock, tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serving(knobs: Knobs) -> AsyncIterator[House]:
        views = Views.of(
            store.database,
            lines=LINES,
            artifacts_dir=tmp_path / "artifacts",
            wanted_held_out=lambda: 32,
            clock=clock,
        )
        probes = DaemonProbes(views.overview, None, Pressure(time.monotonic), clock)
        app = create_app(
            views=views,
            operations=ScriptedOperations(),
            forgetter=ScriptedOperations(),
            settings=settings_desk(store.database, clock),
            http_source=http_source(
                store.database,
                LINES,
                clock,
                announce=knobs.facts.append,
                closed=lambda kind: knobs.closed,
                limits=knobs.limits,
                rate_limit=knobs.rate_limit,
            ),
            facts=RecentFacts(clock),
            health=probes,
            metrics=DaemonMetrics(Metrics(), views.overview, None, probes),
            token=TOKEN,
        )
        server = ApiServer(app, listen("127.0.0.1", 0))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve())
            async with httpx.AsyncClient(
                base_url=server.url,
                headers={"Authorization": f"Bearer {TOKEN}"},
                trust_env=False,
                timeout=30.0,
            ) as client:
                yield House(client, store, knobs)
            server.stop()

    return serving


@pytest.fixture
async def house(serve: Serve) -> AsyncIterator[House]:
    async with serve(Knobs()) as opened:
        yield opened


def output(number: int = 1, **fields: Any) -> dict[str, Any]:
    event = {
        "event_id": f"o-{number}",
        "producer": "web",
        "task_id": f"t-{number}",
        "task_type": "normalize",
        "prompt": f"question {number}",
        "output": f"answer {number}",
        "approved": True,
    } | fields
    return {name: value for name, value in event.items() if value is not None}


def line(number: int = 1, **fields: Any) -> bytes:
    return json.dumps(output(number, **fields)).encode()


def reaction(number: int = 1, **fields: Any) -> dict[str, Any]:
    event = {"event_id": f"f-{number}", "producer": "chat", "task_id": f"t-{number}"}
    return event | {"task_type": "normalize", "approved": False} | fields


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    return document


# --- one event ------------------------------------------------------------------------


async def test_an_event_is_answered_with_what_became_of_it(house: House) -> None:
    answer = await house.post(output())
    assert answer.status_code == 201
    assert answer.json() == {
        "id": 1,
        "event_id": "o-1",
        "status": "stored",
        "state": "queued",
        "reason": "approved, no confidence given",
    }
    shown = (await house.client.get("/v1/events/1")).json()
    assert shown["payload"]["prompt"] == "question 1"
    assert [type(fact) for fact in house.knobs.facts] == [EventsStored]


async def test_an_event_that_is_sent_again_is_known(house: House) -> None:
    first = await house.post(output())
    second = await house.post(output())
    assert second.status_code == 200
    assert second.json() == first.json() | {"status": "duplicate"}
    assert await house.count() == 1


async def test_an_id_that_names_another_body_is_a_conflict(house: House) -> None:
    await house.post(output())
    told = problem(await house.post(output(output="another answer")), 409)
    assert told["reason"] == "id_reused"
    assert "'o-1'" in told["detail"]
    assert await house.count() == 1


async def test_feedback_finds_its_output(house: House) -> None:
    early = await house.post(reaction(), "/v1/feedback")
    assert (early.status_code, early.json()["state"]) == (201, "waiting")
    assert (await house.post(output())).json()["state"] == "withdrawn"
    again = await house.post(reaction(), "/v1/feedback")
    assert (again.status_code, again.json()["state"]) == (200, "joined")


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 422, "empty"),
        (b"{oops", 422, "not_json"),
        (b"[1]", 422, "not_an_object"),
        (b"\xff", 422, "bad_utf8"),
        (line(confidence=2), 422, "invalid"),
        (line(aproved=False), 422, "invalid"),
        (line(task_type="chess"), 422, "unknown_task_type"),
        (line(prompt="x" * 1_100_000), 413, "too_large"),
    ],
)
async def test_what_is_no_event_is_refused_by_name_and_not_kept(
    house: House, body: bytes, status: int, reason: str
) -> None:
    told = problem(await house.post(body), status)
    assert told["reason"] == reason
    assert told["detail"]
    assert await house.count() == await house.count(dead_letters) == 0
    refused = [fact for fact in house.knobs.facts if isinstance(fact, EventsRefused)]
    assert [fact.reasons for fact in refused] == ([{reason: 1}] if status == 422 else [])


async def test_an_event_without_an_id_may_be_sent_again(house: House) -> None:
    first = await house.post(output(event_id=None))
    again = await house.post(output(event_id=None))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["event_id"] == again.json()["event_id"]
    assert first.json()["event_id"].startswith("derived:")


async def test_a_key_tells_a_further_event_from_a_repeated_one(house: House) -> None:
    body = output(event_id=None)
    statuses = [
        (await house.post(body, Idempotency_Key=key)).status_code for key in ("a", "a", "b", "b")
    ]
    assert statuses == [201, 200, 201, 200]
    assert await house.count() == 2


async def test_a_key_that_is_no_key_is_refused(house: House) -> None:
    problem(await house.post(output(), Idempotency_Key="k" * 201), 422)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Encoding": "br"},
    ],
)
async def test_another_type_or_encoding_is_refused_with_what_is_taken(
    house: House, headers: dict[str, str]
) -> None:
    given = {"Content-Type": "application/json"} | headers
    answer = await house.client.post("/v1/outputs", content=line(), headers=given)
    problem(answer, 415)
    assert "accept-post" in answer.headers or "gzip" in answer.headers["accept-encoding"]
    assert await house.count() == 0


async def test_a_body_may_be_compressed(house: House) -> None:
    answer = await house.post(gzip.compress(line()), Content_Encoding="gzip")
    assert answer.status_code == 201
    told = problem(await house.post(b"not gzip", Content_Encoding="gzip"), 400)
    assert told["reason"] == "bad_encoding"


async def test_a_bomb_is_refused_before_it_has_grown(house: House) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    problem(await house.post(bomb, Content_Encoding="gzip"), 413)


async def test_intake_needs_the_token(house: House) -> None:
    problem(await house.post(output(), Authorization="Bearer wrong"), 401)
    assert await house.count() == 0


# --- a stream -------------------------------------------------------------------------


async def test_every_line_is_answered_and_bad_ones_lose_no_neighbours(house: House) -> None:
    told = await house.stream(
        [line(1), b"{oops", b"", line(2), line(2), line(1, output="other"), line(3)]
    )
    assert [(one.get("line"), one["status"], one.get("reason")) for one in told[:-1]] == [
        (1, "stored", "approved, no confidence given"),
        (2, "refused", "not_json"),
        (4, "stored", "approved, no confidence given"),
        (5, "duplicate", "approved, no confidence given"),
        (6, "refused", "id_reused"),
        (7, "stored", "approved, no confidence given"),
    ]
    assert told[-1] == {"status": "done", "stored": 3, "duplicate": 1, "refused": 2}
    assert [one["event_id"] for one in told if one["status"] == "stored"] == ["o-1", "o-2", "o-3"]
    assert await house.count() == 3


async def test_a_long_stream_is_stored_in_blocks_and_may_be_sent_again(house: House) -> None:
    lines = [line(number) for number in range(3_000)]
    first, again = await house.stream(lines), await house.stream(lines)
    assert [one["line"] for one in first[:-1]] == list(range(1, 3_001))
    assert first[-1] == {"status": "done", "stored": 3_000, "duplicate": 0, "refused": 0}
    assert again[-1] == {"status": "done", "stored": 0, "duplicate": 3_000, "refused": 0}
    assert [one["id"] for one in first[:-1]] == [one["id"] for one in again[:-1]]
    blocks = [fact for fact in house.knobs.facts if isinstance(fact, EventsStored)]
    assert len(blocks) >= 12


async def test_a_stream_of_nothing_is_done(house: House) -> None:
    assert await house.stream([]) == [{"status": "done", "stored": 0, "duplicate": 0, "refused": 0}]


async def test_equal_lines_are_one_event_unless_a_key_tells_them_apart(house: House) -> None:
    same = line(event_id=None)
    assert (await house.stream([same, same]))[-1]["stored"] == 1
    assert (await house.stream([same, same], Idempotency_Key="k"))[-1]["stored"] == 2
    assert (await house.stream([same, same], Idempotency_Key="k"))[-1]["duplicate"] == 2
    assert await house.count() == 3


async def test_a_line_that_is_too_long_is_refused_alone(serve: Serve) -> None:
    async with serve(Knobs(limits=HttpLimits(wire=Limits(max_bytes=2_000)))) as house:
        told = await house.stream([line(1), line(2, prompt="x" * 200_000), line(3)])
    assert [one["status"] for one in told] == ["stored", "refused", "stored", "done"]
    assert told[1]["reason"] == "too_large"


async def test_a_compressed_stream_is_read_as_it_comes(house: House) -> None:
    packed = gzip.compress(b"\n".join(line(number) for number in range(800)))
    told = await house.client.post(
        "/v1/outputs", content=packed, headers=NDJSON | {"Content-Encoding": "gzip"}
    )
    assert json.loads(told.text.splitlines()[-1])["stored"] == 800


async def test_a_stream_that_is_too_long_is_stopped_after_what_was_stored(serve: Serve) -> None:
    lines = [line(number) for number in range(2_000)]
    most = sum(len(each) + 1 for each in lines[:1_200])
    async with serve(Knobs(limits=HttpLimits(max_stream_bytes=most))) as house:
        told = await house.stream(lines)
        assert (told[-1]["status"], told[-1]["reason"]) == ("stopped", "too_large")
        assert told[-1]["stored"] == len(told) - 1 == await house.count()
        assert told[-1]["stored"] >= 500


class FailingAppends:
    """The store is away after so many blocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
        self._append = Intake.append
        self._left = good
        self._patch = monkeypatch

        async def append(intake: Intake, *blocks: Block) -> EventsStored:
            if self._left == 0:
                raise StoreUnavailableError("the database did not answer: locked")
            self._left -= 1
            return await self._append(intake, *blocks)

        monkeypatch.setattr(Intake, "append", append)

    def heal(self) -> None:
        self._patch.setattr(Intake, "append", self._append)


async def test_a_store_that_goes_away_stops_the_stream_and_says_how_far_it_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(number) for number in range(1_200)]
    failing = FailingAppends(monkeypatch, good=1)
    told = await house.stream(lines)
    assert told[-1]["status"] == "stopped"
    assert told[-1]["reason"] == "store_unavailable"
    assert told[-1]["retry_after_seconds"] > 0
    assert told[-1]["stored"] == len(told) - 1 == await house.count()

    failing.heal()
    again = await house.stream(lines)
    assert again[-1]["duplicate"] == told[-1]["stored"]
    assert again[-1]["stored"] == 1_200 - told[-1]["stored"]
    assert await house.count() == 1_200


async def test_a_store_that_is_away_from_the_start_is_a_status(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingAppends(monkeypatch, good=0)
    for content, headers in ((line(), {}), (line() + b"\n", NDJSON)):
        answer = await house.post(content, **{k.replace("-", "_"): v for k, v in headers.items()})
        problem(answer, 503)
        assert int(answer.headers["retry-after"]) > 0


async def test_a_closed_door_is_told_with_its_reason(serve: Serve) -> None:
    async with serve(Knobs(closed="100,000 events wait")) as house:
        for headers in ({}, {"Content_Type": "application/x-ndjson"}):
            answer = await house.post(line(), **headers)
            told = problem(answer, 503)
            assert (told["reason"], told["detail"]) == ("closed", "100,000 events wait")
            assert int(answer.headers["retry-after"]) > 0


async def test_more_streams_than_are_read_at_once_are_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "MOST_UPLOADS", 1)
    async with house.upload() as first:
        await first.send(line(1) + b"\n")
        assert await first.status() == 200
        problem(await house.post(line(2) + b"\n", Content_Type="application/x-ndjson"), 503)
        await first.finish()
        assert [one["status"] async for one in first.lines()] == ["stored", "done"]
    assert (await house.stream([line(2)]))[-1]["stored"] == 1


# --- clients as they are --------------------------------------------------------------


async def first_result(under_way: Upload) -> dict[str, Any]:
    async for told in under_way.lines():
        return told
    raise AssertionError("the answer ended")


async def test_results_come_while_the_stream_goes_on(house: House) -> None:
    async with house.upload() as live:
        await live.send(line(1) + b"\n" + line(2)[:20])
        assert await live.status() == 200
        assert (await first_result(live))["line"] == 1
        assert await house.count() == 1
        house.knobs.closed = "enough"
        await live.send(line(2)[20:] + b"\n")
        told = await first_result(live)
    assert (told["status"], told["reason"], told["stored"]) == ("stopped", "closed", 1)
    assert await house.count() == 1


async def test_a_client_that_never_reads_is_stopped(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_routes, "MOST_UNREAD_BYTES", 10_000)
    told = await house.stream([line(number) for number in range(3_000)])
    assert (told[-1]["status"], told[-1]["reason"]) == ("stopped", "unread")
    assert told[-1]["stored"] == len(told) - 1 == await house.count()


async def test_a_client_that_goes_away_disturbs_nobody(house: House) -> None:
    async with house.upload() as gone:
        await gone.send(line(1) + b"\n")
        assert await gone.status() == 200
        await gone.send(line(2)[:30])
    async with house.upload():
        pass
    told = await house.stream([line(1), line(2)])
    assert [one["status"] for one in told] == ["duplicate", "stored", "done"]


async def test_a_slow_body_is_given_up(serve: Serve) -> None:
    async with serve(Knobs(limits=HttpLimits(body_seconds=0.2))) as house:
        async with house.upload() as silent:
            assert await silent.status() == 408
        async with house.upload() as stalled:
            await stalled.send(line(1) + b"\n" + line(2)[:30])
            assert await stalled.status() == 200
            told = [one async for one in stalled.lines()]
        assert [one["status"] for one in told] == ["stored", "stopped"]
        assert told[-1]["reason"] == "too_slow"

        assert await house.count() == 1


async def test_a_body_that_drips_is_given_up_however_often_it_drips(
    store: Store, clock: StoppedClock
) -> None:
    now = 0.0

    async def dripping() -> AsyncIterator[bytes]:
        nonlocal now
        for byte in line(1) + b"\n" + line(2):
            now += 1.0
            yield bytes([byte])

    source = http_source(store.database, LINES, clock, monotonic=lambda: now)
    blocks = source.take_lines(EventKind.OUTPUT, Body(dripping(), "identity"), Sender("a"))
    with pytest.raises(BodyTooSlowError):
        await anext(blocks)
    assert now < 40.0

    async def stalled() -> AsyncIterator[bytes]:
        yield line(1)[:9]
        await asyncio.Event().wait()

    source = http_source(store.database, LINES, clock, limits=HttpLimits(body_seconds=0.05))
    with pytest.raises(BodyTooSlowError):
        await source.take_one(EventKind.OUTPUT, Body(stalled(), "identity"), Sender("a"))


async def test_the_bodies_are_described_as_they_are_read(house: House) -> None:
    described = (await house.client.get("/openapi.json")).json()
    for path, model in (("/v1/outputs", OutputEvent), ("/v1/feedback", FeedbackEvent)):
        operation = described["paths"][path]["post"]
        content = operation["requestBody"]["content"]
        assert set(content) == {"application/json", "application/x-ndjson"}
        schema = content["application/json"]["schema"]
        assert set(schema["properties"]) == set(model.model_fields)
        assert "$ref" not in json.dumps(schema)
        for example in schema["examples"]:
            answer = await house.post(example | {"task_type": "normalize"}, path)
            assert answer.status_code == 201
        statuses = {"200", "201", "400", "401", "408", "409", "413", "415", "422", "429", "503"}
        assert set(operation["responses"]) == statuses
        assert set(operation["responses"]["422"]["content"]) == {"application/problem+json"}


async def test_who_sends_too_much_is_told_when_to_come_back(serve: Serve) -> None:
    now = 0.0
    async with serve(Knobs(rate_limit=RateLimit(0.5, 2, lambda: now))) as house:
        assert (await house.post(output(1))).status_code == 201
        assert (await house.post(output(2))).status_code == 201
        for kind in ("application/json", "application/x-ndjson"):
            answer = await house.post(output(3), Content_Type=kind)
            assert problem(answer, 429)["reason"] == "rate_limited"
            assert answer.headers["retry-after"] == "2"
        now = 2.0
        assert (await house.post(output(3))).status_code == 201


async def test_a_stream_is_slowed_down_and_not_cut_off(
    serve: Serve,
) -> None:
    waits: list[float] = []

    class Slowing(RateLimit):
        def take(self, client: str, n_events: int) -> float:
            waits.append(n_events)
            return 0.0 if len(waits) != 3 else 0.001

    async with serve(Knobs(rate_limit=Slowing(1.0, 1, lambda: 0.0))) as slowed:
        told = await slowed.stream([line(number) for number in range(1_000)])
    assert told[-1]["stored"] == 1_000
    assert sum(waits) > 1_000


async def test_two_that_send_the_same_at_once_make_each_event_once(house: House) -> None:
    lines = [line(number) for number in range(1_500)]
    answers = await asyncio.gather(house.stream(lines), house.stream(lines))
    assert await house.count() == 1_500
    totals = Counter[str]()
    for told in answers:
        totals.update({name: told[-1][name] for name in ("stored", "duplicate", "refused")})
    assert totals == {"stored": 1_500, "duplicate": 1_500, "refused": 0}


async def test_feedback_streams_as_outputs_do(house: House) -> None:
    lines = [json.dumps(reaction(number)).encode() for number in range(3)]
    told = await house.stream([*lines, line(9)], "/v1/feedback")
    assert [one["status"] for one in told] == ["stored"] * 3 + ["refused", "done"]
    assert told[0]["state"] == "waiting"
    assert await house.count(feedback) == 3
