"""What every Store promises, on the in-memory store and on a real etcd alike."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from control_plane.errors import (
    CompactedError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    RecordTooLargeError,
    StoreRefusedError,
    StoreRestoredError,
    StoreUnavailableError,
)
from control_plane.store.port import (
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    Compare,
    Delete,
    EventKind,
    Get,
    Operator,
    Put,
    Target,
    absent,
    unchanged,
)
from tests.support.stores import (
    DEADLINE_S,
    StoreBench,
    answers,
    etcd_bench,
    eventually,
    memory_bench,
    take_events,
)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    """The same behaviour in less time: an endpoint that failed rests 0.2 s at first, not 1 s."""
    monkeypatch.setattr("control_plane.store.etcd.connection.FIRST_BACKOFF_S", 0.2)


@pytest.fixture(params=["memory", "etcd"])
async def bench(request, tmp_path):
    context = memory_bench() if request.param == "memory" else etcd_bench(tmp_path)
    async with context as made:
        yield made


@pytest.fixture
def store(bench: StoreBench):
    return bench.store


def aiter_of(store, prefix):
    """A watch, begun late: the etcd store refuses at the call, the other at the first step."""

    async def batches():
        async for batch in store.watch(prefix, from_revision=1):
            yield batch

    return batches()


# Keys


async def test_an_absent_key_is_none(store):
    assert await store.get("/a") is None


async def test_a_put_is_read_back_with_its_revisions(store):
    first = await store.put("/a", b"1")
    second = await store.put("/a", b"2")
    kv = await store.get("/a")
    assert second == first + 1
    assert (kv.key, kv.value, kv.version, kv.lease_id) == ("/a", b"2", 2, 0)
    assert (kv.create_revision, kv.mod_revision) == (first, second)


async def test_a_deleted_key_begins_anew(store):
    await store.put("/a", b"1")
    assert await store.delete("/a") is True
    assert await store.get("/a") is None
    revision = await store.put("/a", b"2")
    kv = await store.get("/a")
    assert (kv.version, kv.create_revision) == (1, revision)


async def test_deleting_what_is_absent_changes_no_revision(store):
    before = await store.put("/a", b"1")
    assert await store.delete("/b") is False
    assert (await store.range("/a")).revision == before


async def test_a_range_is_ordered_and_keeps_to_its_prefix(store):
    for key in ("/n/b", "/n/a", "/n0", "/n", "/m/z", "/n/é"):
        await store.put(key, key.encode())
    page = await store.range("/n/")
    assert [kv.key for kv in page.items] == ["/n/a", "/n/b", "/n/é"]
    assert page.more is False


async def test_pages_show_one_revision_though_the_store_moves_on(store):
    for number in range(5):
        await store.put(f"/n/{number}", b"old")
    first = await store.range("/n/", limit=2)
    await store.put("/n/3", b"new")
    await store.delete("/n/4")
    await store.put("/n/9", b"new")
    rest = await store.range("/n/", after=first.items[-1].key, revision=first.revision)
    assert first.more is True
    assert [(kv.key, kv.value) for kv in (*first.items, *rest.items)] == [
        (f"/n/{number}", b"old") for number in range(5)
    ]
    assert rest.revision == first.revision


async def test_a_compacted_revision_cannot_be_listed(bench, store):
    old = await store.put("/n/a", b"1")
    newer = await store.put("/n/a", b"2")
    await bench.compact(newer)
    with pytest.raises(CompactedError):
        await store.range("/n/", revision=old)
    assert (await store.range("/n/", revision=newer)).items[0].value == b"2"


async def test_a_future_revision_is_refused(store):
    revision = await store.put("/n/a", b"1")
    with pytest.raises(StoreRefusedError):
        await store.range("/n/", revision=revision + 100)


async def test_an_empty_prefix_is_refused(store):
    with pytest.raises(StoreRefusedError):
        await store.range("")
    with pytest.raises(StoreRefusedError):
        await anext(aiter_of(store, ""))


# Transactions

# version 2, created at the revision of the first put, value b"m", no lease
_PRESENT = [
    (Target.VERSION, Operator.EQUAL, 2, True),
    (Target.VERSION, Operator.EQUAL, 1, False),
    (Target.VERSION, Operator.GREATER, 1, True),
    (Target.VERSION, Operator.LESS, 2, False),
    (Target.VERSION, Operator.NOT_EQUAL, 2, False),
    (Target.CREATE_REVISION, Operator.GREATER, 0, True),
    (Target.MOD_REVISION, Operator.LESS, 1_000_000, True),
    (Target.LEASE, Operator.EQUAL, 0, True),
    (Target.LEASE, Operator.NOT_EQUAL, 7, True),
    (Target.VALUE, Operator.EQUAL, b"m", True),
    (Target.VALUE, Operator.NOT_EQUAL, b"m", False),
    (Target.VALUE, Operator.GREATER, b"l", True),
    (Target.VALUE, Operator.LESS, b"n", True),
]
_ABSENT = [
    (Target.VERSION, Operator.EQUAL, 0, True),
    (Target.CREATE_REVISION, Operator.EQUAL, 0, True),
    (Target.CREATE_REVISION, Operator.GREATER, 0, False),
    (Target.MOD_REVISION, Operator.EQUAL, 0, True),
    (Target.LEASE, Operator.EQUAL, 0, True),
    (Target.VALUE, Operator.EQUAL, b"", False),
    (Target.VALUE, Operator.NOT_EQUAL, b"m", False),
    (Target.VALUE, Operator.LESS, b"m", False),
]


async def test_comparisons_hold_as_etcd_defines_them(store):
    await store.put("/there", b"l")
    await store.put("/there", b"m")
    for key, cases in (("/there", _PRESENT), ("/not-there", _ABSENT)):
        for target, operator, operand, expected in cases:
            result = await store.txn([Compare(key, target, operand, operator)], [])
            assert result.succeeded is expected, (key, target, operator, operand)


async def test_a_comparison_with_the_wrong_type_is_refused(store):
    with pytest.raises(StoreRefusedError):
        await store.txn([Compare("/a", Target.VALUE, 1)], [])
    with pytest.raises(StoreRefusedError):
        await store.txn([Compare("/a", Target.VERSION, b"1")], [])


async def test_a_transaction_writes_all_in_one_revision(store):
    result = await store.txn([absent("/a")], [Put("/a", b"1"), Put("/b", b"2"), Delete("/c")])
    assert result.succeeded
    assert {(await store.get(key)).mod_revision for key in ("/a", "/b")} == {result.revision}


async def test_a_transaction_that_fails_reads_and_writes_nothing(store):
    revision = await store.put("/a", b"1")
    result = await store.txn([absent("/a")], [Put("/a", b"2")], [Get("/a"), Get("/b")])
    assert result.succeeded is False
    assert [kv and kv.value for kv in result.gets] == [b"1", None]
    assert result.revision == revision


async def test_operations_of_a_transaction_see_those_before_them(store):
    await store.put("/a", b"old")
    result = await store.txn([], [Get("/a"), Put("/a", b"new"), Get("/a"), Put("/b", b"x")])
    assert [kv.value for kv in result.gets] == [b"old", b"new"]


async def test_unchanged_lets_one_of_two_writers_win(store):
    revision = await store.put("/a", b"0")
    results = await asyncio.gather(
        *(store.txn([unchanged("/a", revision)], [Put("/a", bytes([n]))]) for n in range(8))
    )
    assert [result.succeeded for result in results].count(True) == 1


@pytest.mark.parametrize(
    "ops", [[Put("/a", b"1"), Put("/a", b"2")], [Put("/a", b"1"), Delete("/a")]]
)
async def test_writing_a_key_twice_in_a_transaction_is_refused(store, ops):
    with pytest.raises(StoreRefusedError):
        await store.txn([], ops)
    assert await store.get("/a") is None


async def test_what_is_too_large_is_refused_and_named(store):
    with pytest.raises(RecordTooLargeError, match="/big: takes 16385 bytes"):
        await store.put("/big", bytes(MAX_VALUE_BYTES + 1))
    with pytest.raises(StoreRefusedError):
        await store.txn([], [Put(f"/{n}", b"") for n in range(MAX_TXN_OPS + 1)])
    await store.put("/big", bytes(MAX_VALUE_BYTES))


# Leases


async def test_a_key_goes_with_its_lease_and_not_before(bench, store):
    lease = await store.grant(2)
    revision = await store.put("/a", b"1", lease_id=lease.lease_id)
    assert (await store.get("/a")).lease_id == lease.lease_id
    granted_s = bench.clock.monotonic()
    watch = store.watch("/a", from_revision=revision + 1)
    async with contextlib.aclosing(watch):
        waiting = asyncio.ensure_future(take_events(watch, 1))
        await bench.pass_time(1)
        assert not waiting.done()
        await bench.pass_time(1.5)
        (event,) = await waiting
    assert event.kind is EventKind.DELETE
    assert bench.clock.monotonic() - granted_s >= lease.granted_s - 0.1
    assert await store.get("/a") is None
    with pytest.raises(LeaseNotFoundError):
        await store.keep_alive(lease.lease_id)


async def test_renewals_keep_a_lease(bench, store):
    lease = await store.grant(1)
    await store.put("/a", b"1", lease_id=lease.lease_id)
    for _ in range(6):
        await bench.pass_time(0.4)
        assert await store.keep_alive(lease.lease_id) == 1.0
    assert await store.get("/a") is not None
    info = await store.time_to_live(lease.lease_id)
    assert info.granted_s == 1
    assert 0 <= info.remaining_s <= 1


async def test_many_leases_are_renewed_at_once(store):
    leases = [await store.grant(30) for _ in range(50)]
    renewed = await asyncio.gather(*(store.keep_alive(lease.lease_id) for lease in leases))
    assert renewed == [30.0] * 50


async def test_one_lost_lease_fails_alone(store):
    leases = [await store.grant(30) for _ in range(5)]
    await store.revoke(leases[2].lease_id)
    results = await asyncio.gather(
        *(store.keep_alive(lease.lease_id) for lease in leases), return_exceptions=True
    )
    assert isinstance(results[2], LeaseNotFoundError)
    assert results[2].lease_id == leases[2].lease_id
    assert [r for r in results if not isinstance(r, Exception)] == [30.0] * 4


async def test_revoking_removes_the_keys_at_once_and_may_be_repeated(store):
    lease = await store.grant(60)
    await store.put("/a", b"1", lease_id=lease.lease_id)
    await store.put("/b", b"1", lease_id=lease.lease_id)
    await store.revoke(lease.lease_id)
    assert (await store.range("/")).items == ()
    await store.revoke(lease.lease_id)
    with pytest.raises(LeaseNotFoundError):
        await store.time_to_live(lease.lease_id)
    with pytest.raises(LeaseNotFoundError):
        await store.keep_alive(lease.lease_id)


async def test_a_key_follows_its_last_writers_lease(store):
    first, second = await store.grant(60), await store.grant(60)
    await store.put("/moved", b"1", lease_id=first.lease_id)
    await store.put("/moved", b"2", lease_id=second.lease_id)
    await store.put("/freed", b"1", lease_id=first.lease_id)
    await store.put("/freed", b"2")
    await store.revoke(first.lease_id)
    assert (await store.get("/moved")).lease_id == second.lease_id
    assert (await store.get("/freed")).lease_id == 0


async def test_a_write_under_a_dead_lease_writes_nothing(store):
    lease = await store.grant(60)
    await store.revoke(lease.lease_id)
    with pytest.raises(LeaseNotFoundError) as caught:
        await store.put("/a", b"1", lease_id=lease.lease_id)
    assert caught.value.lease_id == lease.lease_id
    with pytest.raises(LeaseNotFoundError):
        await store.txn([], [Put("/b", b""), Put("/a", b"1", lease.lease_id)])
    assert (await store.range("/")).items == ()


async def test_a_dead_lease_in_the_branch_not_taken_does_no_harm(store):
    await store.put("/a", b"1")
    with contextlib.suppress(LeaseNotFoundError):
        # etcd checks the taken branch alone.
        result = await store.txn([absent("/a")], [Put("/b", b"", 4711)], [Get("/a")])
        assert result.succeeded is False
    assert await store.get("/b") is None


# Watching


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


# Outages


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
