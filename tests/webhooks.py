"""Webhooks as a sender makes them: signed, and in every way not."""

import json
from datetime import datetime
from typing import Any

from daemon.webhook_signature import SigningKey

SECRET = "whsec_bGVhcm5kLWxlYXJuZC1sZWFybmQtbGVhcm5k"
KEY = SigningKey.of(SECRET)

Headers = list[tuple[bytes, bytes]]
"""As ASGI gives them."""


def event(
    type: str = "fine_tuning.job.succeeded", job: str | None = "ftjob-1", **fields: Any
) -> bytes:
    """An event as OpenAI sends it."""
    body = {
        "id": "evt_1",
        "object": "event",
        "created_at": 1_772_366_400,
        "type": type,
        "data": {} if job is None else {"id": job},
        **fields,
    }
    return json.dumps(body).encode()


def signed(delivery_id: str, at: datetime, body: bytes, key: SigningKey = KEY) -> Headers:
    """The headers that make a body a delivery."""
    headers = key.sign(delivery_id, at, body)
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def replaced(headers: Headers, name: str, value: bytes) -> Headers:
    """The same headers with another value of one of them."""
    return [(key, value if key == name.encode() else old) for key, old in headers]
