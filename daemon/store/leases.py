"""Who works on a run: a lease with a heartbeat, in a database that several daemons share.

A lease is taken by compare-and-set and raises the run's epoch; every later write about the
run is made under that epoch, or refused. Times are the database's, so that the clocks of
the daemons need not agree. Moves no run from state to state: that is daemon/store/runs.py.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from daemon.store.bookkeeping import Move, record
from daemon.store.database import Database
from daemon.store.dialect import database_time
from daemon.store.tables import is_one_of, run_leases, runs
from learning.errors import NotFoundError
from learning.lifecycle import ACTIVE_RUN_STATES, UNFINISHED_RUN_STATES, RunState
from learning.ports import Hold, LeaseLostError

LEASES = "leases"
"""The actor of a takeover in the history."""
_IS_ACTIVE = is_one_of(runs.c.state, *ACTIVE_RUN_STATES)
_IS_UNFINISHED = is_one_of(runs.c.state, *UNFINISHED_RUN_STATES)
_UNFINISHED = select(runs.c.id).where(_IS_UNFINISHED)
_WAITING = _UNFINISHED.where(~_IS_ACTIVE)
_LONG_AGO = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class UnknownNodeError(NotFoundError):
    """No unfinished run belongs to a node of this name."""

    def __init__(self, node: str) -> None:
        super().__init__(
            f"no unfinished run belongs to a node {node!r}; `learnd runs` shows their nodes"
        )
        self.node = node


@dataclass(frozen=True)
class Tenancy:
    """Who this daemon is to the others on its database, and how long its leases run."""

    owner: str = "alone"
    """Names the installation: the data directory, where the files of a local run are."""
    node: str = "this-node"
    """The name that people know it by."""
    lease: timedelta = timedelta(seconds=30)
    """A daemon that is silent for so long loses its runs."""
    gone_after: timedelta = timedelta(hours=1)
    """A run whose files are on a silent node waits so much longer before another takes it."""


class Leases:
    """The leases that one daemon holds; implements learning.ports.RunLeases."""

    def __init__(self, database: Database, tenancy: Tenancy) -> None:
        self._database = database
        self._tenancy = tenancy
        self._is_unfinished_here = (run_leases.c.owner == tenancy.owner) & run_leases.c.run_id.in_(
            _UNFINISHED
        )
        self._epochs: dict[str, int] = {}
        """Of each run that is held, as this daemon knows it."""

    @property
    def duration(self) -> timedelta:
        """See learning.ports.RunLeases."""
        return self._tenancy.lease

    async def lapsed(self) -> Sequence[str]:
        """See learning.ports.RunLeases."""

        def query(tx: Connection) -> list[str]:
            now = database_time(tx)
            rows = tx.execute(
                select(runs.c.id.label("of_run"), *run_leases.c)
                .outerjoin(run_leases, run_leases.c.run_id == runs.c.id)
                .where(_IS_UNFINISHED, _IS_ACTIVE)
            )
            return sorted(row.of_run for row in rows if self._may_take(row, now))

        return await self._database.read(query)

    async def hold(self, run_id: str) -> Hold | None:
        """See learning.ports.RunLeases."""
        known = self._epochs.get(run_id)

        def transaction(tx: Connection) -> tuple[Hold, int] | None:
            state = _locked_state(tx, run_id)
            lease, now = _lease(tx, run_id), database_time(tx)
            if lease is not None and known is not None:
                if not self._is_mine(lease, known):
                    raise LeaseLostError(run_id, lease.node)
                _set(tx, run_id, until=now + self._tenancy.lease)
                return Hold(), known
            if not state.active or not self._may_take(lease, now):
                return None
            epoch = self._take(tx, run_id, lease, now, bound=bool(lease and lease.bound))
            if lease is None or lease.owner == self._tenancy.owner:
                return Hold(), epoch
            reason = f"node {self._tenancy.node} took it over from {lease.node}"
            record(tx, [Move("run", run_id, state, state, reason, LEASES)], now)
            return Hold(taken_from=lease.node), epoch

        granted = await self._database.write(transaction)
        if granted is None:
            return None
        hold, self._epochs[run_id] = granted
        return hold

    async def renew(self) -> Collection[str]:
        """See learning.ports.RunLeases."""
        held = dict(self._epochs)

        def transaction(tx: Connection) -> set[str]:
            rows = tx.execute(
                select(run_leases)
                .where(run_leases.c.run_id.in_(held))
                .order_by(run_leases.c.run_id)
                .with_for_update(key_share=True)
            )
            kept = {row.run_id for row in rows if self._is_mine(row, held[row.run_id])}
            # A run that waits for its turn on this node is kept too, as long as the node lives.
            waits_here = run_leases.c.bound & run_leases.c.run_id.in_(_WAITING)
            tx.execute(
                update(run_leases)
                .where(self._is_unfinished_here, run_leases.c.run_id.in_(kept) | waits_here)
                .values(until=database_time(tx) + self._tenancy.lease)
            )
            return held.keys() - kept

        lost = await self._database.write(transaction)
        for run_id in lost:
            if self._epochs.get(run_id) == held[run_id]:
                del self._epochs[run_id]
        return lost

    async def release(self, run_id: str) -> None:
        """See learning.ports.RunLeases."""
        epoch = self._epochs.pop(run_id, None)
        if epoch is None:
            return
        await self._database.write(
            lambda tx: tx.execute(
                update(run_leases)
                .where(
                    run_leases.c.run_id == run_id,
                    run_leases.c.owner == self._tenancy.owner,
                    run_leases.c.epoch == epoch,
                )
                .values(until=database_time(tx))
            )
        )

    async def release_all(self) -> None:
        """See learning.ports.RunLeases."""
        await self._database.write(
            lambda tx: tx.execute(
                update(run_leases).where(self._is_unfinished_here).values(until=database_time(tx))
            )
        )
        self._epochs.clear()

    async def declare_gone(
        self, node: str, *, reason: str, actor: str, now: datetime
    ) -> Sequence[str]:
        """Take a node's unfinished runs away from it, for good, and return their ids.

        Whatever the node still writes about them is refused; the next daemon that looks
        takes them. Raises UnknownNodeError.
        """

        def transaction(tx: Connection) -> list[str]:
            unfinished = (
                select(runs.c.id, runs.c.state)
                .where(_IS_UNFINISHED)
                .with_for_update(key_share=True)
            )
            states = {row.id: row.state for row in tx.execute(unfinished)}
            leases = tx.execute(
                select(run_leases)
                .where(run_leases.c.run_id.in_(states), run_leases.c.node == node)
                .order_by(run_leases.c.run_id)
                .with_for_update(key_share=True)
            ).all()
            if not leases:
                raise UnknownNodeError(node)
            said = f"node {node} is gone: {reason}"
            for lease in leases:
                _set(tx, lease.run_id, epoch=lease.epoch + 1, until=_LONG_AGO, bound=False)
                state = states[lease.run_id]
                record(tx, [Move("run", lease.run_id, state, state, said, actor)], now)
            return [lease.run_id for lease in leases]

        return await self._database.write(transaction)

    # --- inside the transactions of daemon/store/runs.py ----------------------------------

    def may_begin(self, tx: Connection, run_id: str) -> bool:
        """Whether a planned run may begin here: its files are not on another node."""
        lease = tx.execute(select(run_leases).where(run_leases.c.run_id == run_id)).first()
        return lease is None or self._may_begin(lease, database_time(tx))

    def take(self, tx: Connection, run_id: str, *, bound: bool) -> int:
        """Take the lease of a planned run that begins, and give its epoch.

        `bound`: its files will be on this node. Raises LeaseLostError when they are on another.
        """
        lease, now = _lease(tx, run_id), database_time(tx)
        if lease is not None and not self._may_begin(lease, now):
            raise LeaseLostError(run_id, lease.node)
        return self._take(tx, run_id, lease, now, bound=bound)

    def taken(self, run_id: str, epoch: int) -> None:
        """The transaction that took a lease is committed."""
        self._epochs[run_id] = epoch

    def require(self, tx: Connection, run_id: str) -> None:
        """Lock a run. Raises LeaseLostError when it is under way, but not here."""
        if not _locked_state(tx, run_id).active:
            return
        lease = _lease(tx, run_id)
        epoch = self._epochs.get(run_id)
        if lease is None or epoch is None or not self._is_mine(lease, epoch):
            raise LeaseLostError(run_id, lease.node if lease is not None else None)

    def unbind(self, tx: Connection, run_id: str) -> None:
        """What the run needs is where every node can reach it."""
        _set(tx, run_id, bound=False)

    def _is_mine(self, lease: Row[Any], epoch: int) -> bool:
        return bool(lease.owner == self._tenancy.owner and lease.epoch == epoch)

    def _may_begin(self, lease: Row[Any], now: datetime) -> bool:
        is_here = not lease.bound or lease.owner == self._tenancy.owner
        return is_here or self._may_take(lease, now)

    def _may_take(self, lease: Row[Any] | None, now: datetime) -> bool:
        """Whether a lease is free. One that was never given has no columns, or only nulls."""
        if lease is None or lease.until is None:
            return True
        needs_files = lease.bound and lease.owner != self._tenancy.owner
        patience = self._tenancy.gone_after if needs_files else timedelta()
        return bool(lease.until + patience <= now)

    def _take(
        self, tx: Connection, run_id: str, lease: Row[Any] | None, now: datetime, *, bound: bool
    ) -> int:
        epoch = lease.epoch + 1 if lease is not None else 1
        values = {
            "owner": self._tenancy.owner,
            "node": self._tenancy.node,
            "epoch": epoch,
            "until": now + self._tenancy.lease,
            "bound": bound,
        }
        if lease is None:
            tx.execute(insert(run_leases).values(run_id=run_id, **values))
        else:
            _set(tx, run_id, **values)
        return epoch


def _locked_state(tx: Connection, run_id: str) -> RunState:
    """The state of a run, whose row is locked: first the run, then its lease, everywhere."""
    return RunState(
        tx.execute(
            select(runs.c.state).where(runs.c.id == run_id).with_for_update(key_share=True)
        ).scalar_one()
    )


def _lease(tx: Connection, run_id: str) -> Row[Any] | None:
    """A run's lease, locked."""
    return tx.execute(
        select(run_leases).where(run_leases.c.run_id == run_id).with_for_update(key_share=True)
    ).first()


def _set(tx: Connection, run_id: str, **values: Any) -> None:
    tx.execute(update(run_leases).where(run_leases.c.run_id == run_id).values(**values))
