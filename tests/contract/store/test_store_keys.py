"""What every Store promises of keys and transactions, in memory and on a real etcd alike."""

from __future__ import annotations

import asyncio

import pytest

from control_plane.errors import (
    CompactedError,
    RecordTooLargeError,
    StoreRefusedError,
)
from control_plane.store.port import (
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    Compare,
    Delete,
    Get,
    Operator,
    Put,
    Target,
    absent,
    none_created_since,
    none_written_since,
    unchanged,
)


def aiter_of(store, prefix):
    """A watch, begun late: the etcd store refuses at the call, the other at the first step."""

    async def batches():
        async for batch in store.watch(prefix, from_revision=1):
            yield batch

    return batches()


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


@pytest.mark.parametrize("compare_of", [none_created_since, none_written_since])
async def test_a_prefix_holds_while_nothing_new_is_under_it(store, compare_of):
    async def holds_at(revision, prefix="/p/"):
        return (await store.txn([compare_of(prefix, revision)], [])).succeeded

    # Nothing is under it, at whatever revision.
    assert await holds_at(0)
    first = await store.put("/p/a", b"1")
    assert not await holds_at(first - 1)
    assert await holds_at(first)
    await store.put("/q", b"1")
    await store.put("/p", b"1")
    assert await holds_at(first)
    second = await store.put("/p/b", b"1")
    assert not await holds_at(first)
    assert await holds_at(second)
    # What goes is not new, and what comes back is.
    await store.delete("/p/b")
    assert await holds_at(first)
    third = await store.put("/p/b", b"1")
    assert not await holds_at(second)
    assert await holds_at(third)


async def test_a_key_written_anew_was_written_and_not_created(store):
    first = await store.put("/p/a", b"1")
    await store.put("/p/a", b"2")
    assert (await store.txn([none_created_since("/p/", first)], [])).succeeded
    assert not (await store.txn([none_written_since("/p/", first)], [])).succeeded


async def test_a_condition_on_a_prefix_is_one_on_each_of_its_keys(store):
    await store.put("/p/a", b"1")
    await store.put("/p/b", b"2")

    async def all_are(value):
        compare = Compare("/p/", Target.VALUE, value, prefix=True)
        return (await store.txn([compare], [])).succeeded

    assert not await all_are(b"1")
    await store.put("/p/b", b"1")
    assert await all_are(b"1")
    # As with one absent key: its value compares with nothing.
    compare = Compare("/none/", Target.VALUE, b"1", Operator.NOT_EQUAL, prefix=True)
    assert not (await store.txn([compare], [])).succeeded
    absent_all = Compare("/none/", Target.CREATE_REVISION, 0, prefix=True)
    assert (await store.txn([absent_all], [])).succeeded
    with pytest.raises(StoreRefusedError):
        await store.txn([Compare("", Target.VERSION, 0, prefix=True)], [])


async def test_of_many_who_found_room_for_one_more_one_gets_it(store):
    revision = (await store.range("/p/")).revision

    async def take(number):
        result = await store.txn([none_created_since("/p/", revision)], [Put(f"/p/{number}", b"x")])
        return result.succeeded

    assert sum(await asyncio.gather(*(take(number) for number in range(20)))) == 1
