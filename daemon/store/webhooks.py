"""Signed webhooks that were received: each delivery once, and whose run each is about.

Of what one says only its type and the id of what it is about are kept. Whether it is signed,
daemon/webhook_signature.py says.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select

from daemon.store.database import Database
from daemon.store.dialect import insert_new
from daemon.store.tables import is_one_of, run_leases, runs, webhook_deliveries
from learning.lifecycle import UNFINISHED_RUN_STATES, RunState


@dataclass(frozen=True)
class Delivery:
    """One webhook, as far as it is kept."""

    delivery_id: str
    """The sender's; the same when it is sent again."""
    type: str
    object_id: str | None
    """What the event is about."""


@dataclass(frozen=True)
class JobHint:
    """A stored webhook says that the job of a run may have changed."""

    delivery: int
    """The number of its row."""
    provider: str
    job_id: str


class Webhooks:
    """The webhooks of one database, for one of its daemons."""

    def __init__(self, database: Database, owner: str) -> None:
        """`owner` holds the leases of the runs that this daemon works on."""
        self._database = database
        self._owner = owner

    async def store(self, delivery: Delivery, now: datetime) -> int | None:
        """Keep a delivery; the number of its row, or None when its id was stored before.

        The first one stays as it is, whatever the next one says. Raises StoreUnavailableError.
        """

        def transaction(tx: Connection) -> int | None:
            # Of one that is known nothing is written: SQLite would note the number of the row that
            # it did not insert, and wait for the disk.
            same_id = webhook_deliveries.c.delivery_id == delivery.delivery_id
            if tx.execute(select(webhook_deliveries.c.id).where(same_id)).first() is not None:
                return None
            row = tx.execute(
                insert_new(tx, webhook_deliveries, "id"), {**asdict(delivery), "received_at": now}
            ).first()
            return None if row is None else int(row.id)

        return await self._database.write(transaction)

    async def hints(self) -> Sequence[JobHint]:
        """What came about the jobs that this daemon's runs train in now, in order of arrival.

        Whichever daemon received it, and also when it came before the job was adopted.
        """
        about_ours = (
            select(webhook_deliveries.c.id, runs.c.provider, runs.c.job_id)
            .select_from(runs)
            .join(run_leases, run_leases.c.run_id == runs.c.id)
            .join(webhook_deliveries, webhook_deliveries.c.object_id == runs.c.job_id)
            .where(
                is_one_of(runs.c.state, *UNFINISHED_RUN_STATES),
                runs.c.state == RunState.RUNNING,
                run_leases.c.owner == self._owner,
            )
            .order_by(webhook_deliveries.c.id)
        )
        return await self._database.read(
            lambda tx: [JobHint(row.id, row.provider, row.job_id) for row in tx.execute(about_ours)]
        )

    async def expire(self, received_before: datetime) -> int:
        """Forget the deliveries that were received before a time; how many."""

        def transaction(tx: Connection) -> int:
            old = webhook_deliveries.c.received_at < received_before
            return tx.execute(delete(webhook_deliveries).where(old)).rowcount

        return await self._database.write(transaction)
