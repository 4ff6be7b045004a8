"""Loops that look again when somebody wakes them, and after a while by themselves."""

import asyncio
import contextlib


async def woken(wake: asyncio.Event, *, within_seconds: float) -> None:
    """Wait until the event is set, or the time is over.

    Not `asyncio.wait_for`: up to Python 3.11 it loses a cancellation that comes together with the
    wake-up, and the daemon would not stop.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_seconds):
            await wake.wait()
