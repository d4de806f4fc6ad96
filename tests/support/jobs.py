"""What the contract suite of job stores runs on."""

import contextlib
from collections.abc import AsyncIterator

from control_plane.store.memory import MemoryStore
from gateway.jobs.memory import MemoryJobStore
from gateway.jobs.remote import RemoteJobStore
from gateway.jobs.store import JobStore
from reelkit.clock import SystemClock
from tests.support.controlplanes import running


@contextlib.asynccontextmanager
async def memory_jobs() -> AsyncIterator[JobStore]:
    yield MemoryJobStore(max_records=50)


@contextlib.asynccontextmanager
async def remote_jobs() -> AsyncIterator[JobStore]:
    """By way of a control plane in this process, whose own store has a contract suite."""
    async with running(store=MemoryStore(clock=SystemClock())) as control:
        store = RemoteJobStore(endpoints=[control.address], clock=SystemClock(), patience_s=5.0)
        try:
            yield store
        finally:
            await store.close()


JOB_STORES = [memory_jobs, remote_jobs]
