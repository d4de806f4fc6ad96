import hashlib
import io
import threading

import av
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from reelmesh.v1 import video_pb2

from benchmarks.bare import BareLoop, Request
from node_agent.engine.drawing import DeviceLostError
from node_agent.engine.encode import ChunkSink, Mp4Encoder
from node_agent.engine.run import Run
from tests.support.engine import Studio, default_encoder, resolved, shared_model


@pytest.fixture
def model(random_model_dir):
    return shared_model(random_model_dir)


@pytest.fixture
def studio(model):
    with Studio(model) as studio:
        yield studio


def test_the_video_is_the_stock_pipelines_byte_for_byte(studio, random_model_dir):
    asked = {"width": 128, "height": 96, "num_frames": 17, "steps": 3, "seed": 2**63 + 5}
    ended = studio.draw("a", negative_prompt="blurred", flow_shift=3.0, **asked)

    bare = BareLoop(random_model_dir, threads=1).generate(
        Request(
            prompt=resolved().prompt,
            negative_prompt="blurred",
            guidance_scale=3.0,
            flow_shift=3.0,
            **asked,
        )
    )

    assert studio.events.video("a") == bare
    assert ended.completed.sha256 == hashlib.sha256(bare).hexdigest()


def test_events_are_numbered_and_say_what_happened(studio):
    ended = studio.draw("a", steps=3, num_frames=13, seed=7)

    events = studio.events.all("a")
    kinds = [event.WhichOneof("event") for event in events]
    assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert (kinds[0], kinds[-1]) == ("started", "completed")
    assert events[0].started == video_pb2.StartedEvent(
        region="ap", node="ap-node-0", attempt=1, model_version="random-1"
    )
    steps = [
        (event.progress.step, event.progress.total_steps)
        for event in events
        if event.progress.stage == video_pb2.STAGE_DENOISE
    ]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    done = ended.completed
    data = studio.events.video("a")
    assert (done.size_bytes, done.num_frames, done.fps) == (len(data), 13, 8.0)
    assert (done.width, done.height, done.seed, done.attempt) == (64, 64, 7, 1)
    assert (done.model, done.model_version) == ("wan-demo", "random-1")
    times = done.timings
    stages_s = times.encode_text_s + times.denoise_s + times.decode_s
    assert done.gpu_seconds == pytest.approx(stages_s)
    assert 0 < stages_s < times.total_s
    assert 0 < times.first_chunk_s <= times.total_s
    with av.open(io.BytesIO(data)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 13


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(studio):
    shas = [studio.draw(str(i), seed=seed).completed.sha256 for i, seed in enumerate([3, 3, 4])]

    assert shas[0] == shas[1] != shas[2]


@pytest.mark.parametrize(
    "change",
    [{"prompt": "a blue square"}, {"negative_prompt": "x"}, {"flow_shift": 2.0}, {"steps": 3}],
)
def test_every_setting_reaches_the_model(studio, change):
    assert studio.draw("a").completed.sha256 != studio.draw("b", **change).completed.sha256


def test_flow_shift_does_not_leak_into_the_next_run(studio):
    first = studio.draw("a").completed.sha256
    studio.draw("b", flow_shift=2.0)

    assert studio.draw("c").completed.sha256 == first


def test_without_guidance_the_negative_prompt_is_not_used(studio):
    plain = studio.draw("a", guidance_scale=1.0).completed.sha256
    other = studio.draw("b", guidance_scale=1.0, negative_prompt="x").completed.sha256

    assert plain == other


def cancel_at(studio: Studio, run: Run, step: int) -> None:
    def on_event(run_id, event):
        if run_id == run.run_id and event.progress.step == step:
            run.cancel("client")

    studio.events.on_event = on_event


def test_a_cancel_takes_effect_within_a_step_and_leaves_no_trace(studio):
    fresh = studio.draw("fresh", steps=6).completed.sha256
    run = studio.run("cancelled", steps=50, seed=99)
    cancel_at(studio, run, 3)

    run.begin()
    studio.artist.draw(run)

    assert studio.events.terminal("cancelled").cancelled.reason == "client"
    steps = [e.progress.step for e in studio.events.all("cancelled") if e.HasField("progress")]
    assert steps == [1, 2, 3]
    assert studio.draw("next", steps=6).completed.sha256 == fresh


def test_a_cancel_leaves_no_step_cache_behind(studio, model):
    transformer = model.sampler._pipe.transformer
    # So loose that every step but a run's first takes what the cache holds.
    transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    try:
        fresh = studio.draw("fresh", steps=6).completed.sha256
        run = studio.run("cancelled", steps=6, seed=99, prompt="something else")
        cancel_at(studio, run, 2)
        run.begin()
        studio.artist.draw(run)

        assert studio.draw("next", steps=6).completed.sha256 == fresh
        assert studio.draw("again", steps=6).completed.sha256 == fresh
    finally:
        transformer.disable_cache()


def test_a_waiting_run_is_cancelled_at_once_and_never_begins(studio):
    run = studio.run("waiting")

    run.cancel("operator")
    run.cancel("operator")

    assert not run.begin()
    assert [e.WhichOneof("event") for e in studio.events.all("waiting")] == ["cancelled"]


class Gated(Mp4Encoder):
    """An encoder that stops at a point until the test lets it go on."""

    reached: threading.Event
    gate: threading.Event

    def close(self) -> None:
        self.reached.set()
        assert self.gate.wait(60)
        super().close()


def gated_studio(model) -> tuple[Studio, threading.Event, threading.Event]:
    reached, gate = threading.Event(), threading.Event()

    def make(run: Run, sink: ChunkSink) -> Mp4Encoder:
        encoder = default_encoder(run, sink)
        if run.run_id == "first":
            encoder.__class__ = Gated
            encoder.reached, encoder.gate = reached, gate
        return encoder

    return Studio(model, make_encoder=make), reached, gate


def test_the_next_run_is_drawn_while_the_last_ones_tail_is_encoded(model):
    studio, reached, gate = gated_studio(model)
    with studio:
        first, second = studio.run("first"), studio.run("second", steps=4)
        first.begin()
        studio.artist.draw(first)
        assert reached.wait(60)

        def on_event(run_id, event):
            # The first run's encoder may end only after the second is half drawn.
            if run_id == "second" and event.progress.step == 2:
                gate.set()

        studio.events.on_event = on_event
        second.begin()
        studio.artist.draw(second)
        studio.events.terminal("second")

    order = studio.events.order()
    assert order.index(("second", "started")) < order.index(("first", "completed"))
    assert order.index(("first", "completed")) < order.index(("second", "completed"))


def test_a_run_can_be_cancelled_while_its_tail_is_encoded(model):
    studio, reached, _gate = gated_studio(model)
    with studio:
        run = studio.run("first", num_frames=49)

        def on_event(run_id, event):
            if event.HasField("chunk"):
                run.cancel("client")

        studio.events.on_event = on_event
        run.begin()
        studio.artist.draw(run)

        assert studio.events.terminal("first").cancelled.reason == "client"
        assert not reached.is_set()
        assert studio.draw("second").HasField("completed")


def test_a_poisoned_model_is_told_and_the_next_run_is_well(studio, model):
    weight = model.vae.decoder.conv_out.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0, 0, 0, 0] = float("nan")
    try:
        failed = studio.draw("bad").failed
    finally:
        with torch.no_grad():
            weight.copy_(saved)

    assert (failed.code, failed.retryable) == ("poisoned_output", False)
    assert studio.draw("good").HasField("completed")


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", True),
        (MemoryError(), "out_of_memory", True),
        (KeyError("/secret/path"), "engine_error", True),
    ],
)
def test_an_error_in_the_model_fails_the_run_and_not_the_worker(
    studio, model, monkeypatch, error, code, retryable
):
    fresh = studio.draw("fresh").completed.sha256
    scheduler = model.sampler._pipe.scheduler
    step, calls = scheduler.step, []

    def fail_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return step(*args, **kwargs)

    monkeypatch.setattr(scheduler, "step", fail_at_the_second)
    failed = studio.draw("bad").failed

    assert (failed.code, failed.retryable) == (code, retryable)
    assert "/secret" not in failed.message
    assert studio.draw("next").completed.sha256 == fresh


def test_a_lost_device_is_told_to_the_run_and_to_the_worker(studio, model, monkeypatch):
    def lose(*_args, **_kwargs):
        raise torch.AcceleratorError("an illegal memory access was encountered", 700)

    monkeypatch.setattr(model.vae.decoder, "forward", lose)
    run = studio.run("a")
    run.begin()

    with pytest.raises(DeviceLostError):
        studio.artist.draw(run)

    failed = studio.events.terminal("a").failed
    assert (failed.code, failed.retryable) == ("device_failed", True)


def test_a_request_that_the_model_cannot_run_is_refused(studio):
    failed = studio.draw("a", num_frames=8).failed

    assert (failed.code, failed.retryable) == ("invalid_spec", False)
    assert "nearest is 9" in failed.message


def test_a_run_belongs_to_the_trace_of_its_caller(studio):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    run = Run("a", 1, resolved(), f"00-{trace_id}-b7ad6b7169203331-01", studio.events.send)

    assert f"{run.span.get_span_context().trace_id:032x}" == trace_id


def test_an_encoder_that_fails_fails_its_run_alone(model):
    def make(run: Run, sink: ChunkSink) -> Mp4Encoder:
        if run.run_id == "bad":
            raise OSError("no encoder")
        return default_encoder(run, sink)

    with Studio(model, make_encoder=make) as studio:
        failed = studio.draw("bad").failed
        assert (failed.code, failed.retryable) == ("engine_error", True)
        assert studio.draw("good").HasField("completed")
