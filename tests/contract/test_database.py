"""Transactions in threads: what passes through, what is an outage, what cancelling does."""

import asyncio
import json
import math
import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import DBAPIError

from daemon.store import Store, database
from daemon.store.database import Database, sqlite_url
from daemon.store.json_text import to_json
from daemon.store.tables import split_sides
from learning.ports import StoreUnavailableError
from tests.builders import JUDGE, NOON

ROW = {"key": bytes(16), "side": "train"}


def add_row(tx: Connection) -> None:
    tx.execute(insert(split_sides), ROW)


def sides(tx: Connection) -> list[str]:
    return list(tx.execute(select(split_sides.c.side)).scalars())


async def test_what_a_transaction_raises_rolls_it_back_and_passes_through(store: Store) -> None:
    def fail(tx: Connection) -> None:
        add_row(tx)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.database.write(fail)

    assert await store.database.read(sides) == []


async def test_wrong_sql_is_our_mistake_and_no_outage(store: Store) -> None:
    with pytest.raises(DBAPIError, match="nonsense"):
        await store.database.write(lambda tx: tx.execute(text("SELECT * FROM nonsense")))


async def test_a_cancelled_caller_waits_for_its_transaction(store: Store) -> None:
    entered, may_end = threading.Event(), threading.Event()

    def slow(tx: Connection) -> None:
        add_row(tx)
        entered.set()
        may_end.wait()

    writing = asyncio.create_task(store.database.write(slow))
    await asyncio.to_thread(entered.wait)
    writing.cancel()
    await asyncio.sleep(0)
    assert not writing.done()

    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert await store.database.read(sides) == ["train"]


async def test_a_reader_does_not_wait_for_a_writer_and_sees_nothing_half_done(
    store: Store,
) -> None:
    written, may_end = threading.Event(), threading.Event()

    def slow(tx: Connection) -> None:
        add_row(tx)
        written.set()
        may_end.wait()

    writing = asyncio.create_task(store.database.write(slow))
    await asyncio.to_thread(written.wait)

    assert await store.database.read(sides) == []

    may_end.set()
    await writing
    assert await store.database.read(sides) == ["train"]


async def test_a_file_that_another_program_locks_is_an_outage_and_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SQLITE_BUSY_SECONDS", 0.01)
    url = sqlite_url(tmp_path / "learnd.db")
    ours, theirs = Database(url), Database(url)
    try:
        await ours.migrate()
        locked, may_end = threading.Event(), threading.Event()

        def hold(_: Connection) -> None:
            locked.set()
            may_end.wait()

        holding = asyncio.create_task(theirs.write(hold))
        await asyncio.to_thread(locked.wait)
        with pytest.raises(StoreUnavailableError, match="locked"):
            await ours.write(add_row)

        may_end.set()
        await holding
        await ours.write(add_row)
        assert await theirs.read(sides) == ["train"]
    finally:
        await ours.close()
        await theirs.close()


async def test_a_store_that_cannot_be_opened_is_an_outage_and_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    nowhere = sqlite_url(tmp_path / "missing" / "learnd.db")

    with pytest.raises(StoreUnavailableError):
        await Store.open(nowhere, artifacts_dir=tmp_path, judge=JUDGE, clock=lambda: NOON)

    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("store-") for name in names)


def test_a_number_that_is_none_is_null_however_deep_it_lies() -> None:
    value = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": True}

    assert json.loads(to_json(value)) == {
        "a": [1.5, None, [None, {"b": None}]],
        "c": "NaN",
        "d": True,
    }
    assert to_json({"a": 1}) == '{"a": 1}'
