"""The process that runs the costly validators: `python -m consumers.screening.worker`.

The other end of consumers/screening/process.py. It keeps nothing but the validators, ends
with its stdin, and may be killed at any moment: whoever asked asks again.
"""

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consumers.screening.frames import receive, send
from consumers.screening.screener import Screener, screeners_of
from learning.events import OutputEvent
from learning.screening import PiiMode, Scrubbed, TaskRules

GRACE_SECONDS = 10.0
"""So long after its limit a validator ends this process, if there is no daemon to do it."""
LONGEST_MESSAGE = 500
"""Characters of a complaint."""


class CannotLoadError(Exception):
    """A validator of the rules in force cannot be made."""


class Validators:
    """The validators of the rules in force, made once."""

    def __init__(self, default: TaskRules, task_types: Mapping[str, TaskRules]) -> None:
        """Raises CannotLoadError."""
        self._default = _made(default)
        self._task_types = {name: _made(rules) for name, rules in task_types.items()}

    def of(self, task_type: str) -> Sequence[Screener]:
        """Those that an output of a task type has to pass, in their order."""
        return self._task_types.get(task_type, self._default)

    @property
    def names(self) -> tuple[list[str], dict[str, list[str]]]:
        """As they are told: for any task type, and for those that differ."""
        return (
            [one.name for one in self._default],
            {name: [one.name for one in ones] for name, ones in self._task_types.items()},
        )


def main() -> None:
    """Answer until stdin ends: with the daemon, however that ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a validator may print
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # or read
    validators: Validators | None = None
    limit = 0.0
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            asked = receive(stdin)
            if "rules" in asked:
                limit = asked["seconds"]
                try:
                    validators = Validators(*_rules(asked["rules"]))
                except CannotLoadError as error:
                    send(stdout, {"fault": str(error)})
                else:
                    default, task_types = validators.names
                    send(stdout, {"default": default, "task_types": task_types})
                continue
            assert validators is not None, "the rules come first"
            event = OutputEvent.model_validate_json(asked["event"])
            for answer in _answers(event, validators.of(event.task_type), limit):
                send(stdout, answer)


def _answers(
    event: OutputEvent, screeners: Sequence[Screener], limit: float
) -> Iterator[Mapping[str, Any]]:
    """What each validator says. Each sees what those before it scrubbed."""
    for screener in screeners:
        # By default the signal ends the process, also in the midst of a regular expression.
        signal.setitimer(signal.ITIMER_REAL, limit + GRACE_SECONDS)
        begun = time.perf_counter()
        found, leaving = _checked(screener, event)
        taken = time.perf_counter() - begun
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answer = {"validator": screener.name, "seconds": taken, "leaving": leaving}
        match found:
            case None:
                yield answer
            case Scrubbed(scrubbed, what):
                event = scrubbed
                text = event.model_dump_json(exclude_unset=True)
                yield answer | {"scrubbed": what[:LONGEST_MESSAGE], "event": text}
            case str():
                yield answer | {"complaint": found[:LONGEST_MESSAGE]}
            case _:
                yield answer | {"complaint": f"answered nonsense: {type(found).__name__}"}


def _checked(screener: Screener, event: OutputEvent) -> tuple[Any, bool]:
    """What a validator says, and whether this process should not be asked again."""
    try:
        return screener.check(event), False
    except MemoryError:
        return "ran out of memory", True
    except Exception as error:
        # Not its message: it may quote what must not be told.
        return f"broke on it: {type(error).__name__}", False


def _made(rules: TaskRules) -> Sequence[Screener]:
    try:
        return screeners_of(rules)
    except Exception as error:
        raise CannotLoadError(f"{type(error).__name__}: {error}") from error


def _rules(said: Mapping[str, Any]) -> tuple[TaskRules, Mapping[str, TaskRules]]:
    return _task_rules(said["default"]), {
        name: _task_rules(rules) for name, rules in said["task_types"].items()
    }


def _task_rules(said: Mapping[str, Any]) -> TaskRules:
    return TaskRules(**{**said, "pii": PiiMode(said["pii"])})


if __name__ == "__main__":
    main()
