"""The command line's client against the real server: over a socket, as it is used."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from daemon.api.server import ApiServer, CannotListenError, listen
from daemon.client import (
    Client,
    DaemonUnavailableError,
    DaemonUnreachableError,
    NotUnderstoodError,
    RefusedError,
    TokenRefusedError,
)


async def echo(request: Request) -> Response:
    return JSONResponse(
        {
            "query": dict(request.query_params),
            "body": (await request.body()).decode(),
            "authorization": request.headers["authorization"],
            "actor": request.headers["x-actor"],
        }
    )


async def deliver(request: Request) -> Response:
    request.app.state.delivered = {
        "body": (await request.body()).decode(),
        "authorization": request.headers.get("authorization"),
        "signature": request.headers.get("webhook-signature"),
    }
    return Response()


async def delivered(request: Request) -> Response:
    return JSONResponse(request.app.state.delivered)


async def numbers(request: Request) -> Response:
    before = int(request.query_params.get("before", 11))
    limit = int(request.query_params["limit"])
    items = list(range(before - 1, max(before - 1 - min(limit, 4), 0), -1))
    return JSONResponse({"items": items, "next": items[-1] if items and items[-1] > 1 else None})


async def problem(request: Request) -> Response:
    status = int(request.path_params["status"])
    return JSONResponse({"detail": f"said {status}"}, status_code=status)


async def foreign(_request: Request) -> Response:
    return PlainTextResponse("<html>", status_code=404)


async def lines(request: Request) -> Response:
    """Each line's number; the first request is one too many, and a line "stop" ends it early."""
    if not hasattr(request.app.state, "asked"):
        request.app.state.asked = True
        return JSONResponse({"detail": "slower"}, 429, {"Retry-After": "0"})
    told = [{"line": n} for n, _ in enumerate((await request.body()).split(b"\n"), start=1)]
    end = {"status": "stopped", "detail": "it is away"} if b"stop" in await request.body() else {}
    return Response("\n".join(map(json.dumps, [*told, end or {"status": "done"}])))


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    app = Starlette(
        routes=[
            Route("/echo", echo, methods=["GET", "POST"]),
            Route("/deliver", deliver, methods=["POST"]),
            Route("/delivered", delivered),
            Route("/numbers", numbers),
            Route("/problem/{status}", problem),
            Route("/foreign", foreign),
            Route("/lines", lines, methods=["POST"]),
        ]
    )
    running = ApiServer(app, listen("127.0.0.1", 0))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(running.serve())
        yield running
        running.stop()


async def test_a_request_carries_token_actor_and_parameters(server: ApiServer) -> None:
    def ask() -> None:
        with Client(server.url, "secret") as client:
            heard = client.get("/echo", line="audio", state=None)
            assert heard["query"] == {"line": "audio"}
            assert heard["authorization"] == "Bearer secret"
            assert heard["actor"].startswith("cli")
            assert client.post("/echo", {"a": 1})["body"] == '{"a":1}'

    await asyncio.to_thread(ask)


async def test_a_file_is_posted_byte_for_byte(server: ApiServer, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n')

    def ask() -> None:
        with Client(server.url, "t") as client:
            heard = client.post_file("/echo", file, task_type="audio")
            assert (heard["body"], heard["query"]) == ('{"a": 1}\n', {"task_type": "audio"})

    await asyncio.to_thread(ask)


async def test_what_a_signature_vouches_for_goes_without_the_token(server: ApiServer) -> None:
    def ask() -> None:
        with Client(server.url, "secret") as client:
            client.deliver("/deliver", b'{"a": 1}', {"webhook-signature": "v1,x"})
            assert client.get("/delivered") == {
                "body": '{"a": 1}',
                "authorization": None,
                "signature": "v1,x",
            }
            assert client.get("/echo")["authorization"] == "Bearer secret"

    await asyncio.to_thread(ask)


async def test_lines_are_answered_one_by_one_and_wait_when_they_are_too_many(
    server: ApiServer,
) -> None:
    def ask() -> None:
        with Client(server.url, "t") as client:
            assert client.post_lines("/lines", b"a\nb") == [{"line": 1}, {"line": 2}]
            with pytest.raises(DaemonUnavailableError, match="it is away"):
                client.post_lines("/lines", b"a\nstop")

    await asyncio.to_thread(ask)


@pytest.mark.parametrize("most", [1, 4, 7, 100])
async def test_pages_are_followed_as_far_as_wanted(server: ApiServer, most: int) -> None:
    def ask() -> list[int]:
        with Client(server.url, "t") as client:
            return list(client.pages("/numbers", most))

    assert await asyncio.to_thread(ask) == list(range(10, 0, -1))[:most]


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("/problem/404", RefusedError, "said 404"),
        ("/problem/409", RefusedError, "said 409"),
        ("/problem/422", NotUnderstoodError, "said 422"),
        ("/problem/401", TokenRefusedError, "LEARND_TOKEN"),
        ("/problem/503", DaemonUnavailableError, "said 503"),
        ("/foreign", RefusedError, "is this a learnd daemon"),
    ],
)
async def test_a_refusal_is_an_error_of_its_kind(
    server: ApiServer, path: str, kind: type[Exception], said: str
) -> None:
    def ask() -> None:
        with Client(server.url, "t") as client, pytest.raises(kind, match=said):
            client.get(path)

    await asyncio.to_thread(ask)


def test_a_daemon_that_is_not_there_is_said() -> None:
    with socket.socket() as taken:  # so that nobody else comes to listen there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with Client(url, "t") as client, pytest.raises(DaemonUnreachableError, match="learnd run"):
            client.get("/echo")


@pytest.mark.parametrize("url", ["localhost", "ftp://x", "http://", "http://:x", "http://["])
def test_an_address_that_is_none_is_said(url: str) -> None:
    with pytest.raises(DaemonUnreachableError), Client(url, "t") as client:
        client.get("/echo")


async def test_a_taken_address_is_said_before_anything_runs(server: ApiServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(CannotListenError, match=r"it is taken.*http\.port"):
        listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(CannotListenError, match=r"http\.host"):
        listen("192.0.2.1", 0)


async def test_the_server_leaves_signals_alone(server: ApiServer) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    writer.close()
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


async def test_a_cancelled_server_ends_and_frees_its_address() -> None:
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    running = ApiServer(Starlette(), bound)
    task = asyncio.create_task(running.serve())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    listen("127.0.0.1", port).close()
