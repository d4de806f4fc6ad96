"""Candidates of an election, in this process or one of their own, and the check of their writes.

As a program (``python -m tests.support.elections ENDPOINT NAME``) it campaigns and, while
it leads, writes its reign's revision again and again under its fence.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from control_plane.election import Election, Leadership
from control_plane.errors import NotLeaderError, StoreError
from control_plane.store.port import EventKind, Put, Store, WatchEvent
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock, SystemClock
from reelkit.tasks import TaskScope

PREFIX = "/e/"
KEY = PREFIX + "leader"
LOG = PREFIX + "log/"
TTL_S = 2


def election_on(store: Store, name: str, *, clock: Clock, ttl_s: float = TTL_S) -> Election:
    writer = FencedWriter(store, prefix=f"/writers/{name}/", clock=clock)
    return Election(store=store, writer=writer, key=KEY, identity=name, clock=clock, ttl_s=ttl_s)


@dataclass
class Candidate:
    name: str
    election: Election
    scope: TaskScope
    reigns: list[Leadership] = field(default_factory=list)

    async def write(self, reign: Leadership) -> None:
        """One write of a leader: what it says must agree with the key at that revision."""
        await reign.txn([], [Put(LOG + self.name, str(reign.revision).encode())])

    async def write_late(self, reign: Leadership) -> bool:
        """The same by a replica that was stopped and has yet to hear that it lost."""
        reign.lost.clear()
        try:
            await self.write(reign)
        except NotLeaderError:
            return False
        return True


@contextlib.asynccontextmanager
async def candidates(store: Store, *names: str, clock: Clock) -> AsyncIterator[list[Candidate]]:
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for name in names:
            scope = await stack.enter_async_context(TaskScope(name))
            election = election_on(store, name, clock=clock)
            scope.spawn(election.run(), name="run")
            made.append(Candidate(name, election, scope))
        yield made


def check_history(events: Iterable[WatchEvent]) -> int:
    """Fails where a write was applied while its writer did not lead; returns the writes."""
    leader, writes = 0, 0
    for event in events:
        if event.kv.key == KEY:
            leader = event.kv.create_revision if event.kind is EventKind.PUT else 0
        elif event.kv.key.startswith(LOG):
            writes += 1
            assert int(event.kv.value) == leader, f"a stale write at {event.kv.mod_revision}"
    return writes


async def history(store: Store) -> list[WatchEvent]:
    """Every change of the election's keys so far, in order."""
    last = await store.put(PREFIX + "end", b"")
    seen: list[WatchEvent] = []
    async with contextlib.aclosing(store.watch(PREFIX, from_revision=1)) as batches:
        async for batch in batches:
            seen.extend(batch.events)
            if batch.revision >= last:
                return seen
    raise AssertionError("the watch ended")


class CandidateProcess:
    """A candidate that can be stopped and killed."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen([sys.executable, "-m", __name__, endpoint, name])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.go_on()
        self.process.kill()
        self.process.wait()


async def _campaign(endpoint: str, name: str) -> None:
    from tests.support.stores import etcd_store

    async with etcd_store(endpoint) as store, TaskScope(name) as scope:
        election = election_on(store, name, clock=SystemClock())
        scope.spawn(election.run(), name="run")
        candidate = Candidate(name, election, scope)

        async def write_on(reign: Leadership) -> None:
            while True:
                with contextlib.suppress(StoreError):
                    await candidate.write(reign)
                await asyncio.sleep(0.005)

        await election.lead(write_on, name="write")


if __name__ == "__main__":
    asyncio.run(_campaign(sys.argv[1], sys.argv[2]))
