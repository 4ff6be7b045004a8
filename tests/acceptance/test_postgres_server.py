"""The PostgreSQL that other tests stand on: an ordinary role, data that survives a crash.

These test the test bench, not learnd.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from tests.services.postgres import PostgresServer

SECONDS = 30.0
ROOT = Path(__file__).parents[2]


def ask(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, connect_timeout=5) as session:
        answer = session.execute(statement.encode())
        return answer.fetchall() if answer.description is not None else []


def test_learnd_connects_as_an_ordinary_role(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        rights = "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        assert ask(url, rights) == [(False, False)]


def test_text_sorts_otherwise_than_in_sqlite(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        assert ask(url, "SELECT 'a' < 'B'") == [(True,)]


def test_what_was_committed_survives_an_immediate_stop(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        assert ask(url, "SHOW fsync") == [("on",)]
        ask(url, "CREATE TABLE numbers AS SELECT 7 AS n")
        with postgres_server.outage(), pytest.raises(psycopg.OperationalError):
            ask(url, "SELECT 1")
        assert ask(url, "SELECT n FROM numbers") == [(7,)]


def test_the_server_dies_with_the_process_that_started_it(
    postgres_server: PostgresServer,
) -> None:
    # `postgres_server` is here for its skip where there is none; this one is a second server.
    script = """
from tests.services.postgres import PostgresServer
with PostgresServer() as server:
    print(server.url("postgres"), flush=True)
    input()
"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server may run as somebody else
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": folder},  # nobody will be left to clean up
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as owner:
            assert owner.stdout is not None
            with psycopg.connect(owner.stdout.readline().strip()) as session:
                owner.kill()
                with pytest.raises(psycopg.OperationalError):
                    session.execute("SELECT pg_sleep(%s)", [SECONDS])
