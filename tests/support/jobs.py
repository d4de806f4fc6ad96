"""What the contract suite of job stores runs on."""

import contextlib
from collections.abc import AsyncIterator

from gateway.jobs.store import JobStore, MemoryJobStore


@contextlib.asynccontextmanager
async def memory_jobs() -> AsyncIterator[JobStore]:
    yield MemoryJobStore(max_records=50)


JOB_STORES = [memory_jobs]
