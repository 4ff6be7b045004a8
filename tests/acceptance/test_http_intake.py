"""A daemon that is killed in the middle of an upload: what it acknowledged is there, once."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.audit import Books, faults_of, require_none
from tests.http_upload import upload
from tests.services.learnd import Crash, Learnd

N_EVENTS = 5_000
N_IN_FLIGHT = 500
SETTINGS = {"finetune": {"provider": "scripted"}, "lines": {"coding": {}}}


def _line(number: int) -> bytes:
    event = {
        "event_id": f"e-{number}",
        "producer": "studio",
        "task_type": "coding",
        "task_id": f"t-{number}",
        "prompt": f"question {number}",
        "output": f"answer {number}",
        "approved": True,
    }
    if number % 3 == 0:
        del event["event_id"]
    return json.dumps(event).encode() + b"\n"


def _pieces() -> Iterator[bytes]:
    lines = [_line(number) for number in range(N_EVENTS)]
    for start in range(0, N_EVENTS, N_IN_FLIGHT):
        yield b"".join(lines[start : start + N_IN_FLIGHT])


async def _send_all(daemon: Learnd) -> list[dict[str, Any]]:
    """Upload everything, until the answer ends or breaks off; the answer's lines."""
    pieces = _pieces()
    async with upload(daemon.url, "/v1/outputs", daemon.token) as under_way:
        await under_way.send(next(pieces))
        assert await under_way.status() == 200
        lines = under_way.lines()
        told = [await anext(lines) for _ in range(N_IN_FLIGHT)]

        async def read_on() -> None:
            told.extend([line async for line in lines])

        reading = asyncio.create_task(read_on())
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                await under_way.send(piece)
            await under_way.finish()
        await reading
        return told


def _stored(books: Books) -> dict[int, str]:
    return {row["id"]: row["task_id"] for row in books.rows("select id, task_id from events")}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "crash",
    [
        Crash("Intake.append before its commit", nth=6),
        Crash("Intake.append after its commit", nth=6),
        Crash("Intake.receipts after its commit", nth=6),
    ],
    ids=["before its commit", "after its commit", "before its answer"],
)
async def test_an_upload_that_is_killed_and_sent_again_loses_and_doubles_nothing(
    crash: Crash, tmp_path: Path
) -> None:
    with Learnd(tmp_path, SETTINGS) as daemon:
        books = Books(daemon.data_dir)
        daemon.start(crash)
        acknowledged = await _send_all(daemon)
        daemon.wait_for_crash()
        require_none(faults_of(daemon.data_dir), when="after the crash")
        stored = _stored(books)
        assert 0 < len(stored) < N_EVENTS
        assert len(acknowledged) >= N_IN_FLIGHT
        assert all(line["status"] == "stored" for line in acknowledged)
        assert {line["id"]: f"t-{line['line'] - 1}" for line in acknowledged}.items() <= (
            stored.items()
        )

        daemon.start()
        again = await _send_all(daemon)
        assert again[-1] == {
            "status": "done",
            "stored": N_EVENTS - len(stored),
            "duplicate": len(stored),
            "refused": 0,
        }
        assert daemon.stop().status == 0
    require_none(faults_of(daemon.data_dir), when="after the restart")
    assert sorted(_stored(books).values()) == sorted(f"t-{n}" for n in range(N_EVENTS))
    assert stored.items() <= _stored(books).items()
