"""Sign and verify deliveries as Standard Webhooks has it: HMAC-SHA256 over id, time and body.

Pure: headers, bytes and a time in; yes, or a reason. Whether an id was seen before is the
store's to say. Written with the standard library, because the check of the `openai` package
(3.54) believes an empty key, reads the wall clock, and raises TypeError on a signature that is
not ASCII and UnicodeDecodeError on a body that is not UTF-8.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from learning.errors import LearningError

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

TOLERANCE = timedelta(seconds=300)
"""So far may the time of a delivery be from ours, in either direction."""
LEAST_KEY_BYTES = 24
SECRET_PREFIX = "whsec_"  # noqa: S105 - how a secret begins, not one
_SCHEME = b"v1,"
_ID = re.compile(rb"[\x21-\x7e]{1,256}")
_TIMESTAMP = re.compile(rb"[0-9]{1,12}")


class RefusalReason(StrEnum):
    """Why a delivery is not taken: a label of a metric, and a word for programs."""

    MISSING_HEADER = "missing_header"
    BAD_HEADER = "bad_header"
    TOO_OLD = "too_old"
    TOO_NEW = "too_new"
    BAD_SIGNATURE = "bad_signature"
    NOT_AN_EVENT = "not_an_event"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    STORE_UNAVAILABLE = "store_unavailable"


class DeliveryRefusedError(LearningError):
    """A delivery is not taken; nothing of it was stored."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class WeakSecretError(LearningError):
    """A signing secret is not one, or is short enough to be guessed."""


@dataclass(frozen=True)
class SigningKey:
    """The bytes that a sender and learnd share."""

    key: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: str) -> Self:
        """The key in a secret such as `whsec_...`. Raises WeakSecretError, without the secret."""
        encoded = secret.removeprefix(SECRET_PREFIX)
        if encoded == secret:
            raise WeakSecretError(f"a signing secret is needed, which begins with {SECRET_PREFIX}")
        try:
            key = base64.b64decode(encoded.encode("ascii"), validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise WeakSecretError(f"what follows {SECRET_PREFIX} is not base64") from None
        if len(key) < LEAST_KEY_BYTES:
            raise WeakSecretError(
                f"a signing secret needs at least {LEAST_KEY_BYTES} bytes after {SECRET_PREFIX},"
                f" before base64; this one has {len(key)}"
            )
        return cls(key)

    def sign(self, delivery_id: str, at: datetime, body: bytes) -> dict[str, str]:
        """The three headers of a delivery that is sent at a time."""
        timestamp = str(int(at.timestamp()))
        signature = self._signature(delivery_id.encode(), timestamp.encode(), body)
        return {
            ID_HEADER: delivery_id,
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: (_SCHEME + signature).decode(),
        }

    def verify(self, headers: Iterable[tuple[bytes, bytes]], body: bytes, now: datetime) -> str:
        """The id of a delivery whose sender has the key.

        `headers` have lower-case names, as ASGI gives them. Raises DeliveryRefusedError.
        """
        given = list(headers)
        delivery_id = _only(given, ID_HEADER)
        timestamp = _only(given, TIMESTAMP_HEADER)
        signatures = _only(given, SIGNATURE_HEADER)
        if _ID.fullmatch(delivery_id) is None:
            raise DeliveryRefusedError(
                RefusalReason.BAD_HEADER, f"{ID_HEADER} is not 1 to 256 visible ASCII characters"
            )
        _require_recent(timestamp, now)
        expected = self._signature(delivery_id, timestamp, body)
        # Each in constant time, and all of them: how long it takes must not tell which was near.
        matches = [
            hmac.compare_digest(expected, one.removeprefix(_SCHEME))
            for one in signatures.split(b" ")
            if one.startswith(_SCHEME)
        ]
        if not any(matches):
            raise DeliveryRefusedError(
                RefusalReason.BAD_SIGNATURE,
                f"no v1 signature in {SIGNATURE_HEADER} is one of this body under our secret",
            )
        return delivery_id.decode("ascii")

    def _signature(self, delivery_id: bytes, timestamp: bytes, body: bytes) -> bytes:
        # An id may have dots: no other id, time and JSON document read the same when joined.
        signed = b".".join((delivery_id, timestamp, body))
        return base64.b64encode(hmac.digest(self.key, signed, hashlib.sha256))


def _only(headers: Iterable[tuple[bytes, bytes]], name: str) -> bytes:
    """The value of a header that has to stand there once."""
    found = [value for key, value in headers if key == name.encode()]
    if not found:
        raise DeliveryRefusedError(RefusalReason.MISSING_HEADER, f"there is no header {name}")
    if len(found) > 1:
        raise DeliveryRefusedError(RefusalReason.BAD_HEADER, f"the header {name} stands twice")
    return found[0]


def _require_recent(timestamp: bytes, now: datetime) -> None:
    if _TIMESTAMP.fullmatch(timestamp) is None:
        raise DeliveryRefusedError(
            RefusalReason.BAD_HEADER, f"{TIMESTAMP_HEADER} is not a number of seconds since 1970"
        )
    age = int(now.timestamp()) - int(timestamp)
    if abs(age) > TOLERANCE.total_seconds():
        reason, side = (
            (RefusalReason.TOO_OLD, "behind") if age > 0 else (RefusalReason.TOO_NEW, "ahead of")
        )
        raise DeliveryRefusedError(
            reason,
            f"{TIMESTAMP_HEADER} is {abs(age)} s {side} our clock;"
            f" {TOLERANCE.total_seconds():g} s are allowed",
        )
