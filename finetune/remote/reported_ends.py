"""Ask a service which of its models it is going to shut down, and when.

OpenAI's protocol has no word for it. Some services that speak it have: `deprecation` of a model
in their list is a time (ISO 8601, as at Mistral), or has the times of training and of answering
(in seconds since 1970, as at Azure). Whatever else stands there says nothing: it is only a hint.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import httpx2

from finetune.remote.access import ServiceAccess
from finetune.remote.address import AddressRefusedError
from finetune.remote.connection import http_client

PATIENCE: Final = timedelta(seconds=30)
MOST_BYTES: Final = 16 * 1024 * 1024
LONGEST_NAME: Final = 256
_PLAUSIBLE: Final = (date(2020, 1, 1), date(2100, 1, 1))


async def reported_ends(
    access: ServiceAccess, *, patience: timedelta = PATIENCE
) -> Mapping[str, date]:
    """By model, the first day (UTC) on which the service offers less of it than before.

    Raises ConnectionError when the service does not answer with a list of models.
    """
    try:
        async with (
            asyncio.timeout(patience.total_seconds()),
            http_client(access, timeout=patience) as client,
            client.stream("GET", f"{access.base_url}/models", headers=_headers(access)) as response,
        ):
            if not response.is_success:
                raise ConnectionError(f"{access.base_url} answered {response.status_code}")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MOST_BYTES:
                    raise ConnectionError(f"{access.base_url}: the list of models is too long")
    except (httpx2.HTTPError, AddressRefusedError, TimeoutError) as error:
        raise ConnectionError(f"{access.base_url} does not answer: {error!r}") from None
    try:
        listed = json.loads(content)
    except (ValueError, RecursionError):
        raise ConnectionError(f"{access.base_url} answered something else than JSON") from None
    return dict(_ends_in(listed))


def _headers(access: ServiceAccess) -> Mapping[str, str]:
    # Not packed, so that its length is what it takes in memory.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if access.api_key is not None:
        headers["Authorization"] = f"Bearer {access.api_key.get_secret_value()}"
    return headers


def _ends_in(listed: Any) -> Iterator[tuple[str, date]]:
    models = listed.get("data") if isinstance(listed, dict) else None
    for model in models if isinstance(models, list) else ():
        name = model.get("id") if isinstance(model, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            continue
        told = model.get("deprecation")
        times = (
            [told.get(use) for use in ("fine_tune", "inference")]
            if isinstance(told, dict)
            else [told]
        )
        days = [day for day in map(_day, times) if day is not None]
        if days:
            yield name, min(days)


def _day(told: Any) -> date | None:
    """The day of a time, if it is a plausible one."""
    try:
        if isinstance(told, str):
            at = datetime.fromisoformat(told)
            day = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC).date()
        elif isinstance(told, int) and not isinstance(told, bool):
            day = datetime.fromtimestamp(told, UTC).date()
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return day if _PLAUSIBLE[0] <= day < _PLAUSIBLE[1] else None
