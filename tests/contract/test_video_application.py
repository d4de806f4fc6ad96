"""What every VideoApplication promises the edges: the fake and the real one alike.

A harness offers the application, ``make_hold`` (videos wait for ``finish``) and
``finish(video_id)``; see tests/support/video_applications.py.
"""

import asyncio
import contextlib
import hashlib

import pytest
from reelmesh.v1 import tenant_pb2, video_pb2, video_service_pb2

from gateway import errors
from gateway.application import Caller
from tests.support.video_applications import HARNESSES, MODEST

SCOPES = frozenset({"video:generate", "video:read"})
ME = Caller("acme", "me", SCOPES)
STRANGER = Caller("other", "me", SCOPES)
NOWHERE = "ap-00000000000000000000000000"
DEADLINE_S = 20


@pytest.fixture(params=HARNESSES)
async def harness(request, tmp_path):
    async with request.param(tmp_path) as found, asyncio.timeout(DEADLINE_S):
        yield found


@pytest.fixture
def app(harness):
    return harness.application


def spec(prompt="a red ball", **fields):
    return video_pb2.VideoSpec(prompt=prompt, num_frames=9, steps=2, **fields)


async def create(app, caller=ME, *, streamed=False, key="", durable=False, priority=0, **fields):
    options = video_service_pb2.CreateOptions(
        idempotency_key=key, durable=durable, priority=priority
    )
    return await app.create(caller, spec(**fields), options, streamed=streamed)


async def watched(app, video_id, *, after_seq=0, caller=ME):
    return [event async for event in app.watch(caller, video_id, after_seq=after_seq)]


async def finished(harness, **fields):
    """A video that is complete, and its events."""
    video = await create(harness.application, **fields)
    await harness.finish(video.id)
    return video, await watched(harness.application, video.id)


def kinds(events):
    return [event.WhichOneof("event") for event in events]


def data_of(events):
    return b"".join(event.chunk.data for event in events if event.HasField("chunk"))


async def until_status(app, video_id, *statuses):
    # Who left a stream learns of its end by asking alone; the harness sets the deadline.
    while (await app.get(ME, video_id)).status not in statuses:  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0.01)


# --- a video's life ---


async def test_create_answers_a_record_with_every_choice_made(app):
    video = await create(app, seed=7)
    assert video.id
    assert video.status in (video_pb2.VIDEO_STATUS_QUEUED, video_pb2.VIDEO_STATUS_RUNNING)
    assert (video.spec.num_frames, video.spec.steps, video.spec.seed) == (9, 2, 7)
    assert video.spec.width > 0
    assert video.spec.model
    assert video.spec.model_version
    assert video.created_at.seconds > 0
    assert video.id.startswith(video.region + "-")


async def test_a_video_has_the_priority_that_is_asked_for_or_its_tenants(app):
    modest = Caller(MODEST, "me", SCOPES)
    batch, interactive = tenant_pb2.PRIORITY_BATCH, tenant_pb2.PRIORITY_INTERACTIVE
    for caller, asked, got in ((ME, 0, interactive), (ME, batch, batch), (modest, 0, batch)):
        video = await create(app, caller, priority=asked)
        assert video.priority == got
        assert (await app.get(caller, video.id)).priority == got
    with pytest.raises(errors.InvalidRequest) as refused:
        await create(app, modest, priority=interactive)
    [violation] = refused.value.violations
    assert (violation.field, violation.nearest) == ("priority", ("batch",))


async def test_a_seed_is_drawn_at_admission(app):
    video = await create(app)
    again = await app.get(ME, video.id)
    assert again.spec.seed == video.spec.seed


async def test_events_begin_with_queued_and_end_with_completed(harness):
    video, events = await finished(harness)
    found = kinds(events)
    assert found[0] == "queued"
    assert events[0].queued.spec.prompt == "a red ball"
    assert events[0].seq == 0
    assert found[-1] == "completed"
    assert "started" in found
    assert {event.video_id for event in events} == {video.id}
    seqs = [event.seq for event in events if event.seq]
    assert seqs == sorted(set(seqs))


async def test_chunks_leave_no_gap_and_are_what_completed_says(harness):
    _video, events = await finished(harness)
    chunks = [event.chunk for event in events if event.HasField("chunk")]
    offset = 0
    for chunk in chunks:
        assert chunk.offset == offset
        offset += len(chunk.data)
    completed = events[-1].completed
    assert completed.size_bytes == offset > 0
    assert completed.sha256 == hashlib.sha256(data_of(events)).hexdigest()


async def test_the_record_says_the_result(harness):
    video, events = await finished(harness)
    record = await harness.application.get(ME, video.id)
    assert record.status == video_pb2.VIDEO_STATUS_COMPLETED
    assert record.progress_percent == 100
    assert record.result.sha256 == events[-1].completed.sha256
    assert record.completed_at.seconds > 0
    assert record.expires_at.seconds > record.completed_at.seconds


async def test_a_watch_resumes_after_a_seq(harness):
    video, events = await finished(harness)
    middle = next(event for event in events if event.HasField("chunk"))
    resumed = await watched(harness.application, video.id, after_seq=middle.seq)
    assert kinds(resumed)[0] == "queued"
    numbered = [event.seq for event in resumed if event.seq]
    assert min(numbered) > middle.seq
    assert kinds(resumed)[-1] == "completed"
    rest = data_of(events)[middle.chunk.offset + len(middle.chunk.data) :]
    assert data_of(resumed) == rest


async def test_a_watch_after_the_terminal_event_still_ends_with_it(harness):
    video, events = await finished(harness)
    resumed = await watched(harness.application, video.id, after_seq=events[-1].seq)
    assert kinds(resumed)[-1] == "completed"
    assert not data_of(resumed)


async def test_two_watchers_get_the_same_bytes(harness):
    video = await create(harness.application)
    first = asyncio.ensure_future(watched(harness.application, video.id))
    second = asyncio.ensure_future(watched(harness.application, video.id))
    await harness.finish(video.id)
    assert data_of(await first) == data_of(await second) != b""


# --- cancel and delete ---


async def test_a_cancelled_video_says_so_and_stays_so(harness, app):
    video = await create(app)
    watching = asyncio.ensure_future(watched(app, video.id))
    cancelled = await app.cancel(ME, video.id)
    assert cancelled.status == video_pb2.VIDEO_STATUS_CANCELLED
    again = await app.cancel(ME, video.id)
    assert again.status == video_pb2.VIDEO_STATUS_CANCELLED
    events = await watching
    assert kinds(events)[-1] == "cancelled"
    assert events[-1].cancelled.reason == "client"
    with pytest.raises(errors.VideoCancelled, match="will have no content"):
        await app.download(ME, video.id, offset=0)


async def test_a_video_of_another_region_is_not_said_to_be_missing(app):
    elsewhere = "eu-00000000000000000000000000"
    for ask in (
        app.get(ME, elsewhere),
        app.cancel(ME, elsewhere),
        app.delete(ME, elsewhere),
        app.download(ME, elsewhere, offset=0),
        watched(app, elsewhere),
    ):
        with pytest.raises(errors.OtherRegion, match="region eu"):
            await ask
    for ask in (app.get(ME, NOWHERE), app.delete(ME, NOWHERE), watched(app, NOWHERE)):
        with pytest.raises(errors.VideoNotFound):
            await ask


async def test_a_number_that_no_field_holds_is_refused_under_a_used_key_too(app):
    await create(app, key="k")
    options = video_service_pb2.CreateOptions(idempotency_key="k")
    with pytest.raises(errors.InvalidRequest) as raised:
        await app.create(ME, spec(), options, streamed=False, unfit={"seed": -1})
    assert [v.field for v in raised.value.violations] == ["seed"]
    assert raised.value.violations[0].nearest == ("0",)


async def test_a_finish_wins_over_a_later_cancel(harness):
    video, _events = await finished(harness)
    record = await harness.application.cancel(ME, video.id)
    assert record.status == video_pb2.VIDEO_STATUS_COMPLETED


async def test_a_deleted_video_is_gone(harness):
    video, _events = await finished(harness)
    await harness.application.delete(ME, video.id)
    with pytest.raises(errors.VideoNotFound):
        await harness.application.get(ME, video.id)
    with pytest.raises(errors.VideoNotFound):
        await harness.application.delete(ME, video.id)


async def test_a_running_video_can_be_deleted(app):
    video = await create(app)
    watching = asyncio.ensure_future(watched(app, video.id))
    await asyncio.sleep(0)
    await app.delete(ME, video.id)
    with contextlib.suppress(errors.VideoNotFound):
        assert kinds(await watching)[-1] == "cancelled"
    with pytest.raises(errors.VideoNotFound):
        await app.get(ME, video.id)


# --- who leaves a stream ---


async def test_a_streamed_video_is_given_up_when_its_client_leaves(app):
    video = await create(app, streamed=True)
    events = app.watch(ME, video.id, after_seq=0)
    await anext(events)
    await events.aclose()
    await until_status(app, video.id, video_pb2.VIDEO_STATUS_CANCELLED)


async def test_a_durable_one_runs_on(harness, app):
    video = await create(app, streamed=True, durable=True)
    events = app.watch(ME, video.id, after_seq=0)
    await anext(events)
    await events.aclose()
    await harness.finish(video.id)
    assert kinds(await watched(app, video.id))[-1] == "completed"


async def test_one_that_was_not_streamed_runs_on(harness, app):
    video = await create(app)
    events = app.watch(ME, video.id, after_seq=0)
    await anext(events)
    await events.aclose()
    await harness.finish(video.id)
    assert kinds(await watched(app, video.id))[-1] == "completed"


# --- idempotency ---


async def test_the_same_key_and_request_are_the_same_video(app):
    first = await create(app, key="k1")
    second = await create(app, key="k1")
    assert second.id == first.id
    assert second.spec.seed == first.spec.seed


async def test_the_same_key_with_another_request_is_a_conflict(app):
    await create(app, key="k1")
    with pytest.raises(errors.IdempotencyConflict):
        await create(app, key="k1", prompt="a blue ball")


async def test_keys_are_each_tenants_own(app):
    first = await create(app, key="k1")
    second = await create(app, STRANGER, key="k1", prompt="a blue ball")
    assert first.id != second.id


@pytest.mark.parametrize("key", ["a b", "é", "x" * 129, "a\n"])
async def test_a_key_is_visible_ascii(app, key):
    with pytest.raises(errors.InvalidRequest) as raised:
        await create(app, key=key)
    assert raised.value.violations[0].field == "idempotency_key"


# --- lists ---


async def test_lists_are_newest_first_and_page_to_the_end(app):
    made = [(await create(app)).id for _ in range(5)]
    first, token = await app.list_page(ME, page_size=2, page_token="")
    second, token2 = await app.list_page(ME, page_size=2, page_token=token)
    third, token3 = await app.list_page(ME, page_size=2, page_token=token2)
    assert [v.id for v in (*first, *second, *third)] == made[::-1]
    assert token == first[-1].id
    assert token3 == ""


async def test_lists_can_be_oldest_first(app):
    made = [(await create(app)).id for _ in range(3)]
    first, token = await app.list_page(ME, page_size=2, page_token="", oldest_first=True)
    second, end = await app.list_page(ME, page_size=2, page_token=token, oldest_first=True)
    assert [v.id for v in (*first, *second)] == made
    assert end == ""


async def test_a_page_that_just_fits_is_the_last(app):
    for _ in range(2):
        await create(app)
    videos, token = await app.list_page(ME, page_size=2, page_token="")
    assert (len(videos), token) == (2, "")


@pytest.mark.parametrize(("page_size", "page_token"), [(101, ""), (10, "no id")])
async def test_a_wrong_page_is_refused(app, page_size, page_token):
    with pytest.raises(errors.InvalidRequest):
        await app.list_page(ME, page_size=page_size, page_token=page_token)


# --- tenants ---


async def test_another_tenants_video_does_not_exist(harness):
    video, _events = await finished(harness)
    app = harness.application
    for call in (
        app.get(STRANGER, video.id),
        app.cancel(STRANGER, video.id),
        app.delete(STRANGER, video.id),
        app.download(STRANGER, video.id, offset=0),
        watched(app, video.id, caller=STRANGER),
    ):
        with pytest.raises(errors.VideoNotFound):
            await call
    videos, _token = await app.list_page(STRANGER, page_size=10, page_token="")
    assert videos == []
    assert (await app.get(ME, video.id)).status == video_pb2.VIDEO_STATUS_COMPLETED


@pytest.mark.parametrize("video_id", [NOWHERE, "", "x", "ap-" + "z" * 5_000, "熊"])
async def test_an_unknown_id_is_not_found(app, video_id):
    for call in (
        app.get(ME, video_id),
        app.cancel(ME, video_id),
        app.delete(ME, video_id),
        app.download(ME, video_id, offset=0),
        watched(app, video_id),
    ):
        with pytest.raises(errors.VideoNotFound):
            await call


# --- what is refused ---


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (video_pb2.VideoSpec(), "prompt"),
        (video_pb2.VideoSpec(prompt=" \n"), "prompt"),
        (video_pb2.VideoSpec(prompt="x" * 2_001), "prompt"),
        (video_pb2.VideoSpec(prompt="x", num_frames=10), "num_frames"),
        (video_pb2.VideoSpec(prompt="x", num_frames=0), "num_frames"),
        (video_pb2.VideoSpec(prompt="x", num_frames=2**32 - 1), "num_frames"),
        (video_pb2.VideoSpec(prompt="x", width=33, height=33), "width"),
        (video_pb2.VideoSpec(prompt="x", width=4_096, height=4_096), "width"),
        (video_pb2.VideoSpec(prompt="x", width=96), "height"),
        (video_pb2.VideoSpec(prompt="x", guidance_scale=float("nan")), "guidance_scale"),
        (video_pb2.VideoSpec(prompt="x", flow_shift=float("inf")), "flow_shift"),
        (video_pb2.VideoSpec(prompt="x", seconds=float("nan")), "seconds"),
        (video_pb2.VideoSpec(prompt="x", fps=float("nan")), "fps"),
        (video_pb2.VideoSpec(prompt="x", steps=0), "steps"),
        (video_pb2.VideoSpec(prompt="x", steps=10**9), "steps"),
        (video_pb2.VideoSpec(prompt="x", model="unknown"), "model"),
        (video_pb2.VideoSpec(prompt="x", resolution="8k"), "resolution"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_by_name(app, wrong, field):
    with pytest.raises(errors.InvalidRequest) as raised:
        await app.create(ME, wrong, video_service_pb2.CreateOptions(), streamed=False)
    assert [violation.field for violation in raised.value.violations] == [field]
    videos, _token = await app.list_page(ME, page_size=10, page_token="")
    assert videos == []


async def test_every_wrong_field_is_named_at_once(app):
    wrong = video_pb2.VideoSpec(steps=0, num_frames=10)
    with pytest.raises(errors.InvalidRequest) as raised:
        await app.create(ME, wrong, video_service_pb2.CreateOptions(), streamed=False)
    assert {v.field for v in raised.value.violations} == {"prompt", "steps", "num_frames"}


# --- the region ---


def test_the_region_tells_what_it_serves(app):
    models, default = app.models()
    assert default in {model.name for model in models}
    regions = app.regions()
    assert [region.local for region in regions].count(True) == 1
    assert app.ready() == (True, "")
