"""What is built on a Store: writes with a known outcome, and copies that heal."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from control_plane.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from control_plane.store.memory import MemoryStore
from control_plane.store.mirror import ChangeKind, Mirror, MirrorChange, list_all
from control_plane.store.port import Get, Put, TxnResult, WatchBatch, absent, unchanged
from control_plane.store.writer import FencedWriter
from reelkit.clock import SystemClock
from tests.support.stores import (
    DEADLINE_S,
    answers,
    eventually,
)


def writer_on(store, *, slots=64, prefix="/writers/w0/"):
    return FencedWriter(store, prefix=prefix, clock=SystemClock(), slots=slots)


# Fenced writes


async def test_a_fenced_transaction_is_a_transaction(store):
    writer = writer_on(store)
    won = await writer.txn([absent("/a")], [Put("/a", b"1")])
    lost = await writer.txn([absent("/a")], [Put("/a", b"2")], [Get("/a"), Get("/b")])
    assert won.succeeded
    assert won.revision == (await store.get("/a")).mod_revision
    assert not lost.succeeded
    assert [kv and kv.value for kv in lost.gets] == [b"1", None]


async def test_two_writers_on_the_same_slots_hinder_but_do_not_fool_one_another(store):
    writers = [writer_on(store, slots=1) for _ in range(2)]
    for number in range(5):
        for writer in writers:
            revision = getattr(await store.get("/a"), "mod_revision", 0)
            result = await writer.txn([unchanged("/a", revision)], [Put("/a", bytes([number]))])
            assert result.succeeded


async def test_a_fenced_write_waits_for_a_store_that_comes_back(bench, store):
    writer = writer_on(store)
    await writer.txn([], [Put("/a", b"1")])
    await bench.fail()
    writing = asyncio.ensure_future(writer.txn([], [Put("/a", b"2")], patience_s=DEADLINE_S))
    await asyncio.sleep(0.1)
    assert not writing.done()
    await bench.recover()
    assert (await writing).succeeded
    assert (await store.get("/a")).version == 2


async def test_a_fenced_write_gives_up_in_time(bench, store):
    writer = writer_on(store)
    await writer.txn([], [Put("/a", b"1")])
    await bench.fail()
    async with asyncio.timeout(5):
        with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):
            await writer.txn([], [Put("/a", b"2")], patience_s=0.5)


class LossyStore:
    """Loses answers of transactions: of some that were applied, are applied later, or never."""

    def __init__(self, store: MemoryStore, *, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._late: list[asyncio.Task[None]] = []
        self.lost = {"applied": 0, "late": 0, "never": 0}

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    async def txn(self, compares, success, failure=()) -> TxnResult:
        fate = self._random.choice(["fine"] * 5 + ["applied", "late", "never"])
        if fate == "fine":
            await asyncio.sleep(0)
            return await self._store.txn(compares, success, failure)
        self.lost[fate] += 1
        if fate == "applied":
            await self._store.txn(compares, success, failure)
        if fate == "late":
            delayed = self._apply_later(compares, success, failure, self._random.random() * 0.02)
            self._late.append(asyncio.ensure_future(delayed))
        raise OutcomeUnknownError("the answer was lost")

    async def _apply_later(self, compares, success, failure, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._store.txn(compares, success, failure)

    async def settle(self) -> None:
        await asyncio.gather(*self._late)


async def count_up(store, writer, times: int) -> int:
    """Increments a counter by compare-and-swap; returns how often it was told it won."""
    won = 0
    while won < times:
        kv = await store.get("/counter")
        value, revision = (int(kv.value), kv.mod_revision) if kv else (0, 0)
        result = await writer.txn(
            [unchanged("/counter", revision)], [Put("/counter", str(value + 1).encode())]
        )
        won += result.succeeded
    return won


@pytest.mark.parametrize("seed", range(4))
async def test_lost_answers_are_found_out_and_late_writes_are_fenced_off(monkeypatch, seed):
    monkeypatch.setattr("control_plane.store.writer.RETRY_DELAY_S", 0.001)
    async with MemoryStore(clock=SystemClock()) as memory:
        lossy = LossyStore(memory, seed=seed)
        writer = FencedWriter(lossy, prefix="/w/", clock=SystemClock(), slots=4)
        async with asyncio.timeout(DEADLINE_S):
            told = await asyncio.gather(*(count_up(lossy, writer, 25) for _ in range(4)))
        await lossy.settle()
        assert min(lossy.lost.values()) > 0
        assert int((await memory.get("/counter")).value) == sum(told) == 100


async def test_a_slot_that_somebody_else_took_leaves_the_outcome_unknown():
    async with MemoryStore(clock=SystemClock()) as memory:

        class Meddled(LossyStore):
            async def txn(self, compares, success, failure=()) -> TxnResult:
                if any(op.key == "/a" for op in success):
                    await memory.put("/w/0", b"somebody else")
                    raise OutcomeUnknownError("the answer was lost")
                return await memory.txn(compares, success, failure)

        writer = FencedWriter(Meddled(memory, seed=0), prefix="/w/", clock=SystemClock(), slots=1)
        with pytest.raises(OutcomeUnknownError, match="replica_id"):
            await writer.txn([], [Put("/a", b"1")])


# Mirrors


class Copy:
    """What a reader of a mirror knows, and that it never heard a thing twice."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}
        self.changes: list[MirrorChange] = []

    async def follow(self, mirror: Mirror) -> None:
        async with contextlib.aclosing(mirror.changes()) as changes:
            async for change in changes:
                self.take(change)

    def take(self, change: MirrorChange) -> None:
        if change.kind is ChangeKind.SNAPSHOT:
            self.state.clear()
        elif self.changes:
            assert change.revision > self.changes[-1].revision
        self.changes.append(change)
        self.state.update({kv.key: kv.value for kv in change.upserts})
        for key in change.deleted_keys:
            self.state.pop(key, None)


@contextlib.asynccontextmanager
async def followed(store, **options) -> AsyncIterator[tuple[Copy, Mirror]]:
    copy = Copy()
    mirror = Mirror(store, "/m/", clock=SystemClock(), **options)
    task = asyncio.ensure_future(copy.follow(mirror))
    try:
        yield copy, mirror
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            raise AssertionError("the mirror ended") from task.exception()


async def agrees(store, copy: Copy) -> bool:
    try:
        items, _ = await list_all(store, "/m/")
    except StoreError:
        return False
    return copy.state == {kv.key: kv.value for kv in items}


async def test_a_mirror_begins_with_everything_over_many_pages(store):
    for number in range(0, 600, 100):
        await store.txn([], [Put(f"/m/{n:04}", b"x") for n in range(number, number + 100)])
    async with followed(store) as (copy, _):
        await eventually(lambda: len(copy.state) == 600)
        assert copy.changes[0].kind is ChangeKind.SNAPSHOT
        assert len(copy.changes) == 1


async def test_a_mirror_follows_and_keeps_to_its_prefix(store):
    await store.put("/m/a", b"1")
    async with followed(store) as (copy, _):
        await eventually(lambda: copy.state == {"/m/a": b"1"})
        await store.put("/other", b"1")
        await store.put("/m/b", b"2")
        await store.delete("/m/a")
        await eventually(lambda: copy.state == {"/m/b": b"2"})


async def test_a_mirror_heals_by_difference_when_its_history_is_gone(bench, store):
    await store.put("/m/stays", b"1")
    await store.put("/m/goes", b"1")
    async with followed(store) as (copy, mirror):
        await eventually(lambda: len(copy.state) == 2)
        await bench.fail()
        await bench.recover()
        await answers(store)
        await store.delete("/m/goes")
        await bench.compact(await store.put("/m/new", b"1"))
        await eventually(lambda: copy.state == {"/m/stays": b"1", "/m/new": b"1"})
        # Whether by the watch or by relist and diff: nothing came twice.
        told = [kv.key for change in copy.changes[1:] for kv in change.upserts]
        assert told == ["/m/new"]
        assert mirror.repairs <= 1


async def test_a_mirror_takes_a_restored_store_whole(bench, store):
    for number in range(3):
        await store.put(f"/m/{number}", b"old")
    async with followed(store) as (copy, _):
        await eventually(lambda: len(copy.state) == 3)
        await bench.restore_empty()
        await answers(store)
        await store.put("/m/new", b"new")
        await eventually(lambda: copy.state == {"/m/new": b"new"})
        assert [c.kind for c in copy.changes].count(ChangeKind.SNAPSHOT) == 2


async def test_a_mirror_agrees_after_random_work_outages_and_compactions(bench, store):
    rng = random.Random(7)
    async with followed(store) as (copy, _):
        for round_ in range(3):
            for _ in range(40):
                key = f"/m/{rng.randrange(12)}"
                if rng.random() < 0.3:
                    await store.delete(key)
                else:
                    revision = await store.put(key, rng.randbytes(8))
            if round_ < 2:
                await bench.fail()
                await bench.recover()
                await answers(store)
                await bench.compact(revision)
        await eventually(lambda: agrees(store, copy))


async def test_a_relist_finds_what_a_watch_lost():
    async with MemoryStore(clock=SystemClock()) as memory:

        class Forgetful(LossyStore):
            """Its watch drops an event in silence, as a buggy member might."""

            async def watch(self, prefix: str, *, from_revision: int) -> AsyncIterator[WatchBatch]:
                async for batch in memory.watch(prefix, from_revision=from_revision):
                    if batch.events[0].kv.key != "/m/lost":
                        yield batch

        forgetful = Forgetful(memory, seed=0)
        async with followed(forgetful, relist_s=0.2) as (copy, mirror):
            await eventually(lambda: mirror.relists == 1)
            await memory.put("/m/lost", b"1")
            await memory.put("/m/seen", b"1")
            await eventually(lambda: copy.state == {"/m/lost": b"1", "/m/seen": b"1"})
            assert mirror.repairs == 1
