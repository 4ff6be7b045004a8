"""`learnd status --watch` in a real terminal, against a daemon that comes and goes."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from daemon.exit_status import ExitStatus
from tests.acceptance.test_cli import clean_environment
from tests.services.learnd import Learnd
from tests.services.ports import free_ports
from tests.waiting import wait_until

HIDDEN_CURSOR, SHOWN_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
OTHER_SCREEN, OWN_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-9]m")
ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """A terminal with one command in it: what it was sent, and what may be typed."""

    def __init__(self, arguments: list[str], env: Mapping[str, str], *, width: int = 80) -> None:
        self._terminal, end = pty.openpty()
        os.set_blocking(self._terminal, False)
        self.resize(width)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "daemon", *arguments],
            stdin=end,
            stdout=end,
            stderr=end,
            env={**env, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(end)
        self.sent = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def resize(self, width: int, height: int = 24) -> None:
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def read(self) -> bytes:
        """Everything that was sent until now."""
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: nobody writes any more
            while data := os.read(self._terminal, 65_536):
                self.sent += data
        return self.sent

    def wait_for(self, text: str) -> None:
        """Return when the text is sent, after what was sent before."""
        begin = len(self.read())
        wait_until(
            text,
            lambda: text.encode() in ESCAPE.sub(b"", self.read()[begin:]),
            explain=lambda: self.read()[-2_000:].decode(errors="replace"),
        )

    def lines(self) -> list[str]:
        """What was sent, without escapes."""
        return ESCAPE.sub(b"", self.read()).decode().replace("\r", "").split("\n")

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def end(self) -> int:
        """The exit status, when the command has ended."""
        wait_until("the end", lambda: self.read() and self._process.poll() is not None)
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@contextlib.contextmanager
def watching(learnd: Learnd, *arguments: str, **env: str) -> Iterator[Screen]:
    """A terminal that watches a daemon."""
    token = (learnd.data_dir / "token").read_text().strip()
    screen = Screen(
        ["status", "--watch", "--interval", "0.2", *arguments],
        {**clean_environment(), "LEARND_URL": learnd.url, "LEARND_TOKEN": token, **env},
    )
    try:
        yield screen
    finally:
        screen.close()


@pytest.fixture
def learnd(tmp_path: Path) -> Iterator[Learnd]:
    """A daemon at an address that it keeps when it is started again."""
    (port,) = free_ports(1)
    with Learnd(tmp_path, {"http": {"port": port}}) as daemon:
        daemon.start()
        yield daemon


def test_it_is_drawn_in_place_and_the_terminal_is_given_back(learnd: Learnd) -> None:
    with watching(learnd) as screen:
        screen.wait_for("nothing is being trained")
        screen.wait_for("healthy")
        assert OTHER_SCREEN in screen.sent
        assert HIDDEN_CURSOR in screen.sent
        assert COLOUR.search(screen.sent)
        screen.type(b"\x03")

        assert screen.end() == ExitStatus.INTERRUPTED
        assert screen.sent.rindex(OWN_SCREEN) > screen.sent.rindex(OTHER_SCREEN)
        assert screen.sent.rindex(SHOWN_CURSOR) > screen.sent.rindex(HIDDEN_CURSOR)
        assert b"Traceback" not in screen.sent


def test_a_daemon_that_goes_away_is_told_of_and_found_again(learnd: Learnd) -> None:
    with watching(learnd) as screen:
        screen.wait_for("healthy")
        learnd.kill()
        screen.wait_for("trying again")
        learnd.start()
        screen.wait_for("  healthy")


def test_it_follows_the_size_of_the_terminal(learnd: Learnd) -> None:
    with watching(learnd) as screen:
        screen.wait_for("healthy")
        assert max(len(line.rstrip()) for line in screen.lines()) <= 80
        screen.resize(110)
        wait_until("wider", lambda: max(len(line.rstrip()) for line in screen.lines()) > 100)


def test_there_is_no_colour_where_none_is_wanted(learnd: Learnd) -> None:
    with watching(learnd, NO_COLOR="1") as screen:
        screen.wait_for("healthy")
        assert not COLOUR.search(screen.sent)


def test_a_wrong_token_is_told_once_and_ends_it(learnd: Learnd) -> None:
    with watching(learnd, LEARND_TOKEN="wrong") as screen:
        assert screen.end() == ExitStatus.UNREACHABLE
        assert screen.sent.count(b"refuses the token") == 1
        assert OTHER_SCREEN not in screen.sent


def test_sigterm_gives_the_terminal_back_too(learnd: Learnd) -> None:
    with watching(learnd) as screen:
        screen.wait_for("healthy")
        os.kill(screen.pid, signal.SIGTERM)
        assert screen.end() == ExitStatus.INTERRUPTED
        assert screen.sent.rindex(OWN_SCREEN) > screen.sent.rindex(OTHER_SCREEN)


def test_into_a_pipe_go_plain_blocks(learnd: Learnd, tmp_path: Path) -> None:
    token = (learnd.data_dir / "token").read_text().strip()
    printed = tmp_path / "printed"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "status", "--watch", "--interval", "0.2"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), "LEARND_URL": learnd.url, "LEARND_TOKEN": token},
        )
        try:
            wait_until("three blocks", lambda: printed.read_bytes().count(b"learnd  http") >= 3)
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait()

    assert status == ExitStatus.INTERRUPTED
    assert b"\x1b" not in printed.read_bytes()
    assert b"Traceback" not in printed.read_bytes()


def test_json_is_not_for_watching(learnd: Learnd) -> None:
    with watching(learnd, "--json") as screen:
        assert screen.end() == ExitStatus.USAGE
