"""What the role worker adds to `dask worker`, so that a node never continues with fewer processes than it should have.

    dask worker --worker-class bramble.engine.worker.Worker --preload-nanny bramble.engine.worker ...

In dask, a worker that loses its connection ends its nanny too, and `dask worker` continues with the other processes.
"""

import asyncio
import os
import signal

import distributed
from distributed.comm.core import Comm

_nanny_watchers: set[asyncio.Task[None]] = set()
"""Strong references to the tasks: the event loop keeps only weak ones."""


class Worker(distributed.Worker):
    """A worker that ends when it loses the scheduler but leaves its nanny, which restarts it until the scheduler is back."""

    async def handle_scheduler(self, comm: Comm) -> None:
        """Run until the connection to the scheduler ends, then close the worker."""
        try:
            await self.handle_stream(comm)
        finally:
            await self.close(reason="the connection to the scheduler is lost", nanny=False)


async def dask_setup(nanny: distributed.Nanny) -> None:
    """End the whole service when a nanny ends because its worker cannot be started; systemd then restarts all of them.

    dask calls this function for each nanny.
    """

    async def end_with_nanny() -> None:
        await nanny.finished()
        os.kill(os.getpid(), signal.SIGTERM)

    _nanny_watchers.add(asyncio.create_task(end_with_nanny()))
