"""The sync client against a gateway that serves made-up videos."""

import os
import signal
import threading

import grpc
import numpy as np
import pytest
from reelmesh.v1 import fleet_service_pb2, tenant_pb2, video_pb2

from tests.support.fakegateway import FPS, FRAMES, HEIGHT, TOKEN, WIDTH, FakeGateway
from wan_t2v_sdk import (
    AuthenticationError,
    ConflictError,
    ConnectionLostError,
    DeadlineError,
    GenerationFailedError,
    InvalidRequestError,
    OtherRegionError,
    TextToVideoGenerator,
    UnavailableError,
    VideoNotFoundError,
)


@pytest.fixture
def ap():
    gateway = FakeGateway("ap")
    yield gateway
    gateway.stop()


@pytest.fixture
def eu():
    gateway = FakeGateway("eu", delay_s=0.05)
    yield gateway
    gateway.stop()


@pytest.fixture
def model(ap):
    with TextToVideoGenerator(endpoints=[ap.endpoint], token=TOKEN, timeout_s=20) as client:
        yield client


@pytest.fixture
def both(ap, eu):
    endpoints = [f"ap={ap.endpoint}", f"eu={eu.endpoint}"]
    with TextToVideoGenerator(endpoints=endpoints, token=TOKEN, timeout_s=30) as client:
        yield client


def test_the_result_says_what_was_resolved_and_holds_the_frames(model, ap, tmp_path):
    result = model.generate(text="一只熊猫", steps=3, resolution="480p", length_sec=6)
    assert (result["width"], result["height"], result["num_frames"]) == (WIDTH, HEIGHT, FRAMES)
    assert (result["requested_resolution"], result["requested_seconds"]) == ("480p", 6.0)
    assert (result["region"], result["node"], result["attempts"]) == ("ap", "n0", 1)
    assert result["timings"]["total_s"] == 1.5
    tensor = result["tensor"]
    assert tuple(tensor.shape) == (3, FRAMES, HEIGHT, WIDTH)
    frames = np.asarray(tensor)
    assert frames.dtype == np.uint8
    assert frames[0, :, :, :20].mean() > 170
    assert frames[1:, :, :, :20].mean() < 40
    floats = np.asarray(result.to_tensor("float32"))
    assert floats.dtype == np.float32
    assert 0 <= floats.min() <= floats.max() <= 1
    assert result.save(tmp_path / "out.mp4").read_bytes() == ap.mp4 == result["video"]
    with pytest.raises(KeyError, match="num_frames"):
        result["frames"]


def test_the_request_carries_what_was_asked_for(model, ap):
    model.generate("x", steps=9, width=64, height=32, num_frames=9, seed=5, negative_prompt="")
    spec = ap.specs[-1]
    assert (spec.steps, spec.width, spec.height, spec.num_frames, spec.seed) == (9, 64, 32, 9, 5)
    assert spec.HasField("negative_prompt")
    assert not spec.HasField("guidance_scale")
    assert ap.options[-1].idempotency_key
    assert len(ap.traceparents[-1].split("-")) == 4


def test_a_priority_is_asked_for_by_its_name(model, ap):
    model.generate("x", priority="batch", quality="auto")
    assert ap.options[-1].priority == tenant_pb2.PRIORITY_BATCH
    assert ap.specs[-1].quality == "auto"
    model.create("x")
    assert ap.options[-1].priority == tenant_pb2.PRIORITY_UNSPECIFIED
    with pytest.raises(InvalidRequestError, match="interactive or batch"):
        model.generate("x", priority="soon")


def test_progress_comes_in_order_in_the_callers_thread(model):
    seen = []
    threads = set()

    def on_progress(event):
        threads.add(threading.current_thread())
        seen.append(event)

    model.generate("x", steps=4, on_progress=on_progress)
    assert threads == {threading.main_thread()}
    assert [event.step for event in seen if event.kind == "progress"] == [1, 2, 3, 4]
    assert seen[0].kind == "queued"
    assert seen[-1].kind == "completed"


def test_a_callback_that_raises_cancels_the_video(model, ap):
    ap.trouble.hang = True

    def on_progress(event):
        if event.kind == "progress":
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        model.generate("x", on_progress=on_progress)
    assert len(ap.cancelled) == 1


def test_a_timeout_of_the_callbacks_own_is_not_taken_for_the_calls(model):
    def on_progress(event):
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        model.generate("x", on_progress=on_progress)


def test_ctrl_c_cancels_the_video(model, ap):
    ap.trouble.hang = True
    interrupt = threading.Timer(0.0, lambda: os.kill(os.getpid(), signal.SIGINT))

    def on_progress(event):
        if event.kind == "progress" and event.step == event.total_steps:
            interrupt.start()

    with pytest.raises(KeyboardInterrupt):
        model.generate("x", steps=2, on_progress=on_progress)
    assert len(ap.cancelled) == 1


def test_a_durable_video_runs_on_when_the_call_is_given_up(model, ap):
    ap.trouble.hang = True
    with pytest.raises(DeadlineError):
        model.generate("x", durable=True, timeout_s=0.5)
    assert ap.cancelled == []


def test_the_time_limit_cancels_the_video(model, ap):
    ap.trouble.hang = True
    with pytest.raises(DeadlineError, match=r"0\.5 s") as caught:
        model.generate("x", timeout_s=0.5)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.video_id == ap.cancelled[0]


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_broken_stream_is_resumed_after_the_last_event(model, ap, after):
    ap.trouble.break_streams_after = [after, 1]
    result = model.generate("x", steps=2)
    assert result["video"] == ap.mp4
    assert ap.calls.count("GenerateVideo") == 1
    assert ap.calls.count("WatchVideo") == 2
    # Whatever had come stays: the second watch goes on after the first.
    assert ap.watched_after[1] > ap.watched_after[0] or after == 1


def test_bytes_of_an_attempt_that_was_restarted_are_thrown_away(model, ap):
    ap.trouble.restart_runs = 1
    kinds = []
    result = model.generate("x", on_progress=lambda event: kinds.append(event.kind))
    assert result["video"] == ap.mp4
    assert result["attempts"] == 2
    assert "restarted" in kinds


def test_damaged_bytes_are_fetched_again(model, ap):
    ap.trouble.damage_streams = 1
    assert model.generate("x")["video"] == ap.mp4
    assert "DownloadVideo" in ap.calls


def test_a_gateway_that_lost_the_video_makes_it_anew(model, ap):
    ap.trouble.break_streams_after = [5]
    ap.trouble.forget_videos = True
    result = model.generate("x")
    assert result["video"] == ap.mp4
    assert ap.options[0].idempotency_key == ap.options[1].idempotency_key
    assert ap.options[1].supersedes == "ap-00000000000000000000000000"


def test_a_video_whose_region_goes_behind_the_gateway_is_made_anew_at_once(model, ap):
    ap.trouble.lose_homes = 1
    ap.trouble.break_streams_after = [5]
    kinds = []
    result = model.generate("x", on_progress=lambda event: kinds.append(event.kind))
    assert result["video"] == ap.mp4
    assert (result["region"], ap.options[1].supersedes) == ("ap", "far-" + "0" * 26)
    assert ap.options[0].idempotency_key == ap.options[1].idempotency_key
    assert ap.calls.count("WatchVideo") == 1
    assert "reconnecting" in kinds


def test_a_failure_that_is_not_the_jobs_own_is_run_again_under_the_next_key(model, ap):
    ap.trouble.fail_runs = [
        video_pb2.FailedEvent(code="worker_died", message="gone", retryable=True)
    ]
    result = model.generate("x", idempotency_key="mine")
    assert result["attempts"] == 2
    assert [each.idempotency_key for each in ap.options] == ["mine", "mine.1"]


def test_runs_that_fail_again_and_again_end_with_the_last_failure(ap):
    ap.trouble.fail_runs = [
        video_pb2.FailedEvent(code="worker_died", message="gone", retryable=True)
    ] * 9
    with (
        TextToVideoGenerator(endpoints=ap.endpoint, token=TOKEN, max_retries=1) as model,
        pytest.raises(GenerationFailedError) as caught,
    ):
        model.generate("x")
    assert caught.value.video_id == "ap-00000000000000000000000001"
    assert caught.value.retryable


def test_a_failure_of_the_jobs_own_is_told(model, ap):
    ap.trouble.fail_runs = [video_pb2.FailedEvent(code="poison", message="it kills workers")]
    with pytest.raises(GenerationFailedError, match="kills workers") as caught:
        model.generate("x")
    assert (caught.value.code, caught.value.retryable) == ("poison", False)
    assert caught.value.video_id
    assert len(ap.specs) == 1
    assert ap.cancelled == []


def test_a_full_region_is_asked_again_after_the_time_it_names(model, ap):
    ap.trouble.refuse = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted", 0.05)]
    assert model.generate("x")["attempts"] == 1
    assert len(ap.options) == 2
    assert ap.options[0].idempotency_key == ap.options[1].idempotency_key


def test_a_stream_goes_on_without_a_key_where_the_job_records_are_away(model, ap):
    away = (grpc.StatusCode.UNAVAILABLE, "job_store_unavailable", 5.0)
    ap.trouble.refuse = [away]
    assert model.generate("x")["attempts"] == 1
    assert [bool(asked.idempotency_key) for asked in ap.options] == [True, False]


@pytest.mark.parametrize("wish", [{"idempotency_key": "mine"}, {"durable": True}])
def test_what_must_be_found_again_waits_for_the_job_records(ap, wish):
    ap.trouble.refuse = [(grpc.StatusCode.UNAVAILABLE, "job_store_unavailable", 0.01)] * 9
    with (
        TextToVideoGenerator(endpoints=ap.endpoint, token=TOKEN, max_retries=1) as model,
        pytest.raises(UnavailableError) as caught,
    ):
        model.generate("x", **wish)
    assert caught.value.code == "job_store_unavailable"
    assert all(asked.idempotency_key for asked in ap.options)


def test_retries_end(ap):
    ap.trouble.refuse = [(grpc.StatusCode.UNAVAILABLE, "unavailable", 0.01)] * 9
    with (
        TextToVideoGenerator(endpoints=ap.endpoint, token=TOKEN, max_retries=2) as model,
        pytest.raises(UnavailableError, match="refused"),
    ):
        model.generate("x")
    assert len(ap.options) == 3


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", InvalidRequestError),
        (grpc.StatusCode.ALREADY_EXISTS, "idempotency_conflict", ConflictError),
    ],
)
def test_a_mistake_of_the_caller_is_not_retried(both, ap, eu, code, reason, kind):
    ap.trouble.refuse = [(code, reason, 0.0)]
    with pytest.raises(kind) as caught:
        both.generate("x")
    assert caught.value.code == reason
    assert len(ap.specs) + len(eu.specs) == 1


def test_the_nearest_region_is_taken(both, ap, eu):
    assert both.generate("x")["region"] == "ap"
    assert [each.name for each in both.regions()][:2] == ["ap", "eu"]


def test_a_region_that_does_not_serve_comes_last(both, ap, eu):
    ap.state = fleet_service_pb2.REGION_STATE_NOT_SERVING
    assert both.generate("x")["region"] == "eu"


def test_a_named_region_is_kept_to(ap, eu):
    endpoints = [ap.endpoint, eu.endpoint]
    with TextToVideoGenerator("eu", endpoints=endpoints, token=TOKEN) as model:
        assert model.generate("x")["region"] == "eu"


def test_a_region_that_goes_before_the_request_is_replaced(both, ap, eu):
    assert both.generate("x")["region"] == "ap"
    ap.stop()
    assert both.generate("x")["region"] == "eu"


def test_a_region_that_goes_in_the_middle_is_replaced(both, ap, eu):
    ap.trouble.hang = True
    kinds = []

    def on_progress(event):
        kinds.append(event.kind)
        if event.kind == "progress" and event.step == event.total_steps and event.step == 2:
            ap.stop()

    result = both.generate("x", steps=2, on_progress=on_progress)
    assert result["region"] == "eu"
    assert result["video"] == eu.mp4
    assert eu.options[0].supersedes == "ap-00000000000000000000000000"
    assert eu.options[0].idempotency_key == ap.options[0].idempotency_key
    assert "reconnecting" in kinds


def test_a_video_whose_home_is_gone_is_not_said_to_be_missing(both, ap, eu):
    video = both.create("x")
    ap.stop()
    with pytest.raises(ConnectionLostError):
        both.get(video.id)
    # The regions are measured anew, and the home is not among those that answer.
    with pytest.raises(OtherRegionError, match="region ap"):
        both.get(video.id)
    with pytest.raises(OtherRegionError):
        both.wait(video.id)


@pytest.fixture
def unnamed(ap, eu):
    """Nobody says which gateway is of which region; eu is asked first."""
    ap.trouble.hide_fleet = eu.trouble.hide_fleet = True
    endpoints = [eu.endpoint, ap.endpoint]
    with TextToVideoGenerator(endpoints=endpoints, token=TOKEN, timeout_s=30) as client:
        yield client


def test_a_video_is_found_though_its_home_is_not_known(unnamed, model, ap, eu):
    video = model.create("x")
    assert unnamed.get(video.id).id == video.id
    assert unnamed.download(video.id)["video"] == ap.mp4
    assert "GetVideo" in eu.calls


def test_a_region_that_goes_is_replaced_though_no_region_is_known(unnamed, ap, eu):
    eu.trouble.hang = True

    def on_progress(event):
        if event.kind == "progress" and event.step == event.total_steps == 2:
            eu.stop()

    assert unnamed.generate("x", steps=2, on_progress=on_progress)["video"] == ap.mp4
    assert ap.options[0].supersedes == "eu-00000000000000000000000000"
    assert ap.options[0].idempotency_key == eu.options[0].idempotency_key


def test_no_gateway_at_all_says_why(eu):
    eu.stop()
    with (
        TextToVideoGenerator(endpoints=eu.endpoint, token=TOKEN, max_retries=0) as model,
        pytest.raises(UnavailableError, match="refuses connections"),
    ):
        model.generate("x")


def test_a_bad_token_is_told_at_once(ap):
    with (
        TextToVideoGenerator(endpoints=ap.endpoint, token="bad") as model,
        pytest.raises(AuthenticationError),
    ):
        model.generate("x")
    assert ap.specs == []


def test_the_other_calls(model, ap):
    video = model.create("x", steps=2)
    assert video.id == "ap-00000000000000000000000000"
    model.create("y")
    model.create("z")
    assert [each.settings.prompt for each in model.list(limit=2)] == ["z", "y"]
    assert [each.settings.prompt for each in model.list()] == ["z", "y", "x"]
    assert model.get(video.id).finished
    assert model.wait(video.id)["video"] == ap.mp4
    events = list(model.watch(video.id))
    assert b"".join(event.data for event in events if event.kind == "chunk") == ap.mp4
    assert [each.kind for each in model.watch(video.id, after_seq=events[-2].seq)] == ["completed"]
    assert model.cancel(video.id).id == video.id
    assert model.models()[0].size_aliases["480p"] == (WIDTH, HEIGHT)
    assert model.models()[0].fps == FPS
    model.delete(video.id)
    with pytest.raises(VideoNotFoundError):
        model.get(video.id)


def test_a_broken_download_goes_on_at_its_offset(model, ap):
    video = model.create("x")
    ap.trouble.break_streams_after = [1]
    assert model.download(video.id)["video"] == ap.mp4
    assert ap.calls.count("DownloadVideo") == 2


def test_giving_a_watch_up_ends_its_stream(model, ap):
    video = model.create("x")
    ap.trouble.hang = True
    for event in model.watch(video.id):
        if event.kind == "progress":
            break
    assert model.get(video.id).id == video.id


def test_a_broken_watch_is_told(model, ap):
    video = model.create("x")
    ap.trouble.break_streams_after = [2]
    with pytest.raises(ConnectionLostError):
        list(model.watch(video.id))


def test_it_works_inside_a_running_loop_as_in_a_notebook(model, ap):
    import asyncio

    async def cell():
        return model.generate("x")

    assert asyncio.run(cell())["video"] == ap.mp4
