"""What every Store promises of watches and outages, in memory and on a real etcd alike."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from control_plane.errors import (
    CompactedError,
    OutcomeUnknownError,
    StoreRestoredError,
    StoreUnavailableError,
)
from control_plane.store.port import (
    EventKind,
    Put,
)
from tests.support.stores import (
    DEADLINE_S,
    answers,
    eventually,
    take_events,
)


async def test_a_watch_replays_and_then_follows(store):
    start = await store.put("/w/a", b"1")
    await store.put("/other", b"x")
    await store.put("/w/b", b"2")
    async with contextlib.aclosing(store.watch("/w/", from_revision=start)) as watch:
        replayed = await take_events(watch, 2)
        await store.delete("/w/a")
        await store.put("/w/b", b"3")
        followed = await take_events(watch, 2)
    seen = [(e.kind, e.kv.key, e.kv.value) for e in (*replayed, *followed)]
    assert seen == [
        (EventKind.PUT, "/w/a", b"1"),
        (EventKind.PUT, "/w/b", b"2"),
        (EventKind.DELETE, "/w/a", b""),
        (EventKind.PUT, "/w/b", b"3"),
    ]
    revisions = [e.kv.mod_revision for e in (*replayed, *followed)]
    assert revisions == sorted(revisions)


async def test_a_transactions_events_come_in_one_batch(store):
    start = await store.put("/w/x", b"")
    async with contextlib.aclosing(store.watch("/w/", from_revision=start + 1)) as watch:
        result = await store.txn([], [Put(f"/w/{n}", b"") for n in range(20)])
        async with asyncio.timeout(DEADLINE_S):
            batch = await anext(watch)
    assert [e.kv.key for e in batch.events] == [f"/w/{n}" for n in range(20)]
    assert batch.revision == result.revision


async def test_a_watch_from_the_future_waits(store):
    now = await store.put("/w/a", b"1")
    async with contextlib.aclosing(store.watch("/w/", from_revision=now + 3)) as watch:
        waiting = asyncio.ensure_future(take_events(watch, 1))
        for number in range(4):
            await store.put("/w/a", str(number).encode())
        (event, *_) = await waiting
    assert event.kv.mod_revision == now + 3


async def test_a_watch_of_compacted_history_says_so(bench, store):
    start = await store.put("/w/a", b"1")
    last = await store.put("/w/a", b"2")
    await bench.compact(last)
    watch = store.watch("/w/", from_revision=start)
    async with contextlib.aclosing(watch), asyncio.timeout(DEADLINE_S):
        with pytest.raises(CompactedError) as caught:
            await anext(watch)
    assert caught.value.compact_revision == last


async def test_two_watches_see_the_same(store):
    start = await store.put("/w/a", b"1")
    watches = [store.watch("/w/", from_revision=start) for _ in range(2)]
    await store.put("/w/b", b"2")
    seen = [await take_events(watch, 2) for watch in watches]
    for watch in watches:
        await watch.aclose()
    assert seen[0] == seen[1]


async def test_a_store_that_is_away_says_so_and_comes_back(bench, store):
    revision = await store.put("/a", b"1")
    lease = await store.grant(30)
    await store.put("/b", b"1", lease_id=lease.lease_id)
    await bench.fail()
    for call in (
        lambda: store.get("/a"),
        lambda: store.range("/"),
        lambda: store.put("/a", b"2"),
        lambda: store.grant(5),
        lambda: store.keep_alive(lease.lease_id),
    ):
        async with asyncio.timeout(5):
            # The first write may meet the connection while it breaks.
            with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):
                await call()
    await bench.recover()
    await answers(store)
    assert (await store.get("/a")).mod_revision == revision
    assert (await store.get("/b")).lease_id == lease.lease_id
    await store.keep_alive(lease.lease_id)


async def test_a_watch_outlives_an_outage_and_misses_nothing(bench, store):
    start = await store.put("/w/a", b"0")
    async with contextlib.aclosing(store.watch("/w/", from_revision=start)) as watch:
        assert len(await take_events(watch, 1)) == 1
        for round_ in range(2):
            await bench.fail()
            await bench.recover()
            await answers(store)
            for number in range(5):
                await store.put(f"/w/{round_}/{number}", b"")
            events = await take_events(watch, 5)
            assert [e.kv.key for e in events] == [f"/w/{round_}/{n}" for n in range(5)]


async def test_a_watch_whose_history_went_during_an_outage_says_so(bench, store):
    start = await store.put("/w/a", b"0")
    async with contextlib.aclosing(store.watch("/w/", from_revision=start)) as watch:
        await take_events(watch, 1)
        await bench.fail()
        await bench.recover()
        await answers(store)
        await store.put("/w/a", b"1")
        await bench.compact(await store.put("/w/a", b"2"))
        # The watch may have been quick enough to see both; then it goes on.
        with contextlib.suppress(CompactedError):
            events = await take_events(watch, 2)
            assert [e.kv.value for e in events] == [b"1", b"2"]


async def test_a_restore_ends_the_watch_and_the_store_goes_on(bench, store):
    for number in range(5):
        last = await store.put("/w/a", str(number).encode())
    async with contextlib.aclosing(store.watch("/w/", from_revision=last)) as watch:
        await take_events(watch, 1)
        waiting = asyncio.ensure_future(anext(watch))
        await bench.restore_empty()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(StoreRestoredError):
                await waiting
    await answers(store)
    assert await store.get("/w/a") is None
    assert await store.put("/w/a", b"new") < last


async def test_a_cancelled_watch_leaves_the_store_usable(store):
    start = await store.put("/w/a", b"0")
    watch = store.watch("/w/", from_revision=start + 1)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await watch.aclose()
    await store.put("/w/a", b"1")
    await eventually(lambda: True)
    assert (await store.get("/w/a")).value == b"1"
