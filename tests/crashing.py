"""Run the command line, and die of SIGKILL before or after the nth call of one function:

    python -m tests.crashing after 1 daemon.store.runs:Runs.adopt run

The product has no hooks for this: the function is wrapped from outside.
"""

import functools
import importlib
import inspect
import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Wrap the function, then be `learnd`."""
    when, nth, call, *arguments = sys.argv[1:]
    wrap(call, before=when == "before", nth=int(nth))
    sys.argv = ["learnd", *arguments]
    from daemon.cli import main as learnd

    learnd()


def wrap(call: str, *, before: bool, nth: int) -> None:
    """Put the crash around `module:function` or `module:Class.method`."""
    module, _, path = call.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, crashing(getattr(owner, name), before=before, nth=nth))


def crashing(function: Callable[..., Any], *, before: bool, nth: int) -> Callable[..., Any]:
    """The function with the crash in its nth call."""
    calls = itertools.count(1)

    def passed(is_before: bool, number: int) -> None:
        if number == nth and is_before == before:
            os.kill(os.getpid(), signal.SIGKILL)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            number = next(calls)
            passed(True, number)
            result = await function(*args, **kwargs)
            passed(False, number)
            return result

        return awaited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        passed(True, number)
        result = function(*args, **kwargs)
        passed(False, number)
        return result

    return called


if __name__ == "__main__":
    main()
