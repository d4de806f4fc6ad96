"""The async client, and TLS, against a gateway that serves made-up videos."""

import asyncio

import grpc
import pytest

from tests.support.certs import Authority
from tests.support.fakegateway import TOKEN, FakeGateway
from wan_t2v_sdk import (
    AsyncTextToVideoGenerator,
    NotFinishedError,
    TextToVideoGenerator,
    UnavailableError,
    VideoNotFoundError,
)


@pytest.fixture
def gateway():
    served = FakeGateway("ap")
    yield served
    served.stop()


@pytest.fixture
async def model(gateway):
    async with AsyncTextToVideoGenerator(
        endpoints=gateway.endpoint, token=TOKEN, timeout_s=20
    ) as client:
        yield client


async def test_many_at_once_share_one_measurement(model, gateway):
    results = await asyncio.gather(*(model.generate(f"n {n}", seed=n) for n in range(1, 9)))
    assert [each["seed"] for each in results] == list(range(1, 9))
    assert gateway.calls.count("ListRegions") == 3


async def test_callbacks_may_be_coroutines(model):
    kinds = []

    async def on_progress(event):
        await asyncio.sleep(0)
        kinds.append(event.kind)

    await model.generate("x", on_progress=on_progress)
    assert kinds[0] == "queued"
    assert kinds[-1] == "completed"


async def test_cancelling_the_task_cancels_the_video(model, gateway):
    gateway.trouble.hang = True
    begun = asyncio.Event()

    async with asyncio.timeout(20):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(
                model.generate("x", on_progress=lambda event: begun.set() if event.seq else None)
            )
            await begun.wait()
            task.cancel()
    assert task.cancelled()
    assert len(gateway.cancelled) == 1


async def test_waiting_for_a_video_made_elsewhere_does_not_own_it(model, gateway):
    video = await model.create("x")
    assert (await model.wait(video.id))["video"] == gateway.mp4
    gateway.trouble.hang = True
    gateway._records[video.id].status = 2  # running
    with pytest.raises(NotFinishedError):
        await model.download(video.id)
    with pytest.raises(TimeoutError):
        await model.wait(video.id, timeout_s=0.3)
    assert gateway.cancelled == []
    with pytest.raises(VideoNotFoundError):
        await model.wait("ap-nothing")


async def test_a_client_outlives_the_loop_it_began_in(gateway):
    client = AsyncTextToVideoGenerator(endpoints=gateway.endpoint, token=TOKEN)
    for _ in range(2):
        assert await asyncio.to_thread(asyncio.run, once(client)) == gateway.mp4


async def once(client):
    try:
        return (await client.generate("x"))["video"]
    finally:
        await client.close()


@pytest.fixture
def secure(tmp_path):
    authority = Authority(tmp_path / "ca")
    identity = authority.issue("gateway")
    credentials = grpc.ssl_server_credentials(
        [(identity.key.read_bytes(), identity.cert.read_bytes())]
    )
    served = FakeGateway("ap", credentials=credentials)
    yield served, authority.cert
    served.stop()


def test_tls_with_the_authority_that_is_named(secure):
    gateway, ca = secure
    with TextToVideoGenerator(endpoints=gateway.endpoint, token=TOKEN, ca=ca) as model:
        assert model.generate("x")["video"] == gateway.mp4


def test_an_unknown_authority_is_never_sent_the_token(secure):
    gateway, _ca = secure
    endpoint = f"grpcs://{gateway.endpoint}"
    with (
        TextToVideoGenerator(endpoints=endpoint, token=TOKEN, max_retries=0) as model,
        pytest.raises(UnavailableError, match="TLS was used"),
    ):
        model.generate("x")
    assert gateway.calls == []
