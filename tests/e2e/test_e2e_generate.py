"""A sentence in, an MP4 out, by each public way."""
# ruff: noqa: E501 - the example stands as it was promised

import hashlib
import subprocess
import sys
import textwrap

import openai
import pytest
from reelmesh.v1 import fleet_service_pb2, video_pb2, video_service_pb2

from tests.support.documents import blocks_of
from tests.support.mesh import RunningMesh
from wan_t2v_sdk import AsyncTextToVideoGenerator, TextToVideoGenerator

# As the project promises it to its users, word for word.
EXAMPLE = """
from wan_t2v_sdk import TextToVideoGenerator
model = TextToVideoGenerator(region="auto")          # measures the regions, takes the nearest that serves
result = model.generate(text="一只戴着墨镜的熊猫在跳街舞", steps=20, resolution="480p", length_sec=6)
video_tensor = result["tensor"]                      # [C, T, H, W]; torch if installed, else numpy
result.save("panda.mp4")
"""


def test_grpc_streams_events_and_a_playable_video(ap, look):
    spec = video_pb2.VideoSpec(
        prompt="a red ball", width=96, height=128, num_frames=13, steps=3, seed=11
    )
    call = ap.videos.GenerateVideo(
        video_service_pb2.GenerateVideoRequest(spec=spec), metadata=ap.metadata, timeout=60
    )
    events = [answer.event for answer in call]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "queued"
    assert kinds[-1] == "completed"
    assert kinds.index("started") < kinds.index("progress") < kinds.index("chunk")
    numbers = [event.seq for event in events if event.seq]
    assert numbers == sorted(set(numbers))
    data = b"".join(event.chunk.data for event in events)
    completed = events[-1].completed
    assert (completed.sha256, completed.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (completed.seed, completed.num_frames) == (11, 13)
    clip = look(data)
    assert (clip.codec, clip.width, clip.height, len(clip.frames)) == ("h264", 96, 128, 13)
    assert clip.fps == completed.fps
    assert clip.frames.std() > 1, "every pixel is the same: nothing was drawn"


def test_the_same_seed_gives_the_same_bytes_in_another_region(mesh: RunningMesh):
    digests = set()
    for region in ("ap", "eu"):
        with TextToVideoGenerator.from_mesh(mesh.file, region=region, timeout_s=60) as model:
            result = model.generate("a ball", num_frames=5, steps=2, seed=5, progress=False)
            assert result["region"] == region
            digests.add(result["sha256"])
    assert len(digests) == 1


# OpenAI shuts its own service down; the shape of its API lives on in others.
@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_official_openai_client_works_unchanged(mesh: RunningMesh, look):
    with openai.OpenAI(base_url=f"{mesh.http()}/v1", api_key=mesh.token, timeout=30) as client:
        video = client.videos.create_and_poll(
            prompt="a calico cat", size="1280x720", seconds="4", poll_interval_ms=200
        )
        assert video.status == "completed", video.error
        assert (video.object, video.progress, video.seconds) == ("video", 100, "4")
        content = client.videos.download_content(video.id).read()
        clip = look(content)
        # The manifest says what this model makes of OpenAI's size and of 4 seconds.
        assert (clip.width, clip.height, len(clip.frames)) == (160, 96, 33)
        assert next(each.id for each in client.videos.list(limit=1)) == video.id
        client.videos.delete(video.id)
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)


def test_http_says_what_was_resolved(http_call):
    body = {"prompt": "x", "width": 64, "height": 64, "num_frames": 9, "seed": 3}
    created = http_call("POST", "/v1/videos", body)
    assert created.status in (200, 202), created.body
    made = created.json()
    assert (made["width"], made["height"], made["num_frames"], made["seed"]) == (64, 64, 9, 3)
    cancelled = http_call("POST", f"/v1/videos/{made['id']}/cancel")
    assert cancelled.status == 200, cancelled.body


def test_the_sdk_example_runs_as_written(mesh: RunningMesh, tmp_path, look):
    assert EXAMPLE.strip() in [block.text.strip() for block in blocks_of("README.md")]
    check = textwrap.dedent(
        """
        assert tuple(video_tensor.shape) == (3, result["num_frames"], result["height"], result["width"])
        assert (result["requested_resolution"], result["requested_seconds"]) == ("480p", 6.0)
        print(type(video_tensor).__module__, result["num_frames"], result["fps"], result["steps"])
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLE + check],
        env=mesh.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    library, num_frames, fps, steps = done.stdout.split()
    assert library == "torch"
    assert steps == "20"
    clip = look((tmp_path / "panda.mp4").read_bytes())
    assert len(clip.frames) == int(num_frames) == 49
    assert clip.fps == float(fps) == 8


async def test_the_async_client_runs_several_at_once(mesh: RunningMesh, look):
    import asyncio

    async with AsyncTextToVideoGenerator.from_mesh(mesh.file, timeout_s=60) as model:
        jobs = [
            model.generate(f"number {n}", num_frames=5 + 4 * n, steps=2, progress=False)
            for n in range(3)
        ]
        results = await asyncio.gather(*jobs)
        assert [len(look(each["video"]).frames) for each in results] == [5, 9, 13]
        assert {each.state for each in (await model.regions())} == {"serving"}
        assert {each.id for each in results} <= {each.id for each in await model.list()}


def test_fleet_is_told_by_grpc(ap):
    answer = ap.fleet.ListRegions(
        fleet_service_pb2.ListRegionsRequest(), metadata=ap.metadata, timeout=10
    )
    local = [each for each in answer.regions if each.local]
    assert [each.name for each in local] == ["ap"]
    assert local[0].state == fleet_service_pb2.REGION_STATE_SERVING
    models = ap.fleet.ListModels(
        fleet_service_pb2.ListModelsRequest(), metadata=ap.metadata, timeout=10
    )
    assert [each.name for each in models.models] == [models.default_model]
