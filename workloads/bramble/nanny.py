"""What `dask worker --preload-nanny bramble.nanny` adds: a node never goes on with fewer processes than it should have.

A nanny ends with a worker that lost its connection, or that can not be started anew (the scheduler may still hold the name
of the old one), and `dask worker` goes on with the others. Here all end then, and systemd starts them anew.
"""

import asyncio
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Nanny

_watches: set[asyncio.Task[None]] = set()
"""The loop itself keeps only weak references."""


async def dask_setup(nanny: "Nanny") -> None:
    """Called by dask for each nanny."""

    async def leave_together() -> None:
        await nanny.finished()
        os.kill(os.getpid(), signal.SIGTERM)

    _watches.add(asyncio.create_task(leave_together()))
