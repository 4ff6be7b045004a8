"""SIGTERM and SIGUSR1 as an exception, raised only where the work can bear it.

SIGTERM ends the process. A handler that raised anywhere could tear a message
or a result in two; one that only sets a flag would wait for a model to load.
So the main thread says where it may be interrupted (``allowed``) and where it
looks by itself (``deferred``).

SIGUSR1 ends the request that is being worked on. Where the work looks by itself,
nothing is torn and the process goes on; elsewhere it does what SIGTERM does.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The daemon asked this process, or this request, to stop.

    Not an Exception, so that no library's ``except Exception`` swallows it.
    """


class Interruption:
    """Whether SIGTERM has come, and whether it may raise just now; whether SIGUSR1 has.

    To be used in the main thread only: that is where Python runs handlers.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raises = False
        self._has_request = self._is_cancelled = False

    def install(self) -> None:
        """Handle SIGTERM (and SIGINT, for a person at a terminal) and SIGUSR1 from now on."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGUSR1, self._cancel)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Inside is one request: SIGUSR1 means this one, and nothing outside."""
        self._has_request = True
        try:
            yield
        finally:
            self._has_request = self._is_cancelled = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Inside, SIGTERM raises Interrupted at once; one that came before raises here."""
        self._raises = True
        try:
            self.raise_if_requested()
            yield
        finally:
            self._raises = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside an ``allowed`` block: only note SIGTERM; raise on leaving, if it came."""
        self._raises = False
        try:
            yield
        finally:
            self._raises = True
        self.raise_if_requested()

    @contextmanager
    def deadly(self) -> Iterator[None]:
        """Inside, SIGTERM ends the process on the spot, also one that waits in a library's C++.

        Python would handle it no sooner than the library returns, which may be never. For a wait
        before there is anything to lose.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            self.raise_if_requested()  # one that came before
            yield
        finally:
            signal.signal(signal.SIGTERM, self._handle)

    @property
    def has_come(self) -> bool:
        """Whether SIGTERM has come, or SIGUSR1 for this request."""
        return self.requested or self._is_cancelled

    def raise_if_requested(self) -> None:
        """Raise Interrupted if `has_come`."""
        if self.has_come:
            raise Interrupted

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # A second signal would break into the reaction to the first one.
        first, self.requested = not self.requested, True
        if first and self._raises:
            raise Interrupted

    def _cancel(self, signum: int, frame: FrameType | None) -> None:
        if not self._has_request:
            return  # its request has just ended
        if self._raises:
            self._handle(signum, frame)
        self._is_cancelled = True
