"""Tell each fact to everyone who listens.

A listener that raises is logged and skipped: a fact may be lost, and the transaction that
it tells of has happened already.
"""

from collections.abc import Callable

import structlog

from learning.facts import Fact

log = structlog.get_logger(__name__)

Listener = Callable[[Fact], None]


class Announcer:
    """Passes facts on, in the order of the listeners. Is itself a learning.facts.Announce."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)

    def listen(self, listener: Listener) -> None:
        """Add a listener; it hears what is told from now on."""
        self._listeners.append(listener)

    def __call__(self, fact: Fact) -> None:
        """Tell a fact."""
        for listener in self._listeners:
            try:
                listener(fact)
            except Exception:
                log.exception("a listener failed", fact=type(fact).__name__)
