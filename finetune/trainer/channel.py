"""The trainer's end of the two pipes to its daemon.

Three threads around the one that works: a reader, a writer and a heartbeat.
They hold the promise that a trainer never outlives its daemon: when stdin
ends or stdout breaks in the middle of a request, the whole process group is
killed on the spot. It does not look into what it carries.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from queue import SimpleQueue

from finetune.trainer.protocol import (
    HEARTBEAT_SECONDS,
    Done,
    Failed,
    Heartbeat,
    Message,
    encode_line,
)

_READ_BYTES = 1 << 16
_FLUSH_SECONDS = 2.0


class Channel:
    """Lines in, messages out. ``send`` never blocks and may be called by any thread."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        # SimpleQueue, because a signal handler may raise inside get().
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        # One byte for each line, and one for each signal: see `next_line`.
        self._news_fd, self._tell_fd = os.pipe()
        os.set_blocking(self._tell_fd, False)
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        # Guards the two below. A heartbeat must not follow its request's last
        # message, and the end of stdin must see a request that was read but
        # not yet begun.
        self._lock = threading.Lock()
        self._working_on: str | None = None
        self._unanswered = 0
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)

    def open(self) -> None:
        """Start reading, writing and beating."""
        self._writer.start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def wake_on_signals(self) -> None:
        """End the sleep of ``next_line`` when a signal comes. In the main thread only.

        A signal that came after Python last looked for one, and before the sleep, would
        otherwise be handled no sooner than the next line comes.
        """
        signal.set_wakeup_fd(self._tell_fd, warn_on_full_buffer=False)

    def next_line(self) -> bytes | None:
        """Wait for a line of stdin; None at its end. Handlers of signals run meanwhile."""
        while self._lines.empty():
            os.read(self._news_fd, _READ_BYTES)
        return self._lines.get()

    def send(self, message: Message) -> None:
        """Say something about the current request."""
        self._outgoing.put(encode_line(message))

    def begin(self, request_id: str) -> None:
        """Beat for this request until ``end``."""
        with self._lock:
            self._working_on = request_id

    def end(self, message: Done | Failed) -> None:
        """Say how the line that ``next_line`` gave last ended."""
        with self._lock:
            self._working_on = None
            self._unanswered -= 1
            self.send(message)

    def close(self) -> None:
        """Wait until everything said is written, but not on a daemon that does not read."""
        self._outgoing.put(None)
        self._writer.join(_FLUSH_SECONDS)

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._read_fd, _READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                with self._lock:
                    self._unanswered += 1
                self._give(line)
        with self._lock:
            busy = self._unanswered > 0
        if busy:
            _die_with_group()
        self._give(None)

    def _give(self, line: bytes | None) -> None:
        self._lines.put(line)
        # A full pipe wakes whoever sleeps as well as another byte would.
        with contextlib.suppress(BlockingIOError):
            os.write(self._tell_fd, b".")

    def _write(self) -> None:
        while (line := self._outgoing.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._write_fd, line) :]
            except OSError:
                _die_with_group()

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(HEARTBEAT_SECONDS):
            with self._lock:
                if self._working_on is not None:
                    self.send(Heartbeat(id=self._working_on))


def _die_with_group() -> None:
    # Only a group of our own: started by hand we share the shell's.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
