"""A gateway dies at each step of a batch's life; another goes on, and makes nothing twice.

Over a real etcd.
"""

import asyncio

import pytest
from reelmesh.v1 import batch_record_service_pb2, video_pb2

from gateway.batches import segments
from gateway.output.artifacts import ArtifactError
from tests.support import fakenode
from tests.support.batch_clients import QUICK, BatchClient, counts, rows
from tests.support.etcd import EtcdProcess
from tests.support.fakenode import VIDEO
from tests.support.gateway_region import gateway_region

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED


@pytest.fixture
async def etcd(tmp_path):
    process = EtcdProcess(tmp_path / "etcd")
    await process.start()
    yield process
    process.kill()


@pytest.fixture
async def region(tmp_path, etcd):
    async with gateway_region(tmp_path, etcd.endpoint) as region:
        yield region


def hold(region):
    for node in region.nodes:
        node.default = fakenode.held(before=1)


async def let_go(region):
    for node in region.nodes:
        node.default = fakenode.finish()
        for run in node.runs:
            run.go.set()


def made(region, batch_id):
    """The prompts of a batch's runs at any node, each as often as it was begun anew."""
    return sorted(run.request.spec.prompt for node in region.nodes for run in node.runs)


async def jobs_of(region, batch_id, total):
    """The job records that a batch's items have made."""
    keys = [segments.item_key(batch_id, index) for index in range(total)]
    found = [await region.records.find_key("acme", key) for key in keys]
    return [record for record in found if record is not None]


def batch_files(region, name="*"):
    folder = region.tmp_path / "artifacts" / "batches"
    return [path for path in folder.rglob(name) if path.is_file()]


async def whole(client, batch_id, total):
    """Waits for its end; every item is complete, with a video of its own."""
    done = await client.until_ended(batch_id)
    assert (done["status"], counts(done)) == ("completed", {"total": total, "completed": total})
    items = await client.items(batch_id)
    assert [item["index"] for item in items] == list(range(total))
    assert len({item["video_id"] for item in items}) == total
    for item in items:
        assert await client.ask("GET", item["content"]) == VIDEO
    return items


async def test_before_its_record_nothing_is_accepted_and_its_file_is_swept(region):
    a, b = await region.pair(**QUICK)
    a.batches.before_create.shut()
    submitting = asyncio.ensure_future(BatchClient(region, a).submit(rows(3)))
    await a.batches.before_create.until_reached()
    assert len(batch_files(region, "items-*")) == 1
    await a.crash()
    await asyncio.wait([submitting])
    assert submitting.exception() is not None
    assert (await BatchClient(region, b).ask("GET", "/v1/batches"))["data"] == []
    purge = b.app.batches.purge
    await purge.sweep()
    assert batch_files(region), "it may be of a submission that is about to be recorded"
    purge._clock = Later(purge._clock)
    await purge.sweep()
    assert not batch_files(region)


class Later:
    """A clock that is two hours ahead."""

    def __init__(self, clock):
        self._clock = clock

    def wall(self):
        return self._clock.wall() + 7200


async def test_after_its_record_and_before_its_client_heard_another_makes_it(region):
    a, b = await region.pair(**QUICK)
    a.batches.after_create.shut()
    submitting = asyncio.ensure_future(BatchClient(region, a).submit(rows(3), key="k"))
    await a.batches.after_create.until_reached()
    await a.crash()
    await asyncio.wait([submitting])
    client = BatchClient(region, b)
    again = await client.submit(rows(3), key="k")
    await whole(client, again["id"], 3)
    assert len((await client.ask("GET", "/v1/batches"))["data"]) == 1


async def test_between_a_video_and_the_note_of_it_nothing_is_made_twice(region):
    hold(region)
    a, b = await region.pair(**QUICK)
    batch = await BatchClient(region, a).submit(rows(6))
    # Its first write allows items to be begun; those that it begins are never noted.
    await a.until(lambda: a.core.lifetimes.live)
    a.batches.before_update.shut()
    await a.until(lambda: a.core.lifetimes.live == 6)
    await a.batches.before_update.until_reached()
    await a.crash()
    await let_go(region)
    items = await whole(BatchClient(region, b), batch["id"], 6)
    jobs = await jobs_of(region, batch["id"], 6)
    assert {job.video.id for job in jobs} == {item["video_id"] for item in items}
    assert len(region.nodes[0].runs + region.nodes[1].runs) == 6


async def test_in_the_middle_another_goes_on_and_keeps_what_is_done(region):
    a, b = await region.pair(batches={"checkpoint_s": 0.05, "max_in_flight_per_batch": 2})
    client = BatchClient(region, b)
    batch = await BatchClient(region, a).submit(rows(120))
    await client.until(batch["id"], lambda found: found["counts"]["completed"] >= 10)
    hold(region)
    await a.crash()
    before = {i["index"]: i for i in await client.items(batch["id"]) if i["video_id"]}
    await let_go(region)
    done = await client.until_ended(batch["id"])
    assert (done["status"], counts(done)) == ("completed", {"total": 120, "completed": 120})
    items = await client.items(batch["id"], "?limit=1000")
    assert {i["video_id"] for i in before.values()} <= {i["video_id"] for i in items}
    assert len({item["video_id"] for item in items}) == 120
    # Of each segment one file of outcomes is left, beside the items.
    assert len(batch_files(region, "outcomes-*")) == 2


async def test_two_that_drive_it_at_once_make_nothing_twice_and_one_stops(region):
    hold(region)
    a, b = await region.pair(**QUICK)
    client = BatchClient(region, a)
    batch = await client.submit(rows(6))
    await client.until(batch["id"], lambda found: found["counts"]["running"] > 0)
    # As if its lease had run out while it goes on: the other claims it without asking.
    record = await a.batches.get("acme", batch["id"])
    standing, claimed = await b.batches.claim(batch["id"], epoch=record.epoch, owner=b.core.owner)
    assert claimed
    b.app.batches.drivers.begin(standing)
    await let_go(region)
    await a.until(lambda: not a.app.batches.drivers.live)
    items = await whole(client, batch["id"], 6)
    assert len(await jobs_of(region, batch["id"], 6)) == len(items)
    assert len(region.nodes[0].runs + region.nodes[1].runs) == 6
    assert (await b.batches.get("acme", batch["id"])).owner_gateway == "b"


async def test_a_cancel_outlives_its_owner_and_finds_what_was_not_noted(region):
    hold(region)
    a, b = await region.pair(**QUICK)
    client = BatchClient(region, b)
    batch = await BatchClient(region, a).submit(rows(6))
    await a.until(lambda: a.core.lifetimes.live)
    a.batches.before_update.shut()
    await a.until(lambda: a.core.lifetimes.live == 6)
    await client.ask("POST", f"/v1/batches/{batch['id']}/cancel")
    await a.crash()
    done = await client.until_ended(batch["id"])
    assert (done["status"], counts(done)) == ("cancelled", {"total": 6, "cancelled": 6})
    for job in await jobs_of(region, batch["id"], 6):
        assert job.video.status == video_pb2.VIDEO_STATUS_CANCELLED
    assert not any(node.live for node in region.nodes)


async def test_a_gateway_that_stops_in_good_order_hands_it_over(region):
    hold(region)
    a, b = await region.pair(drain_s=0.5, **QUICK)
    client = BatchClient(region, b)
    batch = await BatchClient(region, a).submit(rows(4))
    await client.until(batch["id"], lambda found: found["counts"]["running"] > 0)
    await a.drain()
    await b.until(lambda: b.app.batches.drivers.live)
    await let_go(region)
    await whole(client, batch["id"], 4)


async def test_while_etcd_stands_still_it_waits_and_then_goes_on(region, etcd):
    a = await region.start("a", jobs={"patience_s": 0.5}, **QUICK)
    client = BatchClient(region, a)
    hold(region)
    batch = await client.submit(rows(4))
    await client.until(batch["id"], lambda found: found["counts"]["running"] > 0)
    with etcd.stopped():
        problem = await client.submit(rows(1), status=503)
        assert problem["retryable"]
        await let_go(region)
        await asyncio.sleep(1)
    await whole(client, batch["id"], 4)
    # What was refused is not there after all.
    await a.until(lambda: not a.app.batches.drivers._refused)
    listed = (await client.ask("GET", "/v1/batches"))["data"]
    assert [each["id"] for each in listed] == [batch["id"]]


async def test_while_the_artifact_store_is_away_nothing_is_lost(region, monkeypatch):
    a = await region.start("a", **QUICK)
    client, artifacts = BatchClient(region, a), a.core.artifacts
    hold(region)
    batch = await client.submit(rows(4))
    await client.until(batch["id"], lambda found: found["counts"]["running"] > 0)
    put, away = artifacts.put, True

    async def failing(key, data):
        if away and key.startswith("batches/"):
            raise ArtifactError("away")
        await put(key, data)

    monkeypatch.setattr(artifacts, "put", failing)
    problem = await client.submit(rows(1), status=503)
    assert problem["retryable"]
    await let_go(region)
    # Every video ends; the batch's own word of it waits.
    await a.until(lambda: not a.core.lifetimes.live)
    await asyncio.sleep(0.3)
    assert (await client.get(batch["id"]))["status"] == "in_progress"
    away = False
    await whole(client, batch["id"], 4)


async def test_one_whose_items_are_lost_fails_and_says_so(region):
    a, b = await region.pair(batches={"checkpoint_s": 0.05, "max_in_flight_per_batch": 1})
    hold(region)
    client = BatchClient(region, b)
    batch = await BatchClient(region, a).submit(rows(150))
    await client.until(batch["id"], lambda found: found["counts"]["running"] > 0)
    await a.crash()
    for path in batch_files(region, "items-*"):
        path.unlink()
    await let_go(region)
    done = await client.until_ended(batch["id"])
    assert (done["status"], done["error"]["code"]) == ("failed", "batch_items_lost")


async def test_a_deletion_that_its_gateway_did_not_finish_is_finished_by_another(
    region, monkeypatch
):
    a, b = await region.pair(**QUICK)
    client = BatchClient(region, a)
    batch = await client.submit(rows(3))
    items = await whole(client, batch["id"], 3)

    async def nothing(record):
        return False

    monkeypatch.setattr(a.app.batches.purge, "try_remove", nothing)
    await client.ask("DELETE", f"/v1/batches/{batch['id']}")
    await client.ask("GET", f"/v1/batches/{batch['id']}", status=404)
    await a.crash()
    await b.app.batches.purge.sweep()
    assert not batch_files(region)
    for item in items:
        assert await region.records.get("acme", item["video_id"]) is None
    assert await b.batches.known({batch["id"]}) == set()


async def test_a_create_without_an_answer_is_driven_when_its_owner_looks(region):
    a = await region.start("a", **QUICK)
    # Written, and the answer lost: nobody drives it, and it is no orphan.
    record = batch_record_service_pb2.BatchRecord()
    a.batches.before_create.shut()
    submitting = asyncio.ensure_future(BatchClient(region, a).submit(rows(2), key="k"))
    await a.batches.before_create.until_reached()
    create = super(type(a.batches), a.batches).create

    async def lost(record):
        await create(record)
        raise asyncio.CancelledError

    a.batches.create = lost
    a.batches.before_create.open()
    submitting.cancel()
    await asyncio.wait([submitting])
    async with asyncio.timeout(20):
        while not (record := await a.batches.find_key("acme", "k")):  # noqa: ASYNC110 - of a store
            await asyncio.sleep(0.02)
    async with asyncio.timeout(20):
        while not a.app.batches.drivers.live:
            await a.app.batches.drivers.look()
            if records_end(record := await a.batches.find_key("acme", "k")):
                break
            await asyncio.sleep(0.02)
    await whole(BatchClient(region, a), record.batch.id, 2)


def records_end(record):
    return record.batch.counts.completed == record.batch.counts.total
