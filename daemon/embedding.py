"""learnd inside another program's process: the whole loop, without Kafka and without a service.

    from daemon.embedding import open_learner
    from daemon.settings import Settings

    async with open_learner(Settings(data_dir="learning", http={"port": 0})) as learner:
        done = await learner.process_output("coding", "add three to x", "x + 3", approved=True)

It is a daemon in all but its process: one for a data directory, with its API on a port of
this machine, its trainer as a child, and whatever sources the settings name.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from daemon.app import build_daemon
from daemon.learner import Learner
from daemon.settings import Settings


@contextlib.asynccontextmanager
async def open_learner(settings: Settings) -> AsyncIterator[Learner]:
    """A learner whose loop runs as long as the block; leaving it stops as SIGTERM would.

    Installs no signal handler and configures no logging. `http.port` 0 takes a free port. Raises
    as `build_daemon`, and an ExceptionGroup when the loop ends by itself: then the block is
    cancelled.
    """
    async with build_daemon(settings) as daemon, asyncio.TaskGroup() as tasks:
        stopping = asyncio.Event()
        tasks.create_task(daemon.run(stopping), name="learnd")
        try:
            yield daemon.learner
        finally:
            stopping.set()
