"""HTTP clients that only ever reach one remote service, at an address that it may have.

Before each request the service's name is resolved, what it means is judged, and the connection
goes to one of the very addresses that were judged: between a judgement and a second resolution a
name could change. Redirects are not followed, and the environment brings no proxy and no
`.netrc`. With httpx2, because the OpenAI SDK takes no other client.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import httpx2

from finetune.remote.access import ServiceAccess
from finetune.remote.address import (
    DEFAULT_PORTS,
    AddressRefusedError,
    Resolve,
    fault_of,
    permitted,
)


def http_client(
    access: ServiceAccess, *, timeout: timedelta, resolve: Resolve | None = None, **told: Any
) -> httpx2.AsyncClient:
    """A client for one service. `timeout` is for each of connecting, sending and receiving.

    `told` is whatever else httpx2's client should know, such as `event_hooks`.

    Raises AddressRefusedError, as each of its requests does.
    """
    return httpx2.AsyncClient(
        transport=_GuardedTransport(_Guard(access, resolve)),
        timeout=timeout.total_seconds(),
        follow_redirects=False,
        trust_env=False,
        **told,
    )


class _Guard:
    """Knows the one service, and where it is just now."""

    def __init__(self, access: ServiceAccess, resolve: Resolve | None) -> None:
        if (fault := fault_of(access.base_url, allow_plain=access.allow_plain)) is not None:
            raise AddressRefusedError(access.setting, fault)
        url = httpx2.URL(access.base_url)
        self._access = access
        self._resolve = resolve
        self._host = url.host
        self._origin = _origin(url.scheme, url.host, url.port)

    async def addresses(
        self, scheme: str, host: str, port: int | None, extensions: Any
    ) -> Sequence[str]:
        """Where to connect to, in the resolver's order.

        Raises AddressRefusedError; OSError when the resolver knows none or does not answer.
        """
        origin = _origin(scheme, host, port)
        if origin != self._origin:
            raise AddressRefusedError(
                self._access.setting, f"{host} is another service than the one it names"
            )
        async with asyncio.timeout(extensions.get("timeout", {}).get("connect")):
            return await permitted(self._access, host, origin[2], resolve=self._resolve)


def _origin(scheme: str, host: str, port: int | None) -> tuple[str, str, int]:
    return scheme, host, port or DEFAULT_PORTS[scheme]


class _GuardedTransport(httpx2.AsyncBaseTransport):
    """Connects where the guard says. The host's name stays in its header and in TLS."""

    def __init__(self, guard: _Guard) -> None:
        self._guard = guard
        self._inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See httpx2.AsyncBaseTransport. Raises AddressRefusedError beside httpx2's errors."""
        url = request.url
        try:
            found = await self._guard.addresses(url.scheme, url.host, url.port, request.extensions)
        except OSError as error:
            raise httpx2.ConnectError(f"{url.host} cannot be found", request=request) from error
        failed: httpx2.ConnectError | httpx2.ConnectTimeout
        failed = httpx2.ConnectError(f"{url.host} has no address", request=request)
        for address in found:
            try:
                return await self._inner.handle_async_request(
                    httpx2.Request(
                        request.method,
                        url.copy_with(host=address),
                        headers=request.headers,
                        stream=request.stream,
                        extensions={**request.extensions, "sni_hostname": url.host},
                    )
                )
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failed = error  # nothing was sent: the next one may answer
        raise failed

    async def aclose(self) -> None:
        """Close its connections."""
        await self._inner.aclose()
