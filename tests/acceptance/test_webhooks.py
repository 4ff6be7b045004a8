"""Webhooks to a real daemon over its socket: a job that is asked at once, and nothing else.

The job is the scripted provider's, which is not asked again before a nudge: so a run that is
decided here was told of by a webhook.
"""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from daemon.api.routes.webhooks import PATH
from daemon.webhooks import LONGEST_BODY_BYTES
from tests.services.learnd import Learnd
from tests.webhooks import KEY, SECRET, event

OTHER_SECRET = "whsec_dGhlIHNlY3JldCBvZiBzb21lYm9keSBlbHNl"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learnd]:
    settings = {
        "queue": {"batch_size": 4, "adaptive": False},
        "finetune": {
            "provider": "scripted",
            "base_model": "scripted-base",
            "training": {"plan": "await_nudge"},
        },
        "lines": {"coding": {}},
        "remote": {"openai_webhook_secret": SECRET},
    }
    with Learnd(tmp_path_factory.mktemp("webhooks"), settings) as started:
        started.start()
        yield started
        assert started.stop().status == 0


def sent(daemon: Learnd, name: str, body: bytes) -> httpx.Response:
    """A delivery that is signed now."""
    return daemon.post_signed(PATH, body, KEY.sign(name, datetime.now(UTC), body))


def sent_by_hand(daemon: Learnd, head: bytes, body: bytes) -> bytes:
    """The first line of the answer to bytes that no client would send; empty without one."""
    address = urlsplit(daemon.url)
    with socket.create_connection((str(address.hostname), address.port), timeout=30) as wire:
        wire.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % (PATH.encode(), head) + body)
        wire.shutdown(socket.SHUT_WR)
        return wire.makefile("rb").readline()


@contextlib.contextmanager
def anybody() -> Iterator[str]:
    """The address of somebody who thanks for every webhook."""

    class Friendly(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Friendly) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def running_job(daemon: Learnd) -> tuple[str, str]:
    """The run that trains, and its job."""
    body = b"\n".join(
        json.dumps(
            {
                "event_id": f"o-{number}",
                "producer": "studio",
                "task_type": "coding",
                "task_id": f"t-{number}",
                "prompt": f"question {number}",
                "output": f"answer {number}",
                "approved": True,
            }
        ).encode()
        for number in range(4)
    )
    answer = httpx.post(
        f"{daemon.url}/v1/outputs",
        content=body,
        headers={
            "Authorization": f"Bearer {daemon.token}",
            "Content-Type": "application/x-ndjson",
        },
        trust_env=False,
    )
    assert answer.status_code == 200
    (run,) = daemon.wait_until(
        "a run that trains", lambda: daemon.get("/v1/runs?state=running")["items"]
    )
    return run["id"], daemon.get(f"/v1/runs/{run['id']}")["job_id"]


def test_a_webhook_ends_the_wait_for_a_job_and_a_forged_one_does_not(daemon: Learnd) -> None:
    run_id, job_id = running_job(daemon)
    body = event(job=job_id)
    of_another = KEY.sign("wh_forged", datetime.now(UTC), body + b" ")
    forged = daemon.post_signed(PATH, body, of_another)
    assert (forged.status_code, forged.json()["reason"]) == (400, "bad_signature")
    assert daemon.command("webhook", "list") == "No webhook in the last seven days.\n"
    assert daemon.get(f"/v1/runs/{run_id}")["summary"]["state"] == "running"

    kept = json.loads(daemon.command("webhook", "test", "--job", job_id, "--json"))

    assert (kept["object_id"], kept["run_id"]) == (job_id, run_id)
    daemon.wait_until(
        "the end of the run",
        lambda: daemon.get(f"/v1/runs/{run_id}")["summary"]["state"] == "decided",
    )
    listed = daemon.command("webhook", "list", "--type", "fine_tuning.job.succeeded")
    (row,) = [line for line in listed.splitlines() if job_id in line]
    assert row.split()[:4] == [str(kept["id"]), kept["type"], job_id, run_id]
    assert daemon.metric("learnd_webhooks_total") == 1
    assert daemon.metric("learnd_webhooks_refused_total") == 1


def test_what_a_test_says_to_a_person(daemon: Learnd) -> None:
    said = daemon.command("webhook", "test", "--type", "batch.completed", "--job", "batch_1")
    assert re.search(r"type +batch\.completed\n", said)
    assert "none here has, or had, this job" in said
    assert "believed the signature" in said

    wrong = {"OPENAI_WEBHOOK_SECRET": OTHER_SECRET}
    daemon.command("webhook", "test", status=1, environment=wrong)
    daemon.command("webhook", "test", "--type", "a b", status=1)
    daemon.command("webhook", "test", "--to", "learn.example.com", status=2)
    with anybody() as address:
        daemon.command("webhook", "test", "--to", address, status=1)
    through = daemon.command("webhook", "test", "--to", f"{daemon.url}{PATH}", "--json")
    assert json.loads(through)["type"] == "fine_tuning.job.succeeded"


def test_without_a_secret_there_is_nothing_to_test_with(tmp_path: Path) -> None:
    Learnd(tmp_path, {}).command("webhook", "test", status=2)


def test_bytes_that_no_client_sends_are_no_defect(daemon: Learnd) -> None:
    headers = KEY.sign("wh_by_hand", datetime.now(UTC), event())
    head = "\r\n".join(f"{name}: {value}" for name, value in headers.items()).encode()
    strange = head.replace(b"v1,", b"v1,\xe9\xff")
    length = len(event())
    before = daemon.get("/v1/webhooks")

    for given, body, said in (
        (strange + b"\r\nContent-Length: %d" % length, event(), b" 400 "),
        (head + b"\r\nContent-Length: %d" % length, event()[:-9], b""),
        (head + b"\r\nTransfer-Encoding: chunked", b"5\r\nabc", b""),
        (head + b"\r\nTransfer-Encoding: chunked", b"0\r\n\r\n", b" 400 "),
        (head + b"\r\nContent-Length: 100000", b" " * 100_000, b" 413 "),
        (head + b"\r\nContent-Length: 0", b"", b" 400 "),
    ):
        answered = sent_by_hand(daemon, given, body)
        assert said in answered, (given, answered)
        assert b" 50" not in answered
    assert sent(daemon, "wh_long", b" " * (LONGEST_BODY_BYTES + 1)).status_code == 413
    assert daemon.get("/v1/webhooks") == before
    assert daemon.told(event="request failed") == []


def test_a_database_that_is_away_asks_the_sender_to_come_again(daemon: Learnd) -> None:
    elsewhere = daemon.database.rename(daemon.database.with_suffix(".away"))
    away = sent(daemon, "wh_away", event())
    forged = daemon.post_signed(PATH, event(), {})
    elsewhere.rename(daemon.database)

    assert (away.status_code, forged.status_code) == (503, 400)
    assert int(away.headers["retry-after"]) > 0
    assert sent(daemon, "wh_away", event()).json()["status"] == "stored"
    assert sent(daemon, "wh_away", event()).json()["status"] == "duplicate"


def test_neither_secrets_nor_payloads_are_logged(daemon: Learnd) -> None:
    sent(daemon, "wh_canary", event("safety.alert.created", prompt="canary-of-a-customer"))

    log = daemon.log_tail(10_000)
    assert "webhook safety.alert.created about ftjob-1 (delivery wh_canary)" in log
    for word in ("canary-of-a-customer", SECRET, SECRET.removeprefix("whsec_")):
        assert word not in log
        assert word not in daemon.probe("/metrics").text
