"""What a script can tell from the exit status of `learnd`.

An error that means something else than REFUSED says so in its attribute `exit_status`.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """0 also when there was nothing to do, and the command said why."""

    DONE = 0
    REFUSED = 1
    """The daemon said no, or a check failed."""
    USAGE = 2
    """Wrong usage or settings."""
    UNREACHABLE = 3
    """No daemon or broker answers, or the token is unknown."""
    INTERRUPTED = 130
    """By Ctrl-C."""
