"""``client.batches``, sync and async, against a whole gateway and against a made-up one."""

import asyncio
import contextlib
import io
import zipfile

import grpc
import pytest
from reelmesh.v1 import batch_service_pb2, batch_service_pb2_grpc

from tests.support.batch_clients import QUICK
from tests.support.fakegateway import TOKEN, FakeGateway
from tests.support.fakenode import VIDEO
from tests.support.gateway_region import gateway_region
from wan_t2v_sdk import (
    AsyncTextToVideoGenerator,
    BatchRow,
    ConflictError,
    InvalidRequestError,
    NotFinishedError,
    TextToVideoGenerator,
    UnavailableError,
    VideoNotFoundError,
)


@pytest.fixture
async def client(tmp_path):
    async with gateway_region(tmp_path) as region:
        member = await region.start("a", **QUICK)
        async with AsyncTextToVideoGenerator(
            endpoints=member.app.grpc_address, token=region.issuer.issue(), timeout_s=20
        ) as client:
            client.region = region
            client.address = member.app.grpc_address
            yield client


async def test_a_template_a_prompt_and_a_row_in_full(client):
    rows = [
        {"color": "red", "custom_id": "r"},
        BatchRow(variables={"color": "blue"}, settings={"seed": 7, "width": 96, "height": 64}),
    ]
    batch = await client.batches.submit(
        rows, template="a {color} cup", resolution="480p", metadata={"k": "v"}
    )
    assert (batch.total, batch.metadata) == (2, {"k": "v"})
    followed = [item async for item in client.batches.follow(batch.id, every_s=0.05)]
    assert sorted(item.prompt for item in followed) == ["a blue cup", "a red cup"]
    items = [item async for item in client.batches.items(batch.id)]
    assert [item.custom_id for item in items] == ["r", ""]
    videos = [await client.get(item.video_id) for item in items]
    assert [(v.settings.width, v.settings.height) for v in videos] == [(128, 96), (96, 64)]
    assert videos[1].settings.seed == 7
    assert {v.priority for v in videos} == {"batch"}
    assert (await client.batches.get(batch.id)).status == "completed"
    assert [each.id for each in await client.batches.list()] == [batch.id]


async def test_results_come_with_their_videos(client):
    batch = await client.batches.submit(["one", "two"])
    found = {}
    async for item, result in client.batches.results(batch.id):
        with result:
            found[item.prompt] = result.facts.size_bytes
    assert found == {"one": len(VIDEO), "two": len(VIDEO)}


async def test_what_is_wrong_is_told_by_row(client):
    with pytest.raises(InvalidRequestError) as caught:
        await client.batches.submit(["fine", BatchRow(prompt="x", settings={"num_frames": 6})])
    (violation,) = caught.value.violations
    assert (violation.field, violation.nearest) == ("rows[1].num_frames", ("5", "9"))
    assert await client.batches.list() == []


async def test_a_key_a_cancel_and_a_deletion(client):
    first = await client.batches.submit(["one"], idempotency_key="k")
    assert (await client.batches.submit(["one"], idempotency_key="k")).id == first.id
    with pytest.raises(ConflictError):
        await client.batches.submit(["two"], idempotency_key="k")
    [item async for item in client.batches.follow(first.id, every_s=0.05)]
    assert (await client.batches.cancel(first.id)).status == "completed"
    await client.batches.delete(first.id)
    with pytest.raises(VideoNotFoundError) as caught:
        await client.batches.get(first.id)
    assert caught.value.code == "batch_not_found"


async def test_one_that_goes_on_is_not_deleted(client):
    for node in client.region.nodes:
        node.slots = 0
        await node.push()
    batch = await client.batches.submit(["one"])
    with pytest.raises(NotFinishedError):
        await client.batches.delete(batch.id)
    await client.batches.cancel(batch.id)
    async with asyncio.timeout(20):
        [item async for item in client.batches.follow(batch.id, every_s=0.05)]
    assert (await client.batches.get(batch.id)).status == "cancelled"


async def test_another_regions_batch_says_whose_it_is(client):
    with pytest.raises(UnavailableError, match="lives in region eu"):
        await client.batches.get("batch_eu-01jd3x8z5q0e8m2c4r6t7v9wxy")


async def test_the_zip_over_grpc(client):
    batch = await client.batches.submit(["one", "two"])
    [item async for item in client.batches.follow(batch.id, every_s=0.05)]
    async with grpc.aio.insecure_channel(client.address) as channel:
        stub = batch_service_pb2_grpc.BatchServiceStub(channel)
        token = client.region.issuer.issue()
        call = stub.DownloadBatch(
            batch_service_pb2.DownloadBatchRequest(batch_id=batch.id),
            metadata=(("authorization", f"Bearer {token}"),),
        )
        data = b"".join([answer.data async for answer in call])
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.namelist() == ["00000.mp4", "00001.mp4", "manifest.jsonl"]
    assert archive.read("00001.mp4") == VIDEO


def test_the_same_without_a_loop():
    with contextlib.closing(FakeGatewayOf()) as gateway:
        model = TextToVideoGenerator(endpoints=gateway.fake.endpoint, token=TOKEN, timeout_s=20)
        with model:
            gateway.fake.batches.held = 1
            batch = model.batches.submit(["one", "two"])
            assert model.batches.get(batch.id).completed == 1
            gateway.fake.batches.held = None
            seen = []
            found = {
                item.prompt: result.facts.id for item, result in model.batches.results(batch.id)
            }
            assert found.keys() == {"one", "two"}
            for item in model.batches.follow(batch.id, on_progress=seen.append):
                assert item.status == "completed"
                break
            assert seen[0].id == batch.id
            assert [item.index for item in model.batches.items(batch.id)] == [0, 1]
            assert model.batches.list()[0].id == batch.id
            assert model.batches.cancel(batch.id).finished
            model.batches.delete(batch.id)
            with pytest.raises(VideoNotFoundError):
                model.batches.get(batch.id)


class FakeGatewayOf:
    """A made-up gateway that is closed."""

    def __init__(self):
        self.fake = FakeGateway("ap")

    def close(self):
        self.fake.stop()
