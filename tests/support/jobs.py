"""What the contract suite of job stores runs on."""

import contextlib
from collections.abc import AsyncIterator

from control_plane.keys import GlobalKeys
from control_plane.store.memory import MemoryStore
from gateway.jobs.memory import MemoryJobStore
from gateway.jobs.remote import RemoteJobStore
from gateway.jobs.store import JobStore
from gateway.tenants import Policies
from reelkit.clock import SystemClock
from tests.support.controlplanes import running


@contextlib.asynccontextmanager
async def memory_jobs(policies: Policies | None = None) -> AsyncIterator[JobStore]:
    yield MemoryJobStore(max_records=50, policies=policies)


@contextlib.asynccontextmanager
async def remote_jobs(policies: Policies | None = None) -> AsyncIterator[JobStore]:
    """By way of a control plane in this process, whose own store has a contract suite.

    Its policies are in its store, as operators write them.
    """
    memory, clock = MemoryStore(clock=SystemClock()), SystemClock()
    if policies is not None:
        policy = policies.of("acme")
        await memory.put(GlobalKeys(prefix="/reelmesh").tenant("acme"), policy.SerializeToString())
    async with running(store=memory) as control:
        store = RemoteJobStore(
            endpoints=[control.address], clock=clock, patience_s=5.0, policies=policies
        )
        try:
            yield store
        finally:
            await store.close()


JOB_STORES = [memory_jobs, remote_jobs]
