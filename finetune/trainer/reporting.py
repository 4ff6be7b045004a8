"""What a request's work may say while it runs, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable

from finetune.trainer.protocol import PROGRESS_SECONDS, Message, Note

Send = Callable[[Message], None]


class Reporter:
    """Speaks for one request; drops progress that comes too fast."""

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.say = send
        self.notes: list[str] = []
        """What was said with `note`, in its order."""
        self._next_progress = 0.0

    def note(self, text: str) -> None:
        """Tell a person."""
        self.notes.append(text)
        self.say(Note(id=self.request_id, text=text))

    def progress_is_due(self, last: bool) -> bool:
        """Whether to send a progress message now. The last one is always due."""
        now = time.monotonic()
        if now < self._next_progress and not last:
            return False
        self._next_progress = now + PROGRESS_SECONDS
        return True
