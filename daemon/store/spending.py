"""What attempts may cost and did cost: reserved with the intent to launch, settled at the end.

Steps inside the transactions that begin and end an attempt (daemon/store/runs.py), so that
no crash comes between the two. An amount counts for the UTC day and month in which it was
reserved. What a job costs and what fits is decided in learning/budget.py.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from daemon.store.dialect import take_turns
from daemon.store.tables import spending
from learning.budget import (
    Basis,
    Committed,
    Period,
    Price,
    Quote,
    counted,
    settled,
    shortage,
)

MONEY = "money"
"""Whose turn it is to look at the sums and to add to them."""


def obstacle(tx: Connection, run_id: str, quote: Quote, now: datetime) -> str | None:
    """Why a quote cannot be reserved, in words; None: it can, until the transaction ends.

    Whoever else wants to reserve waits for that, and then sees what was done.
    """
    take_turns(tx, [MONEY])
    taken = Committed(
        run=_total(tx, quote.currency, spending.c.run_id == run_id),
        day=committed_since(tx, quote.currency, Period.DAY, now),
        month=committed_since(tx, quote.currency, Period.MONTH, now),
    )
    found = shortage(quote.caps, taken, quote.amount)
    return None if found is None else found.in_words(quote.currency)


def committed_since(tx: Connection, currency: str, period: Period, now: datetime) -> Decimal:
    """What is spent and reserved of a currency in the day or month that `now` is in."""
    return _total(tx, currency, spending.c.reserved_at >= period.start(now))


def reserve(tx: Connection, run: Row[Any], provider: str, quote: Quote, now: datetime) -> None:
    """Keep an amount for the attempt that begins; `run` is as it was before."""
    tx.execute(
        insert(spending).values(
            run_id=run.id,
            attempt=run.attempt + 1,
            line=run.line,
            provider=provider,
            model=quote.model,
            currency=quote.currency,
            price=quote.price.as_json(),
            tokens=quote.most.trained_tokens,
            reserved=quote.amount,
            reserved_at=now,
        )
    )


def settle(
    tx: Connection,
    run_id: str,
    attempt: int,
    now: datetime,
    *,
    had_job: bool,
    trained_tokens: object,
) -> None:
    """An attempt has ended: put what it cost in the place of what is reserved for it.

    At the price of its beginning. Nothing is done where nothing is reserved, or settled
    already. `trained_tokens` is what the service says, if it says a number.
    """
    of_attempt = (
        spending.c.run_id == run_id,
        spending.c.attempt == attempt,
        spending.c.settled_at.is_(None),
    )
    row = tx.execute(select(spending).where(*of_attempt)).first()
    if row is None:
        return
    tokens = counted(trained_tokens)
    actual, basis = Decimal(0), Basis.NO_JOB
    if had_job:
        price = Price.from_json(row.price)
        actual, basis = settled(price, row.tokens, now - row.reserved_at, tokens)
    tx.execute(
        update(spending)
        .where(*of_attempt)
        .values(actual=actual, basis=basis, trained_tokens=tokens, settled_at=now)
    )


def _total(tx: Connection, currency: str, which: ColumnElement[bool]) -> Decimal:
    amount = func.sum(func.coalesce(spending.c.actual, spending.c.reserved))
    found: Decimal | None = tx.execute(
        select(amount).where(spending.c.currency == currency, which)
    ).scalar()
    return Decimal(0) if found is None else found
