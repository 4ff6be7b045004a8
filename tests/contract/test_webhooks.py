"""Webhooks at the door of a whole application, on both databases: once, signed, and a hint."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon import webhooks as module
from daemon.store.leases import Tenancy
from daemon.store.webhooks import Delivery, JobHint, Webhooks
from daemon.webhook_signature import SIGNATURE_HEADER, DeliveryRefusedError, RefusalReason
from daemon.webhooks import (
    COMPLAIN_EVERY,
    KEPT,
    LONGEST_BODY_BYTES,
    JobHints,
    WebhookIntake,
    expire_webhooks,
)
from learning.facts import WebhookReceived, WebhookRefused
from learning.ports import StoreUnavailableError
from tests.builders import NOON, later
from tests.contract.driver import everything
from tests.contract.webhook_door import WITH_TOKEN, Answer, Door, asked, door_of
from tests.webhooks import KEY, event, replaced, signed

LONG = timedelta(hours=1)
ALPHA = Tenancy(owner="a", node="alpha", lease=LONG, gone_after=LONG)
BETA = Tenancy(owner="b", node="beta", lease=LONG, gone_after=LONG)

on_sqlite = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
"""For what does not get as far as the database."""

Open = Callable[[Tenancy], Awaitable[Door]]


@pytest.fixture
async def door(store_url: str, tmp_path: Path) -> AsyncIterator[Door]:
    """The only daemon of a database."""
    async with door_of(store_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def open_door(store_url: str, tmp_path: Path) -> AsyncIterator[Open]:
    """Open the door of one more daemon of the same database."""
    async with AsyncExitStack() as stack:

        async def opened(tenancy: Tenancy) -> Door:
            return await stack.enter_async_context(door_of(store_url, tmp_path, tenancy=tenancy))

        yield opened


async def deliver(door: Door, delivery_id: str = "wh_1", body: bytes | None = None) -> Answer:
    """Send what is signed, and pass on what it hints at."""
    body = event() if body is None else body
    answer = await door.knock(signed(delivery_id, door.clock(), body), body)
    await door.hints.tell()
    return answer


def refused(door: Door) -> Sequence[str]:
    return [fact.reason for fact in door.facts if isinstance(fact, WebhookRefused)]


# --- what is taken ----------------------------------------------------------------------


async def test_a_signed_event_is_stored_without_a_token(door: Door) -> None:
    answer = await deliver(door)

    (kept,) = await door.kept()
    assert (answer.status, answer.said) == (200, {"status": "stored", "id": kept.id})
    assert (kept.delivery_id, kept.type, kept.object_id, kept.received_at) == (
        "wh_1",
        "fine_tuning.job.succeeded",
        "ftjob-1",
        NOON,
    )
    assert door.facts == [
        WebhookReceived("fine_tuning.job.succeeded", True, "wh_1", "ftjob-1", is_new=True)
    ]


async def test_a_repeat_has_another_time_and_no_effect(door: Door) -> None:
    await door.run_with_job("ftjob-1")
    await deliver(door)
    before = await everything(door.store.database)

    door.clock.now = later(days=3)
    answer = await deliver(door)

    assert (answer.status, answer.said) == (200, {"status": "duplicate", "id": None})
    assert await everything(door.store.database) == before
    assert door.nudged == ["ftjob-1"]
    last = door.facts[-1]
    assert isinstance(last, WebhookReceived)
    assert not last.is_new


async def test_a_delivery_stays_what_it_was_first(door: Door) -> None:
    await deliver(door, "wh_1", event(job="ftjob-1"))
    await deliver(door, "wh_1", event("fine_tuning.job.failed", job="ftjob-2"))

    assert [(row.type, row.object_id) for row in await door.kept()] == [
        ("fine_tuning.job.succeeded", "ftjob-1")
    ]


async def test_of_one_delivery_that_comes_twice_at_once_one_is_new(door: Door) -> None:
    answers = await asyncio.gather(*(deliver(door) for _ in range(20)))

    assert sorted(answer.said["status"] for answer in answers) == ["duplicate"] * 19 + ["stored"]


OTHER_EVENTS = (
    (event("batch.completed", job="batch_1"), "batch_1"),
    (event("fine_tuning.job.paused", job="ftjob-9"), "ftjob-9"),
    (event("safety.alert.created", job=None), None),
    (b'{"type": "x"}', None),
    (b'{"type": "x", "data": {"id": 7}}', None),
    (b'{"type": "x", "data": {"id": "a b"}}', None),
    (b'{"type": "x", "data": "words"}', None),
)


async def test_events_of_other_types_are_kept_as_such(door: Door) -> None:
    for number, (body, _) in enumerate(OTHER_EVENTS):
        assert (await deliver(door, f"wh_{number}", body)).status == 200

    assert [(row.type, row.object_id) for row in await door.kept()] == [
        (json.loads(body)["type"], object_id) for body, object_id in OTHER_EVENTS
    ]
    assert not any(fact.known for fact in door.facts if isinstance(fact, WebhookReceived))


# --- what is not ------------------------------------------------------------------------


NO_EVENTS = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"\x00",
    b'{"type"',
    b'{"type": null}',
    b'{"type": 7}',
    b'{"type": ""}',
    b'{"type": "a\\nb"}',
    b'{"type": "\\ud800"}',
    b'{"type": "' + b"x" * 129 + b'"}',
    b'{"type": "x", "data": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b'{"type": "fine_tuning.job.failed", "data": {"id": 1' + b"0" * 5_000 + b"}}",
    b'{"type": "fine_tuning.job.failed"}',
    b'{"type": "fine_tuning.job.failed", "data": []}',
    b'{"type": "fine_tuning.job.failed", "data": {"id": NaN}}',
    b'{"type": "fine_tuning.job.failed", "data": {"id": ""}}',
    b'{"type": "fine_tuning.job.failed", "data": {"id": "' + b"x" * 257 + b'"}}',
    event()[:-1],
)


@on_sqlite
async def test_a_signed_body_that_is_no_event_is_refused_and_not_kept(door: Door) -> None:
    for body in NO_EVENTS:
        answer = await deliver(door, body=body)

        assert (answer.status, answer.said["reason"]) == (400, "not_an_event"), body[:40]
        assert answer.headers["content-type"] == "application/problem+json"
    assert await door.kept() == []
    assert refused(door) == ["not_an_event"] * len(NO_EVENTS)


async def test_a_forged_webhook_changes_nothing_at_all(door: Door) -> None:
    await door.run_with_job("ftjob-1")
    before = await everything(door.store.database)
    headers = signed("wh_1", NOON, event())

    forged = await door.knock(headers, event("fine_tuning.job.cancelled"))
    unsigned = await door.knock(WITH_TOKEN, event())
    await door.hints.tell()

    assert (forged.status, forged.said["reason"]) == (400, "bad_signature")
    assert (unsigned.status, unsigned.said["reason"]) == (400, "missing_header"), "a token is none"
    assert await everything(door.store.database) == before
    assert door.nudged == []
    assert refused(door) == ["bad_signature", "missing_header"]


@on_sqlite
async def test_a_body_that_is_too_long_is_not_read_to_its_end(door: Door) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b" " * LONGEST_BODY_BYTES
        yield b" "
        raise AssertionError("it was read on")

    intake = WebhookIntake(KEY, door.store.webhooks, door.facts.append, door.clock)
    with pytest.raises(DeliveryRefusedError) as too_long:
        await intake.take([], endless())
    assert too_long.value.reason is RefusalReason.TOO_LARGE

    longest = event(pad="x" * (LONGEST_BODY_BYTES - len(event(pad=""))))
    assert (await deliver(door, "wh_1", longest)).status == 200
    answer = await deliver(door, "wh_2", longest + b" ")
    assert (answer.status, answer.said["reason"]) == (413, "too_large")
    assert answer.headers["connection"] == "close"


@on_sqlite
async def test_a_body_that_stalls_is_not_waited_for(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.001)

    async def stalling() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    intake = WebhookIntake(KEY, door.store.webhooks, door.facts.append, door.clock)
    with pytest.raises(DeliveryRefusedError) as stalled:
        await intake.take([], stalling())
    assert stalled.value.reason is RefusalReason.TOO_SLOW


@on_sqlite
async def test_a_sender_that_goes_away_stores_nothing(door: Door) -> None:
    await door.knock(signed("wh_1", NOON, event()), event()[:10], breaks_off=True)

    assert await door.kept() == []


@on_sqlite
async def test_without_a_secret_nothing_is_received(store_url: str, tmp_path: Path) -> None:
    async with door_of(store_url, tmp_path, key=None) as door:
        answer = await deliver(door)

        assert answer.status == 404
        assert "remote.openai_webhook_secret" in answer.said["detail"]
        assert await door.kept() == []
        assert (await door.look("/v1/webhooks"))["items"] == []


@on_sqlite
async def test_a_store_that_is_away_is_503_and_forgeries_do_not_ask_it(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: Webhooks, delivery: Delivery, now: object) -> int | None:
        raise StoreUnavailableError("the database did not answer")

    with monkeypatch.context() as patched:
        patched.setattr(Webhooks, "store", away)
        answer = await deliver(door)
        forged = await door.knock(replaced(signed("w", NOON, b""), SIGNATURE_HEADER, b"v1,x"), b"")
    again = await deliver(door)

    assert (answer.status, forged.status) == (503, 400)
    assert int(answer.headers["retry-after"]) > 0
    assert again.said["status"] == "stored"
    assert refused(door) == ["store_unavailable", "bad_signature"]


@on_sqlite
async def test_strangers_do_not_fill_the_log_and_payloads_are_not_in_it(door: Door) -> None:
    body = event(prompt="a secret of a customer")
    with capture_logs() as lines:
        for _ in range(100):
            await door.knock(signed("wh_1", NOON, body), body + b" ")
        door.clock.now += COMPLAIN_EVERY
        await door.knock([], body)
        await door.knock(signed("wh_1", NOON, body), body + b" ")
        await deliver(door, body=body)

    assert [(line["reason"], line["before"]) for line in lines] == [
        ("bad_signature", 0),
        ("missing_header", 0),
        ("bad_signature", 99),
    ]
    assert "customer" not in repr(lines) + repr(door.facts) + repr(await door.kept())


# --- whom it is told --------------------------------------------------------------------


async def test_the_provider_of_the_run_is_nudged_once_for_each_delivery(door: Door) -> None:
    await door.run_with_job("ftjob-1")

    await deliver(door, "wh_1", event("fine_tuning.job.failed"))
    await deliver(door, "wh_2", event("fine_tuning.job.succeeded"))
    await deliver(door, "wh_1", event("fine_tuning.job.failed"))
    await deliver(door, "wh_3", event(job="ftjob-of-somebody"))

    assert door.nudged == ["ftjob-1", "ftjob-1"]


async def test_a_webhook_that_is_faster_than_the_reply_to_the_launch_is_not_lost(
    door: Door,
) -> None:
    run_id = await door.begun_run()
    await deliver(door)
    assert door.nudged == []

    await door.store.runs.adopt(run_id, "ftjob-1", NOON)
    await door.hints.tell()

    assert door.nudged == ["ftjob-1"]


async def test_a_job_that_has_ended_is_not_asked_again(door: Door) -> None:
    run_id = await door.run_with_job("ftjob-1")
    await door.store.runs.fail(run_id, "bad", "it failed", None, NOON)

    await deliver(door)

    assert door.nudged == []


async def test_the_daemon_that_has_the_run_is_told_whoever_received_it(open_door: Open) -> None:
    alpha, beta = await open_door(ALPHA), await open_door(BETA)
    await beta.run_with_job("ftjob-1")

    await deliver(alpha)
    await alpha.hints.tell()
    await beta.hints.tell()
    await beta.hints.tell()

    assert (alpha.nudged, beta.nudged) == ([], ["ftjob-1"])


async def test_a_daemon_that_takes_a_run_over_is_told_what_came_before(open_door: Open) -> None:
    alpha = await open_door(replace(ALPHA, lease=timedelta(0)))
    beta = await open_door(BETA)
    run_id = await alpha.run_with_job("ftjob-1")
    await deliver(alpha)
    assert await beta.store.leases.hold(run_id) is not None

    await beta.hints.tell()

    assert (alpha.nudged, beta.nudged) == (["ftjob-1"], ["ftjob-1"])


async def test_hints_are_in_the_order_in_which_they_came(door: Door) -> None:
    await door.run_with_job("ftjob-1")
    for number in range(3):
        await deliver(door, f"wh_{number}")

    first, *_ = hints = await door.store.webhooks.hints()
    assert hints == [JobHint(first.delivery + n, "scripted", "ftjob-1") for n in range(3)]


@on_sqlite
async def test_a_provider_that_is_gone_or_raises_ends_nothing(door: Door) -> None:
    await door.run_with_job("ftjob-1")
    await deliver(door)

    def refuse(job_id: str) -> None:
        raise RuntimeError(job_id)

    broken = replace(door.workbench, nudge=refuse)
    await JobHints(door.store.webhooks, {"scripted": broken}).tell()
    await JobHints(door.store.webhooks, {}).tell()


@on_sqlite
async def test_a_hint_that_is_received_here_is_passed_on_at_once(door: Door) -> None:
    nudged = asyncio.Event()
    workbench = replace(door.workbench, nudge=lambda job_id: nudged.set())
    hints = JobHints(door.store.webhooks, {"scripted": workbench}, every_seconds=3_600)
    await door.run_with_job("ftjob-1")
    async with asyncio.timeout(30):
        task = asyncio.create_task(hints.run())
        await deliver(door)
        hints.wake()
        await nudged.wait()
        task.cancel()
        await asyncio.wait([task])


@on_sqlite
async def test_a_hint_that_another_daemon_received_is_found_by_looking(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudged = asyncio.Event()
    workbench = replace(door.workbench, nudge=lambda job_id: nudged.set())
    hints = JobHints(door.store.webhooks, {"scripted": workbench}, every_seconds=0.001)
    looked, real = 0, Webhooks.hints

    async def away_at_first(self: Webhooks) -> Sequence[JobHint]:
        nonlocal looked
        looked += 1
        if looked == 1:
            raise StoreUnavailableError("the database did not answer")
        return await real(self)

    monkeypatch.setattr(Webhooks, "hints", away_at_first)
    await door.run_with_job("ftjob-1")
    async with asyncio.timeout(30):
        task = asyncio.create_task(hints.run())
        await door.knock(signed("wh_1", NOON, event()), event())
        await nudged.wait()
        task.cancel()
        await asyncio.wait([task])


# --- what is kept -----------------------------------------------------------------------


async def test_a_delivery_is_forgotten_after_seven_days(door: Door) -> None:
    await deliver(door, "wh_1")
    door.clock.now += timedelta(seconds=1)
    await deliver(door, "wh_2")

    assert timedelta(days=7) == KEPT
    assert await door.store.webhooks.expire(NOON) == 0
    assert await door.store.webhooks.expire(door.clock()) == 1
    assert [row.delivery_id for row in await door.kept()] == ["wh_2"]
    await deliver(door, "wh_3")
    assert len({row.id for row in await door.kept()}) == 2, "no number is given twice"


@on_sqlite
async def test_what_is_old_is_forgotten_by_itself(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deliver(door)
    done = asyncio.Event()
    real = Webhooks.expire

    async def away_at_first(self: Webhooks, received_before: object) -> int:
        monkeypatch.setattr(Webhooks, "expire", expire)
        raise StoreUnavailableError("the database did not answer")

    async def expire(self: Webhooks, received_before: object) -> int:
        n = await real(self, received_before)  # type: ignore[arg-type]  # a time, as above
        done.set()
        return n

    monkeypatch.setattr(Webhooks, "expire", away_at_first)
    monkeypatch.setattr(module, "EXPIRE_SECONDS", 0.001)
    async with asyncio.timeout(30):
        task = asyncio.create_task(expire_webhooks(door.store.webhooks, lambda: later(days=8)))
        await done.wait()
        task.cancel()
        await asyncio.wait([task])
    assert await door.kept() == []


async def test_webhooks_are_listed_newest_first_by_type_with_their_run(door: Door) -> None:
    run_id = await door.run_with_job("ftjob-1")
    await deliver(door, "wh_1")
    await deliver(door, "wh_2", event("batch.completed", job="batch_1"))
    await deliver(door, "wh_3", event("fine_tuning.job.failed", job="ftjob-2"))

    page = await door.look("/v1/webhooks")
    third, second, first = page["items"]
    assert first == {
        "id": first["id"],
        "delivery_id": "wh_1",
        "type": "fine_tuning.job.succeeded",
        "object_id": "ftjob-1",
        "run_id": run_id,
        "received_at": first["received_at"],
    }
    assert (second["delivery_id"], second["run_id"]) == ("wh_2", None)
    assert (third["delivery_id"], third["run_id"]) == ("wh_3", None)
    assert await door.look(f"/v1/webhooks/{first['id']}") == first
    only = await door.look("/v1/webhooks", "type=batch.completed")
    assert only["items"] == [second]
    both = await door.look("/v1/webhooks", f"type=batch.completed&type={third['type']}")
    assert both["items"] == [third, second]
    older = await door.look("/v1/webhooks", f"before={third['id']}&limit=1")
    assert older["items"] == [second]


@on_sqlite
async def test_a_webhook_that_is_not_there_is_said(door: Door) -> None:
    answer = await asked(door.app, "GET", "/v1/webhooks/99", WITH_TOKEN)

    assert answer.status == 404
    assert "learnd webhook list" in answer.said["detail"]
    assert (await asked(door.app, "GET", "/v1/webhooks", [])).status == 401
