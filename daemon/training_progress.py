"""Show how far a training is: a bar on a terminal, now and then a line elsewhere. On stderr."""

import sys
import time
from types import TracebackType
from typing import Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from daemon.printing import console, duration
from learning.ports import JobProgress

LINE_SECONDS: Final = 5.0
"""Between two lines where there is no terminal; the first and the last step have theirs too."""


class TrainingProgress:
    """Called with each piece of progress; `with` puts the terminal back as it was."""

    def __init__(self) -> None:
        out = console(stderr=True)
        self._bar: Progress | None = None
        if out.is_terminal and not out.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=out,
            )
        self._task: TaskID | None = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: JobProgress) -> None:
        """Show it."""
        numbers = words_of(progress)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("training", total=progress.total_steps, numbers="")
            self._bar.update(self._task, completed=progress.step, numbers=numbers)
            return
        now = time.monotonic()
        if now >= self._next_line or progress.step == progress.total_steps:
            self._next_line = now + LINE_SECONDS
            print(
                f"step {progress.step:,} of {progress.total_steps:,}  {numbers}",
                file=sys.stderr,
                flush=True,
            )


def words_of(progress: JobProgress) -> str:
    """The numbers that a person waits for; what the provider does not measure is left out."""
    numbers = progress.numbers
    words = []
    if (loss := numbers.get("loss")) is not None:
        words.append(f"loss {loss:.4f}")
    if (speed := numbers.get("tokens_per_second")) is not None:
        words.append(f"{speed:,.0f} tokens/s")
    if (left := numbers.get("seconds_left")) is not None:
        words.append(f"{duration(left)} left")
    return "  ".join(words)
