"""Serve an ASGI application on a real port of loopback, in a thread of the test's process.

In a thread, so that tests with and without an event loop use it alike, and a blocked client
does not block its server.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from starlette.types import ASGIApp

from daemon.api.server import ApiServer, listen


@contextlib.contextmanager
def on_loopback(app: ASGIApp, *, port: int = 0) -> Iterator[str]:
    """The address that the application answers at, without a slash at its end."""
    # It listens from here on: a client may connect before the thread has started.
    server = ApiServer(app, listen("127.0.0.1", port))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="loopback server")
    thread.start()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()
