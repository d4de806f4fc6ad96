"""What every VideoApplication promises of remixes: the fake and the real one alike."""

import asyncio

import pytest
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway import errors
from gateway.application import Caller
from tests.support.video_applications import HARNESSES

SCOPES = frozenset({"video:generate", "video:read"})
ME = Caller("acme", "me", SCOPES)
STRANGER = Caller("other", "me", SCOPES)
NOWHERE = "ap-00000000000000000000000000"


@pytest.fixture(params=HARNESSES)
async def harness(request, tmp_path):
    async with request.param(tmp_path) as found, asyncio.timeout(20):
        yield found


@pytest.fixture
def app(harness):
    return harness.application


async def create(app, caller=ME, *, of="", key="", unfit=None, **fields):
    options = video_service_pb2.CreateOptions(idempotency_key=key, remixed_from_video_id=of)
    spec = video_pb2.VideoSpec(**{"prompt": "a red ball", **fields})
    return await app.create(caller, spec, options, streamed=False, unfit=unfit or {})


async def test_a_remix_has_the_settings_of_its_original_and_a_prompt_of_its_own(harness, app):
    original = await create(app, num_frames=9, steps=2, seed=7, negative_prompt="grey")
    remix = await create(app, of=original.id, prompt="a blue ball")
    assert remix.id != original.id
    assert remix.remixed_from_video_id == original.id
    assert not original.remixed_from_video_id
    expected = video_pb2.ResolvedSpec()
    expected.CopyFrom(original.spec)
    expected.prompt = "a blue ball"
    assert remix.spec == expected
    await harness.finish(remix.id)
    assert (await app.get(ME, remix.id)).remixed_from_video_id == original.id


async def test_whatever_became_of_the_original_it_can_be_remixed(harness, app):
    finished = await create(app, seed=1)
    await harness.finish(finished.id)
    cancelled = await create(app, seed=2)
    await app.cancel(ME, cancelled.id)
    for original in (finished, cancelled):
        remix = await create(app, of=original.id, prompt="a blue ball")
        assert remix.spec.seed == original.spec.seed
        # And that one in its turn.
        again = await create(app, of=remix.id, prompt="a green ball")
        assert again.remixed_from_video_id == remix.id


async def test_only_a_video_of_the_tenants_own_can_be_remixed(app):
    original = await create(app)
    for of in (NOWHERE, "x", "ap-"):
        with pytest.raises(errors.VideoNotFound):
            await create(app, of=of)
    with pytest.raises(errors.VideoNotFound):
        await create(app, STRANGER, of=original.id)
    with pytest.raises(errors.OtherRegion):
        await create(app, of=NOWHERE.replace("ap-", "eu-"))
    videos, _token = await app.list_page(STRANGER, page_size=10, page_token="")
    assert videos == []


async def test_a_remix_is_checked_as_any_request_is(app):
    original = await create(app)
    with pytest.raises(errors.InvalidRequest) as raised:
        await create(app, of=original.id, prompt=" ", steps=0)
    assert {v.field for v in raised.value.violations} == {"prompt", "steps"}
    with pytest.raises(errors.InvalidRequest) as raised:
        await create(app, of=original.id, unfit={"seed": -1})
    assert [v.field for v in raised.value.violations] == ["seed"]


async def test_a_key_makes_one_remix(app):
    original = await create(app)
    first = await create(app, of=original.id, key="k", prompt="a blue ball")
    assert (await create(app, of=original.id, key="k", prompt="a blue ball")).id == first.id
    with pytest.raises(errors.IdempotencyConflict):
        await create(app, of=original.id, key="k", prompt="a green ball")
