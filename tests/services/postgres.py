"""A real PostgreSQL for the tests: one server on loopback, its data in a temporary folder.

Blocking: async tests call it through `asyncio.to_thread`. Whoever is tested connects as an
ordinary role that owns its database and nothing else; making databases is the server's own
business. Text sorts as in a dictionary, as it does on many servers and never in SQLite, so
that a query which leans on one order of text is found out. fsync is on.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString, Self

import psycopg
from psycopg import sql

from tests.services.ports import free_ports
from tests.services.process import TiedProcess
from tests.waiting import wait_until

OLDEST_POSTGRES = 15
"""The first whose initdb can be asked for an order of text."""

START_SECONDS = 60.0
STOP_SECONDS = 20.0
INITDB_SECONDS = 120.0

FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT
"""How to stop it, as `pg_ctl stop -m` names it: sessions are ended, or cut off as in a crash."""

ROLE = "learnd"
PASSWORD = "not-a-secret"
_SUPERUSER = "postgres"

# Debian keeps them apart from the commands for users, and every version in a folder of its own.
_DEBIAN = Path("/usr/lib/postgresql")
# initdb and the server refuse to run as root.
_ORDINARY_USERS = ("postgres", "nobody")


class PostgresError(Exception):
    """The server ended, or could not be made; with its last words."""


def find_programs() -> Path | None:
    """The folder of a server's programs: of PATH, or Debian's newest."""
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve().parent] if on_path is not None else []
    if _DEBIAN.is_dir():
        numbered = [folder for folder in _DEBIAN.iterdir() if folder.name.isdecimal()]
        candidates += [
            folder / "bin" for folder in sorted(numbered, key=lambda one: -int(one.name))
        ]
    return next((folder for folder in candidates if _is_recent(folder / "postgres")), None)


def _is_recent(server: Path) -> bool:
    try:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    version = said.stdout.split()[2]  # "postgres (PostgreSQL) 15.13 (Debian ...)", or "18beta1"
    major = version.partition(".")[0]
    return major.isdecimal() and int(major) >= OLDEST_POSTGRES


def missing() -> str | None:
    """What this machine lacks to run a server, or None."""
    if find_programs() is None:
        return f"no PostgreSQL {OLDEST_POSTGRES} or later; `make test` installs it, or says how"
    if os.geteuid() == 0 and (_ordinary_user() is None or shutil.which("setpriv") is None):
        return "PostgreSQL does not run as root, and there is no user and no setpriv to run it by"
    return None


class PostgresServer:
    """One server: started on entry, ended and its data deleted on exit.

    It keeps its port and its data over `outage`. It dies with the process that made it,
    also when that is killed.
    """

    def __init__(self) -> None:
        self._cleanup = contextlib.ExitStack()
        self._process: TiedProcess | None = None

    def __enter__(self) -> Self:
        programs = find_programs()
        if programs is None:
            raise PostgresError(f"no PostgreSQL {OLDEST_POSTGRES} or later")
        folder = Path(
            self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="learnd-postgres-"))
        )
        try:
            self._programs = programs
            self._folder = folder
            self._log = folder / "server.log"
            (self._port,) = free_ports(1)
            self._initialise()
            self.start()
            self._administer(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Not SIGKILL: the server's processes are in sessions of their own, and would still
        # be writing into the folder while it is deleted.
        self.stop(IMMEDIATE)
        self._cleanup.close()

    def start(self) -> None:
        """Start it, and return when it answers. Does nothing when it runs."""
        if self._process is not None:
            return
        self._process = process = TiedProcess(
            [
                *_as_ordinary_user(),
                self._programs / "postgres",
                *("-D", self._folder / "data", "-p", str(self._port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                *("-c", "shared_buffers=32MB"),
            ],
            log=self._log,
        )

        def answers() -> bool:
            if process.exit_status is not None:
                ended = f"the server ended with status {process.exit_status}"
                raise PostgresError(f"{ended}\n{process.log_tail()}")
            try:
                self._administer("SELECT 1")
            except psycopg.OperationalError:
                return False
            return True

        try:
            wait_until(
                "start of PostgreSQL", answers, seconds=START_SECONDS, explain=process.log_tail
            )
        except BaseException:
            self.stop(IMMEDIATE)
            raise

    def stop(self, how: signal.Signals = FAST) -> None:
        """End it and keep its data. Does nothing when it is down."""
        if self._process is not None:
            self._process.end(how, patience_seconds=STOP_SECONDS)
            self._process = None

    @contextlib.contextmanager
    def outage(self, how: signal.Signals = IMMEDIATE) -> Iterator[None]:
        """The server is down inside the block, and back after it, whatever happens there."""
        self.stop(how)
        try:
            yield
        finally:
            self.start()

    def create_database(self) -> str:
        """Make an empty database that ROLE owns. Returns its name."""
        name = f"learnd_{uuid.uuid4().hex[:12]}"
        self._administer("CREATE DATABASE {} OWNER {}", sql.Identifier(name), sql.Identifier(ROLE))
        return name

    def drop_database(self, name: str) -> None:
        """Delete a database, whoever is still connected to it."""
        self._administer("DROP DATABASE {} WITH (FORCE)", sql.Identifier(name))

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The address of a new database, which is gone after the block."""
        name = self.create_database()
        try:
            yield self.url(name)
        finally:
            self.drop_database(name)

    def url(self, database: str) -> str:
        """The address of a database, for ROLE."""
        return f"postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def session(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A session of the superuser, every statement a transaction; the caller closes it."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self._port,
            user=_SUPERUSER,
            password=PASSWORD,
            dbname=database,
            connect_timeout=5,
            autocommit=True,
        )

    def _administer(self, statement: LiteralString, *names: sql.Composable) -> None:
        with self.session() as session:
            session.execute(sql.SQL(statement).format(*names))

    def _initialise(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        if (user := _ordinary_user()) is not None:
            for path in (self._folder, password_file):
                shutil.chown(path, user)
        made = subprocess.run(
            [
                *_as_ordinary_user(),
                self._programs / "initdb",
                *("-D", self._folder / "data", "--username", _SUPERUSER),
                *("--pwfile", password_file, "--auth=scram-sha-256", "--no-sync"),
                *("--encoding=UTF8", "--locale=C", "--locale-provider=icu", "--icu-locale=en"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INITDB_SECONDS,
            check=False,
            cwd="/",  # the user may not be allowed where the tests are
        )
        if made.returncode != 0:
            raise PostgresError(f"initdb failed\n{made.stdout}")


def _ordinary_user() -> str | None:
    """Whom to run the server as when we are root; None when we are not, or there is nobody."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in _ORDINARY_USERS if name in known), None)


def _as_ordinary_user() -> list[str]:
    """What to put before a command, so that it does not run as root."""
    user = _ordinary_user()
    if user is None:
        return []
    return ["setpriv", f"--reuid={user}", f"--regid={_group_of(user)}", "--clear-groups", "--"]


def _group_of(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
