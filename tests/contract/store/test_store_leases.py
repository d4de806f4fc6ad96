"""What every Store promises of leases, in memory and on a real etcd alike."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from control_plane.errors import (
    LeaseNotFoundError,
)
from control_plane.store.port import (
    EventKind,
    Get,
    Put,
    absent,
)
from tests.support.stores import (
    take_events,
)


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
