"""An NDJSON upload by hand, over a socket: written and read at the same time, and cut off.

Ordinary clients send a whole body before they read; here a test says when.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit


class Upload:
    """One request under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._writer.drain()

    async def finish(self) -> None:
        """End the body."""
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def status(self) -> int:
        """The answer's status; its lines follow."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """The lines of the answer as they come, until it ends or breaks off."""
        rest = b""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                rest += (await self._reader.readexactly(size + 2))[:-2]
                *complete, rest = rest.split(b"\n")
                for line in complete:
                    yield json.loads(line)


@contextlib.asynccontextmanager
async def upload(url: str, path: str, token: str) -> AsyncIterator[Upload]:
    """Begin an upload; leaving closes the connection, finished or not."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: learnd\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        yield Upload(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
