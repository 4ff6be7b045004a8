"""Where the service is reached: at a real port of loopback, or within the process."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import httpx2
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.services.fake_openai.app import Front, protocol
from tests.services.fake_openai.faults import Faults, ScriptedFaults
from tests.services.fake_openai.service import Service

START_SECONDS = 30.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST and throws away what is not yet sent."""


class FakeOpenAI:
    """The service at a port of its own, in a thread of its own, from `with` to its end."""

    def __init__(
        self,
        service: Service | None = None,
        *,
        faults: Faults | None = None,
        chat: ASGIApp | None = None,
    ) -> None:
        self.service = service or Service()
        self.planned = ScriptedFaults()
        """Faults by the test's word, unless `faults` were given."""
        self._connections: dict[tuple[str, int], asyncio.Transport] = {}
        self._front = Front(
            protocol(self.service, chat),
            self.service,
            faults or self.planned,
            self._reset,
            self._never,
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._started = threading.Event()
        self._server = self._uvicorn()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="fake OpenAI", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_SECONDS), "the fake service does not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self.let_go()
        self._thread.join(START_SECONDS)
        self._socket.close()

    def let_go(self) -> None:
        """Held replies go on their way."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._front.let_go.set)

    def _uvicorn(self) -> uvicorn.Server:
        connections = self._connections

        class Protocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP has no other
                super().connection_made(transport)
                connections[transport.get_extra_info("peername")] = transport

        started = self._started

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started.set()

        config = uvicorn.Config(
            self._front, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False
        )
        return Server(config)

    def _serve(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())

    async def _never(self) -> None:
        await self._front.let_go.wait()

    def _reset(self, scope: Scope) -> None:
        transport = self._connections[tuple(scope["client"])]
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
        )
        transport.abort()


class _WithinProcess(httpx2.ASGITransport):
    """Answers requests without a network; a slow answer is one that times out at once."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await super().handle_async_request(request)
        except ConnectionResetError as error:
            raise httpx2.ReadError(str(error), request=request) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error), request=request) from error


def within_process(
    service: Service, faults: Faults, chat: ASGIApp | None = None
) -> httpx2.AsyncBaseTransport:
    """A transport that carries requests to the service without a port."""

    def reset(scope: Scope) -> None:
        raise ConnectionResetError("reset by peer")

    async def stall() -> None:
        raise TimeoutError

    return _WithinProcess(app=Front(protocol(service, chat), service, faults, reset, stall))
