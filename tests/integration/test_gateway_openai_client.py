"""OpenAI's own client, unmodified, against the HTTP edge."""

import asyncio

import openai
import pytest

from gateway import errors
from tests.support.edges import serve_edges

# OpenAI ends its own service of this shape; the client still speaks it, which is all we need.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")


@pytest.fixture
async def edges(tmp_path):
    async with serve_edges(tmp_path) as found, asyncio.timeout(60):
        yield found


@pytest.fixture
async def client(edges):
    base_url = f"{edges.http_url}/v1"
    async with openai.AsyncOpenAI(
        api_key=edges.issuer.issue(), base_url=base_url, max_retries=1
    ) as found:
        yield found


async def test_a_video_from_create_to_delete(client):
    created = await client.videos.create(
        prompt="a panda dances", model="fake-t2v", seconds="4", size="1280x720"
    )
    assert created.object == "video"
    assert created.status == "queued"
    assert (created.seconds, created.size, created.model) == ("4", "128x96", "fake-t2v")
    video = await client.videos.retrieve(created.id)
    assert (video.status, video.progress) == ("completed", 100)
    assert video.completed_at is not None
    assert video.error is None
    content = await client.videos.download_content(created.id)
    assert len(content.content) == video.result["size_bytes"]
    page = await client.videos.list(limit=1)
    assert [v.id for v in page.data] == [created.id]
    deleted = await client.videos.delete(created.id)
    assert deleted.deleted
    with pytest.raises(openai.NotFoundError):
        await client.videos.retrieve(created.id)


async def test_create_and_poll(client):
    video = await client.videos.create_and_poll(prompt="a panda", poll_interval_ms=10)
    assert video.status == "completed"


async def test_fields_beyond_openais_go_in_the_extra_body(client):
    video = await client.videos.create(
        prompt="a panda", extra_body={"num_frames": 9, "seed": 7, "guidance_scale": 4.5}
    )
    assert (video.num_frames, video.seed, video.guidance_scale) == (9, 7, 4.5)


async def test_lists_page_by_themselves(client):
    made = [(await client.videos.create(prompt=f"panda {n}")).id for n in range(5)]
    found = [video.id async for video in client.videos.list(limit=2)]
    assert found == made[::-1]
    oldest = [video.id async for video in client.videos.list(limit=2, order="asc")]
    assert oldest == made


async def test_models_are_listed(client):
    models = [model.id async for model in client.models.list()]
    assert models == ["fake-t2v"]


async def test_a_model_is_retrieved_by_name_and_by_its_pinned_id(client):
    model = await client.models.retrieve("fake-t2v")
    assert (model.id, model.object, model.owned_by) == ("fake-t2v", "model", "reelmesh")
    assert (await client.models.retrieve("fake-t2v@1.0.0")).id == "fake-t2v@1.0.0"
    with pytest.raises(openai.NotFoundError) as raised:
        await client.models.retrieve("sora-2")
    assert raised.value.code == "model_not_found"
    assert "fake-t2v" in raised.value.message


async def test_a_message_says_the_nearest(client):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.videos.create(prompt="x", extra_body={"num_frames": 16})
    assert "num_frames: 16 is not allowed" in raised.value.message
    assert "the nearest are 17, 13" in raised.value.message


async def test_a_video_of_another_region_is_not_said_to_be_missing(client):
    with pytest.raises(openai.APIStatusError) as raised:
        await client.videos.retrieve("eu-01jd3x8z5q0e8m2c4r6t7v9wxy")
    assert not isinstance(raised.value, openai.NotFoundError)
    assert (raised.value.status_code, raised.value.code) == (421, "other_region")
    assert "region eu" in raised.value.message


async def test_a_video_that_ended_without_content_says_how(client, edges):
    edges.application.hold = True
    failed, cancelled = [(await client.videos.create(prompt="x")).id for _ in range(2)]
    edges.application.fail(failed, code="worker_died", message="the worker died")
    await client.post(f"/videos/{cancelled}/cancel", cast_to=object)
    with pytest.raises(openai.ConflictError) as raised:
        await client.videos.download_content(failed)
    assert raised.value.code == "video_failed"
    assert raised.value.message.endswith("will have no content: the worker died")
    assert "finished" not in raised.value.body["message"]
    with pytest.raises(openai.ConflictError) as raised:
        await client.videos.download_content(cancelled)
    assert raised.value.code == "video_cancelled"
    assert "cancelled and will have no content" in raised.value.message


async def test_errors_arrive_as_the_clients_own(client, edges):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.videos.create(prompt="x", size="1x1")
    assert raised.value.param == "size"
    assert raised.value.code == "invalid_request"
    assert "1x1" in raised.value.message
    bad = client.with_options(api_key="nonsense")
    with pytest.raises(openai.AuthenticationError) as refused:
        await bad.videos.list()
    assert refused.value.code == "malformed_token"
    narrow = client.with_options(api_key=edges.issuer.issue(scope="video:read"))
    with pytest.raises(openai.PermissionDeniedError):
        await narrow.videos.create(prompt="x")


async def test_a_conflict_is_not_retried(client, edges, monkeypatch):
    edges.application.hold = True
    video = await client.videos.create(prompt="x")
    calls = 0
    whole = edges.application.download

    async def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return await whole(*args, **kwargs)

    monkeypatch.setattr(edges.application, "download", counted)
    with pytest.raises(openai.ConflictError) as raised:
        await client.videos.download_content(video.id)
    assert raised.value.code == "not_finished"
    assert calls == 1


async def test_what_passes_is_retried(client, edges, monkeypatch):
    whole = edges.application.create
    refusals = [errors.Unavailable("no node is ready", retry_after_s=0.01)]

    async def later(*args, **kwargs):
        if refusals:
            raise refusals.pop()
        return await whole(*args, **kwargs)

    monkeypatch.setattr(edges.application, "create", later)
    assert (await client.videos.create(prompt="x")).status == "queued"


async def test_a_cancelled_video_polls_as_failed(client, edges):
    edges.application.hold = True
    video = await client.videos.create(prompt="x")
    await client.post(f"/videos/{video.id}/cancel", cast_to=object)
    polled = await client.videos.poll(video.id, poll_interval_ms=10)
    assert polled.status == "failed"
    assert polled.error.code == "cancelled"


async def test_what_no_retry_can_help_is_not_retried(client, edges, monkeypatch):
    calls = 0

    async def damaged(*_args, **_kwargs):
        nonlocal calls
        calls += 1
        raise errors.VideoDamaged("the stored video is damaged; have it made again")

    video = await client.videos.create(prompt="x")
    monkeypatch.setattr(edges.application, "download", damaged)
    with pytest.raises(openai.InternalServerError) as raised:
        await client.videos.download_content(video.id)
    assert raised.value.code == "video_damaged"
    edges.application.broken = RuntimeError("unforeseen")
    with pytest.raises(openai.InternalServerError):
        await client.videos.retrieve(video.id)
    assert calls == 1


async def test_variants_are_downloaded(client):
    video = await client.videos.create_and_poll(prompt="a panda", poll_interval_ms=10)
    found = {}
    for variant in ("video", "thumbnail", "spritesheet"):
        content = await client.videos.download_content(video.id, variant=variant)
        found[variant] = content.content
        kind = "video/mp4" if variant == "video" else "image/jpeg"
        assert content.response.headers["Content-Type"] == kind
    assert len({*found.values()}) == 3


async def test_a_video_is_remixed(client):
    original = await client.videos.create(prompt="a panda", seconds="4", size="720x1280")
    remix = await client.videos.remix(original.id, prompt="a bear")
    assert (remix.prompt, remix.remixed_from_video_id) == ("a bear", original.id)
    assert (remix.size, remix.seconds, remix.seed) == ("96x128", "4", original.seed)
    with pytest.raises(openai.NotFoundError):
        await client.videos.remix("ap-01jd3x8z5q0e8m2c4r6t7v9wxy", prompt="a bear")


@pytest.mark.parametrize("reference", [("still.png", b"\x89PNG\r\n", "image/png"), b"\x89PNG"])
async def test_a_still_to_begin_with_is_refused_by_name(client, reference):
    with pytest.raises(openai.BadRequestError) as raised:
        await client.videos.create(prompt="x", input_reference=reference)
    assert raised.value.param == "input_reference"
    assert "videos are made from text alone" in raised.value.message


SIZES = {
    "1280x720": "128x96",
    "720x1280": "96x128",
    "1792x1024": "128x96",
    "1024x1792": "96x128",
}


@pytest.mark.parametrize(("size", "made"), SIZES.items())
@pytest.mark.parametrize("seconds", ["4", "8", "12"])
async def test_openais_sizes_and_seconds_are_the_manifests_aliases(client, size, made, seconds):
    video = await client.videos.create(prompt="x", size=size, seconds=seconds)
    assert (video.size, video.seconds) == (made, seconds)
    assert video.requested == {"resolution": size, "seconds": float(seconds)}


async def test_the_sync_client_does_all_of_it_too(edges):
    def use():
        with openai.OpenAI(api_key=edges.issuer.issue(), base_url=f"{edges.http_url}/v1") as client:
            videos = client.videos
            video = videos.create_and_poll(prompt="a panda", poll_interval_ms=10)
            assert video.status == "completed"
            content = videos.download_content(video.id).content
            assert len(content) == 10_000
            assert len(videos.download_content(video.id, variant="thumbnail").content) < 100
            remix = videos.remix(video.id, prompt="a bear")
            assert remix.remixed_from_video_id == video.id
            made = [remix.id, video.id]
            assert [v.id for v in videos.list(limit=1)] == made
            assert [v.id for v in videos.list(limit=1, order="asc")] == made[::-1]
            assert [v.id for v in videos.list(after=remix.id)] == [video.id]
            for video_id in made:
                assert videos.delete(video_id).deleted
            with pytest.raises(openai.NotFoundError):
                videos.retrieve(video.id)
            edges.application.hold = True
            waits = videos.create(prompt="x")
            client.post(f"/videos/{waits.id}/cancel", cast_to=object)
            polled = videos.poll(waits.id, poll_interval_ms=10)
            assert (polled.status, polled.error.code) == ("failed", "cancelled")

    await asyncio.to_thread(use)
