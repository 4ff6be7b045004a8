"""Serve the API inside the daemon's event loop, leaving signals to the daemon."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from learning.errors import LearningError

GRACE_SECONDS = 3
KEEP_ALIVE_SECONDS = 30
MOST_CONNECTIONS = 500


class CannotListenError(LearningError):
    """The address of the API is taken, or is not this machine's."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        if error.errno == errno.EADDRINUSE:
            advice = "it is taken: is another learnd running? Otherwise set http.port"
        else:
            advice = f"{error.strerror}: set http.host and http.port"
        super().__init__(f"cannot listen on {host}:{port}: {advice}")
        self.host, self.port = host, port


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises CannotListenError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CannotListenError(host, port, error) from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Now, not when the server starts: on Linux two sockets may be bound to one address
        # while neither listens, and the second would find out too late.
        bound.listen()
    except OSError as error:
        bound.close()
        raise CannotListenError(host, port, error) from error
    return bound


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: SIGTERM is the daemon's to act on."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class ApiServer:
    """Serves one application on one bound socket, which it closes."""

    def __init__(self, app: ASGIApp, bound: socket.socket) -> None:
        self._socket = bound
        host, port = bound.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
                limit_concurrency=MOST_CONNECTIONS,
            )
        )

    async def serve(self) -> None:
        """Serve until `stop` or cancellation; requests under way get GRACE_SECONDS to end."""
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self.stop()
            await serving
            raise

    def stop(self) -> None:
        """Ask `serve` to end."""
        self._server.should_exit = True
