"""What the role worker adds to `dask worker`: a node never goes on with fewer processes than it should have.

    dask worker --worker-class bramble.engine.worker.Worker --preload-nanny bramble.engine.worker ...

As dask has it, a worker that loses its connection takes its nanny along, and `dask worker` goes on with the others.
"""

import asyncio
import os
import signal

import distributed
from distributed.comm.core import Comm

_nanny_watchers: set[asyncio.Task[None]] = set()
"""The loop itself keeps only weak references."""


class Worker(distributed.Worker):
    """Ends when it loses the scheduler, and leaves the nanny, which starts it anew: it looks for the scheduler for ever."""

    async def handle_scheduler(self, comm: Comm) -> None:
        try:
            await self.handle_stream(comm)
        finally:
            await self.close(reason="the connection to the scheduler is lost", nanny=False)


async def dask_setup(nanny: distributed.Nanny) -> None:
    """Called by dask for each nanny: when one ends (its worker can not be started), all end, and systemd starts them anew."""

    async def end_with_nanny() -> None:
        await nanny.finished()
        os.kill(os.getpid(), signal.SIGTERM)

    _nanny_watchers.add(asyncio.create_task(end_with_nanny()))
