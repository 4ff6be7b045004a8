"""Take signed webhooks in, and tell the providers of this daemon's runs that a job changed.

A delivery is believed to be its sender's, and nothing that it says: it is stored under its
id, and whoever waits for the job it is about asks the service at once instead of at the next
poll. So a webhook that is lost, late, repeated or out of order changes nothing but the time.
Knows headers and bytes, not frameworks: daemon/api/routes/webhooks.py hands them in.
"""

import asyncio
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from daemon.store.webhooks import Delivery, Webhooks
from daemon.webhook_signature import DeliveryRefusedError, RefusalReason, SigningKey
from finetune.providers import Workbench
from finetune.waking import woken
from learning.clock import Clock
from learning.facts import Announce, WebhookReceived, WebhookRefused
from learning.ports import StoreUnavailableError

log = structlog.get_logger(__name__)

JOB_EVENTS = frozenset(
    {"fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"}
)
"""The events that learnd is for. Others are kept by their type, and nothing else."""
KEPT = timedelta(days=7)
"""A sender tries again for at most three days."""
LONGEST_BODY_BYTES = 65_536
"""A webhook has some hundred."""
BODY_SECONDS = 10.0
HINT_SECONDS = 5.0
"""How often a daemon looks for webhooks about its jobs that another daemon received."""
EXPIRE_SECONDS = 3_600.0
COMPLAIN_EVERY = timedelta(minutes=1)

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI gives them: names in lower case."""
EventType = Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=128)]
ObjectId = Annotated[str, StringConstraints(pattern=r"^[!-~]+$", max_length=256)]


class _Event(BaseModel):
    """As much of an event as is read. Senders add fields as they like."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: EventType
    data: object = None


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    id: ObjectId


@dataclass(frozen=True)
class TakenWebhook:
    """A webhook that is in the database."""

    delivery: Delivery
    row_id: int | None
    """None when its delivery was stored before."""


class WebhookIntake:
    """Verifies and stores the deliveries that are signed with one key."""

    def __init__(self, key: SigningKey, store: Webhooks, announce: Announce, clock: Clock) -> None:
        self._key = key
        self._store = store
        self._announce = announce
        self._clock = clock
        self._complaints = _Complaints()

    async def take(self, headers: Headers, chunks: AsyncIterable[bytes]) -> TakenWebhook:
        """Store a delivery, once; durable when this returns.

        Raises DeliveryRefusedError for what is no signed event, which never comes near the
        database, and StoreUnavailableError: then the sender tries again. Cancelling it leaves
        the delivery stored, or not.
        """
        try:
            body = await _whole(chunks)
            delivery_id = self._key.verify(headers, body, self._clock())
            delivery = _read(delivery_id, body)
            row_id = await self._store.store(delivery, self._clock())
        except DeliveryRefusedError as error:
            self._refuse(error.reason, str(error))
            raise
        except StoreUnavailableError as error:
            self._refuse(RefusalReason.STORE_UNAVAILABLE, str(error))
            raise
        self._announce(
            WebhookReceived(
                delivery.type,
                delivery.type in JOB_EVENTS,
                delivery.delivery_id,
                delivery.object_id,
                is_new=row_id is not None,
            )
        )
        return TakenWebhook(delivery, row_id)

    def _refuse(self, reason: RefusalReason, detail: str) -> None:
        self._announce(WebhookRefused(reason.value))
        if (n_before := self._complaints.about(reason, self._clock())) is not None:
            log.warning("a webhook was refused", reason=reason.value, why=detail, before=n_before)


class _Complaints:
    """Lets each reason be complained of once a minute: strangers must not fill the log."""

    def __init__(self) -> None:
        self._last: dict[RefusalReason, tuple[datetime, int]] = {}

    def about(self, reason: RefusalReason, now: datetime) -> int | None:
        """How many were kept back since the last complaint; None to keep this one back too."""
        said_at, n_kept_back = self._last.get(reason, (None, 0))
        if said_at is not None and abs(now - said_at) < COMPLAIN_EVERY:
            self._last[reason] = said_at, n_kept_back + 1
            return None
        self._last[reason] = now, 0
        return n_kept_back


class JobHints:
    """Passes what webhooks tell of the jobs of this daemon's runs on to their providers."""

    def __init__(
        self,
        store: Webhooks,
        workbenches: Mapping[str, Workbench],
        *,
        every_seconds: float = HINT_SECONDS,
    ) -> None:
        self._store = store
        self._workbenches = workbenches
        self._every_seconds = every_seconds
        self._told: frozenset[int] = frozenset()
        """Of the deliveries about jobs that run now, those that were passed on."""
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look now: a webhook was received here."""
        self._wake.set()

    async def run(self) -> None:
        """Pass on what comes, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.tell()
            except StoreUnavailableError as error:
                log.warning("store unavailable", loop="webhooks", error=str(error))
            await woken(self._wake, within_seconds=self._every_seconds)

    async def tell(self) -> None:
        """Nudge the provider of each job that a delivery came about, once for each delivery."""
        hints = await self._store.hints()
        for hint in hints:
            workbench = self._workbenches.get(hint.provider)
            if workbench is None or hint.delivery in self._told:
                continue
            try:
                workbench.nudge(hint.job_id)
            except Exception:
                # A hint may be lost; it must not end intake and every run.
                log.exception("a provider takes no hint", provider=hint.provider)
        # What is not among them any more is about a job that ended, and never comes back.
        self._told = frozenset(hint.delivery for hint in hints)


async def expire_webhooks(store: Webhooks, clock: Clock) -> None:
    """Forget deliveries that cannot come again, until cancelled."""
    while True:
        try:
            await store.expire(clock() - KEPT)
        except StoreUnavailableError as error:
            log.warning("store unavailable", loop="webhooks", error=str(error))
        await asyncio.sleep(EXPIRE_SECONDS)


async def _whole(chunks: AsyncIterable[bytes]) -> bytes:
    """A body, read no further than a webhook may be long. Raises DeliveryRefusedError."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in chunks:
                body += chunk
                if len(body) > LONGEST_BODY_BYTES:
                    raise DeliveryRefusedError(
                        RefusalReason.TOO_LARGE,
                        f"a webhook may have {LONGEST_BODY_BYTES} bytes",
                    )
    except TimeoutError:
        raise DeliveryRefusedError(
            RefusalReason.TOO_SLOW, f"the body did not come within {BODY_SECONDS:g} s"
        ) from None
    return bytes(body)


def _read(delivery_id: str, body: bytes) -> Delivery:
    """The event in a signed body. Raises DeliveryRefusedError, without what the body says."""
    try:
        event = _Event.model_validate_json(body)
    except ValidationError:
        raise DeliveryRefusedError(
            RefusalReason.NOT_AN_EVENT, "the body is not a JSON object with a `type`"
        ) from None
    try:
        object_id = _Object.model_validate(event.data).id
    except ValidationError:
        if event.type in JOB_EVENTS:
            raise DeliveryRefusedError(
                RefusalReason.NOT_AN_EVENT, f"{event.type} without the id of a job in `data`"
            ) from None
        object_id = None
    return Delivery(delivery_id, event.type, object_id)
