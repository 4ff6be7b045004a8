"""How a request fails: one exception, carrying the code that the daemon acts on."""

from __future__ import annotations

import errno

from finetune.trainer.protocol import FailureCode


class RequestFailed(Exception):
    """The request cannot be done; the message says why and what to do."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code: FailureCode = code


def failure_code(error: BaseException) -> FailureCode:
    """The code of any exception that a request ended with.

    Knows torch's own errors by name, because torch is perhaps what is missing.
    """
    if isinstance(error, RequestFailed):
        return error.code
    if isinstance(error, ImportError):  # or installed, and broken
        return "not_installed"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    if ran_out_of_memory(error):
        return "out_of_memory"
    return "internal"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether main or accelerator memory was too small for what was tried."""
    # The CPU allocator has no exception class of its own.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )
