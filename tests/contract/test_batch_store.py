"""What every BatchStore promises, in memory and by way of a control plane."""

import contextlib

import pytest
from reelmesh.v1 import batch_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from control_plane.store.memory import MemoryStore
from gateway.batches.memory import MemoryBatchStore
from gateway.batches.remote import RemoteBatchStore
from gateway.errors import BatchNotFinished, IdempotencyConflict
from gateway.jobs.store import Owner
from reelkit.clock import SystemClock
from tests.support.controlplanes import running

ME, OTHER = Owner("g0", "life-1"), Owner("g1", "life-1")


@contextlib.asynccontextmanager
async def in_memory():
    yield MemoryBatchStore()


@contextlib.asynccontextmanager
async def remote():
    async with running(store=MemoryStore(clock=SystemClock())) as control:
        store = RemoteBatchStore(endpoints=[control.address], clock=SystemClock(), patience_s=5.0)
        try:
            yield store
        finally:
            await store.close()


@pytest.fixture(params=[in_memory, remote])
async def store(request):
    async with request.param() as found:
        yield found


def batch(batch_id, *, tenant="acme", key="", digest="d", owner=ME, epoch=1):
    return pb.BatchRecord(
        batch=batch_pb2.Batch(id=batch_id, status=batch_pb2.BATCH_STATUS_QUEUED),
        tenant=tenant,
        owner_gateway=owner.gateway_id,
        owner_incarnation=owner.incarnation,
        epoch=epoch,
        idempotency_key=key,
        request_digest=digest,
    )


def ended(record, *, expires_s=100, completed_s=1):
    copy = pb.BatchRecord()
    copy.CopyFrom(record)
    copy.batch.status = batch_pb2.BATCH_STATUS_COMPLETED
    copy.batch.completed_at.FromSeconds(completed_s)
    copy.batch.expires_at.FromSeconds(expires_s)
    return copy


async def test_a_record_is_there_once_created_and_its_tenants_alone(store):
    _, created = await store.create(batch("batch_ap-1"))
    assert created
    assert (await store.get("acme", "batch_ap-1")).batch.id == "batch_ap-1"
    assert await store.get("other", "batch_ap-1") is None
    assert await store.get("acme", "batch_ap-2") is None
    # The same call again finds its own write.
    assert (await store.create(batch("batch_ap-1")))[1]


async def test_one_key_makes_one_record_and_is_free_again_once_it_is_deleted(store):
    first = batch("batch_ap-1", key="k")
    await store.create(first)
    standing, created = await store.create(batch("batch_ap-2", key="k"))
    assert (standing.batch.id, created) == ("batch_ap-1", False)
    assert (await store.find_key("acme", "k")).batch.id == "batch_ap-1"
    assert await store.find_key("other", "k") is None
    with pytest.raises(IdempotencyConflict):
        await store.create(batch("batch_ap-3", key="k", digest="e"))
    await store.update(ended(first))
    await store.delete("acme", "batch_ap-1")
    assert (await store.create(batch("batch_ap-4", key="k")))[1]


async def test_a_write_counts_for_its_owner_alone(store):
    await store.create(batch("batch_ap-1"))
    standing, claimed = await store.claim("batch_ap-1", epoch=1, owner=OTHER)
    assert (claimed, standing.epoch, standing.owner_gateway) == (True, 2, "g1")
    # Repeated, it is known for one's own; another is too late.
    assert (await store.claim("batch_ap-1", epoch=1, owner=OTHER))[1]
    assert not (await store.claim("batch_ap-1", epoch=1, owner=ME))[1]
    late = batch("batch_ap-1")
    late.batch.counts.completed = 5
    standing, written = await store.update(late)
    assert (written, standing.batch.counts.completed) == (False, 0)
    assert await store.claim("batch_ap-9", epoch=1, owner=ME) == (None, False)


async def test_a_cancel_is_not_lost_to_a_write_that_did_not_know_of_it(store):
    mine = batch("batch_ap-1")
    await store.create(mine)
    cancelled = await store.cancel("acme", "batch_ap-1")
    assert cancelled.batch.status == batch_pb2.BATCH_STATUS_CANCELLING
    assert await store.cancel("other", "batch_ap-1") is None
    standing, written = await store.update(mine)
    assert (written, standing.cancel_requested) == (True, True)
    assert standing.batch.status == batch_pb2.BATCH_STATUS_CANCELLING


async def test_the_first_end_stands_and_a_repeated_write_of_it_is_known(store):
    mine = batch("batch_ap-1")
    await store.create(mine)
    assert (await store.update(ended(mine)))[1]
    assert (await store.update(ended(mine)))[1]
    assert not (await store.update(ended(mine, completed_s=2)))[1]
    assert not (await store.claim("batch_ap-1", epoch=1, owner=OTHER))[1]
    assert not (await store.cancel("acme", "batch_ap-1")).cancel_requested


async def test_a_deleted_one_is_hidden_at_once_and_known_until_it_is_purged(store):
    mine = batch("batch_ap-1")
    await store.create(mine)
    with pytest.raises(BatchNotFinished):
        await store.delete("acme", "batch_ap-1")
    with pytest.raises(BatchNotFinished):
        await store.purge("batch_ap-1")
    await store.update(ended(mine, expires_s=10**9))
    assert await store.delete("other", "batch_ap-1") is None
    assert (await store.delete("acme", "batch_ap-1")).batch.id == "batch_ap-1"
    assert await store.get("acme", "batch_ap-1") is None
    assert await store.list_page("acme", limit=5, after="") == ([], False)
    assert await store.known({"batch_ap-1", "batch_ap-2"}) == {"batch_ap-1"}
    (expired,) = await store.expired(5.0, limit=5)
    assert expired.deleted
    await store.purge("batch_ap-1")
    await store.purge("batch_ap-1")
    assert await store.known({"batch_ap-1"}) == set()
    assert await store.expired(5.0, limit=5) == []


async def test_ended_ones_expire_in_their_time(store):
    for number, expires_s in ((1, 30), (2, 10), (3, 20)):
        record = batch(f"batch_ap-{number}")
        await store.create(record)
        await store.update(ended(record, expires_s=expires_s))
    await store.create(batch("batch_ap-4"))
    found = {record.batch.id for record in await store.expired(20.0, limit=5)}
    assert found == {"batch_ap-2", "batch_ap-3"}


async def test_a_list_is_the_tenants_newest_first(store):
    for number in range(1, 6):
        await store.create(batch(f"batch_ap-{number}"))
    await store.create(batch("batch_ap-9", tenant="other"))
    page, more = await store.list_page("acme", limit=2, after="")
    assert ([r.batch.id for r in page], more) == (["batch_ap-5", "batch_ap-4"], True)
    page, more = await store.list_page("acme", limit=5, after="batch_ap-4")
    assert ([r.batch.id for r in page], more) == (["batch_ap-3", "batch_ap-2", "batch_ap-1"], False)
