"""A real generation before the first request: it warms the device and measures it."""

from __future__ import annotations

import threading

from reelmesh.v1 import video_pb2, worker_pb2

from node_agent.engine.drawing import Artist
from node_agent.engine.failures import LoadError
from node_agent.engine.run import Run
from node_agent.manifest import Manifest

_STEPS = 2
_TAIL_TIMEOUT_S = 120.0


def work_units(spec: video_pb2.ResolvedSpec) -> float:
    """The size of a job: pixels of all frames times steps, in millions."""
    return spec.width * spec.height * spec.num_frames * spec.steps / 1e6


def measure_speed(manifest: Manifest, artist: Artist) -> float:
    """Work units a second of a default request, from two short runs at its size.

    The first run pays for what is made once (kernels, memory pools) and shows that the
    default size fits the device; the second is measured, two steps of it, and scaled
    to the default number of steps.

    Raises:
        LoadError: ``warmup_failed``, or the code of what went wrong.
    """
    steps = max(manifest.steps.min, min(_STEPS, manifest.steps.max))
    spec = _default_spec(manifest, steps=steps)
    _draw(artist, spec)
    timings = _draw(artist, spec).timings
    step_s = timings.denoise_s / steps
    default_steps = manifest.defaults.steps
    whole_s = timings.encode_text_s + step_s * default_steps + timings.decode_s
    return work_units(_default_spec(manifest, steps=default_steps)) / max(whole_s, 1e-6)


def _default_spec(manifest: Manifest, *, steps: int) -> video_pb2.ResolvedSpec:
    defaults = manifest.defaults
    return video_pb2.ResolvedSpec(
        prompt="a warm-up",
        negative_prompt=defaults.negative_prompt,
        model=manifest.name,
        model_version=manifest.version,
        width=defaults.size.width_px,
        height=defaults.size.height_px,
        num_frames=defaults.num_frames,
        fps=manifest.fps,
        steps=steps,
        guidance_scale=defaults.guidance_scale,
        flow_shift=defaults.flow_shift,
        seed=0,
    )


def _draw(artist: Artist, spec: video_pb2.ResolvedSpec) -> Run:
    """One whole run through the real tail; its events stay here."""
    ended = threading.Event()
    last: list[worker_pb2.WorkerEvent] = []

    def keep(event: worker_pb2.WorkerEvent) -> None:
        last[:] = [event]
        kind = event.run.event.WhichOneof("event")
        if kind in ("completed", "failed", "cancelled"):
            ended.set()

    run = Run("warm-up", 1, spec, "", keep)
    run.begin()
    artist.draw(run)
    if not ended.wait(_TAIL_TIMEOUT_S):
        raise LoadError("warmup_failed", "the encoder did not finish the warm-up video in time")
    event = last[0].run.event
    if event.HasField("failed"):
        raise LoadError(event.failed.code, f"the warm-up failed: {event.failed.message}")
    return run
