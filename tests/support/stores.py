"""Stores under test: the in-memory one and one on a real etcd, behind one face."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from control_plane.errors import StoreError
from control_plane.store.etcd import EtcdSettings, EtcdStore
from control_plane.store.memory import MemoryStore
from control_plane.store.port import Store, WatchBatch, WatchEvent
from reelkit.clock import Clock, ManualClock, SystemClock
from tests.support.etcd import EtcdProcess

DEADLINE_S = 20.0


class StoreBench(abc.ABC):
    """A store and the powers of its operator."""

    store: Store
    clock: Clock

    @abc.abstractmethod
    async def pass_time(self, seconds: float) -> None:
        """Lets time pass for the leases."""

    @abc.abstractmethod
    async def compact(self, revision: int) -> None:
        """Forgets history."""

    @abc.abstractmethod
    async def fail(self) -> None:
        """Takes the store away, as a crash."""

    @abc.abstractmethod
    async def recover(self) -> None:
        """Brings it back with its data."""

    @abc.abstractmethod
    async def restore_empty(self) -> None:
        """Puts an empty store in its place."""


class MemoryBench(StoreBench):
    """Time stands still here until a test lets it pass."""

    def __init__(self, store: MemoryStore, clock: ManualClock) -> None:
        self.store: MemoryStore = store
        self.clock: ManualClock = clock

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def compact(self, revision: int) -> None:
        self.store.compact(revision)

    async def fail(self) -> None:
        self.store.set_available(available=False)

    async def recover(self) -> None:
        self.store.set_available(available=True)

    async def restore_empty(self) -> None:
        self.store.restore_empty()


class EtcdBench(StoreBench):
    """A real etcd process; time is the machine's."""

    def __init__(self, store: EtcdStore, etcd: EtcdProcess) -> None:
        self.store: EtcdStore = store
        self.etcd = etcd
        self.clock = SystemClock()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def compact(self, revision: int) -> None:
        await self.store.compact(revision)

    async def fail(self) -> None:
        self.etcd.kill()

    async def recover(self) -> None:
        await self.etcd.start()

    async def restore_empty(self) -> None:
        self.etcd.kill()
        self.etcd.wipe()
        await self.etcd.start()


@contextlib.asynccontextmanager
async def memory_bench() -> AsyncIterator[MemoryBench]:
    """An in-memory store on a clock of its own."""
    clock = ManualClock()
    async with MemoryStore(clock=clock) as store:
        yield MemoryBench(store, clock)


@contextlib.asynccontextmanager
async def running_etcd(folder: Path, **options: object) -> AsyncIterator[EtcdProcess]:
    """A started etcd member, killed at the end."""
    etcd = EtcdProcess(folder, **options)  # type: ignore[arg-type]  # passed through
    await etcd.start()
    try:
        yield etcd
    finally:
        etcd.kill()


@contextlib.asynccontextmanager
async def etcd_bench(folder: Path) -> AsyncIterator[EtcdBench]:
    """A store on a fresh etcd process."""
    async with running_etcd(folder) as etcd, etcd_store(etcd.endpoint) as store:
        yield EtcdBench(store, etcd)


@contextlib.asynccontextmanager
async def etcd_store(*endpoints: str, **settings: object) -> AsyncIterator[EtcdStore]:
    """A store on an etcd that runs already."""
    parsed = EtcdSettings.model_validate({"endpoints": endpoints, **settings})
    async with EtcdStore(parsed, clock=SystemClock()) as store:
        yield store


async def eventually(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    """Returns when the condition holds; fails after the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            result = condition()
            if result if isinstance(result, bool) else await result:
                return
            await asyncio.sleep(0.01)


async def answers(store: Store) -> None:
    """Returns when the store answers again."""

    async def asked() -> bool:
        try:
            await store.get("/probe")
        except StoreError as error:
            if not error.retryable:
                raise
            return False
        return True

    await eventually(asked)


async def take_events(batches: AsyncIterator[WatchBatch], count: int) -> list[WatchEvent]:
    """That many events of a watch, or a failure at the deadline."""
    events: list[WatchEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(events) < count:
            events.extend((await anext(batches)).events)
    return events
