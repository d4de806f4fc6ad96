"""Draws one run on the device: text, denoising and decoding, frames going to the tail."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import torch
from opentelemetry import trace
from reelmesh.v1 import video_pb2

from node_agent.engine.decode import decode_frames, to_group, unscale_latents
from node_agent.engine.failures import RunCancelledError, classify, is_out_of_memory
from node_agent.engine.loader import LoadedModel
from node_agent.engine.run import Run
from node_agent.engine.tail import Tail

_log = structlog.get_logger("node_agent.engine.drawing")
_tracer = trace.get_tracer("reelmesh.worker")

# Denoising reports each step. Decoding reports no faster than a person reads: its chunks
# show the progress, and the reports are there for watchdogs.
_DECODE_REPORT_S = 0.2


class DeviceLostError(Exception):
    """The device is in an unknown state; the worker must leave."""


class Artist:
    """Runs jobs on the device, one at a time; used by one thread."""

    def __init__(self, model: LoadedModel, tail: Tail, *, region: str, node_id: str) -> None:
        self._model = model
        self._tail = tail
        self._region = region
        self._node_id = node_id
        # Decode seconds per pixel and frame, from the last run: the last steps' eta.
        self._decode_s_per_pixel = 0.0

    def draw(self, run: Run) -> None:
        """Returns when the device is free again; the run's tail may go on.

        The run's own mistakes end the run and not the worker.

        Raises:
            DeviceLostError: The device failed under the run, which was told so.
        """
        run.started(region=self._region, node=self._node_id)
        try:
            self._model.folder.manifest.check_spec(run.spec)
            self._draw(run)
        except RunCancelledError as error:
            self._tail.fail(run, error)
        except Exception as error:
            self._recover(error)
            self._tail.fail(run, error)
            if classify(error).fatal:
                raise DeviceLostError from error
        else:
            self._tail.finish(run)

    def _draw(self, run: Run) -> None:
        sampler, timings = self._model.sampler, run.timings
        with _stage(run, "encode_text") as clock:
            run.check()
            embeddings = sampler.encode_text(run.spec)
        timings.encode_text_s = clock.elapsed_s
        with _stage(run, "denoise") as clock:
            report = _DenoiseReport(run, decode_s=self._predict_decode_s(run.spec))
            latents = sampler.denoise(
                run.spec, embeddings, on_step=report.step_done, check=run.check
            )
        timings.denoise_s = clock.elapsed_s
        with _stage(run, "decode") as clock:
            self._decode(run, latents)
            if self._model.device.type == "cuda":
                torch.cuda.current_stream(self._model.device).synchronize()
        timings.decode_s = clock.elapsed_s
        self._decode_s_per_pixel = clock.elapsed_s / _pixels(run.spec)

    def _decode(self, run: Run, latents: torch.Tensor) -> None:
        vae = self._model.vae
        with torch.inference_mode():
            z = unscale_latents(vae, latents)
        began_s = reported_s = time.monotonic()
        total = z.shape[2]
        for index, frames in enumerate(decode_frames(vae, z), start=1):
            self._tail.put(run, to_group(frames))
            run.check()
            now_s = time.monotonic()
            if now_s - reported_s >= _DECODE_REPORT_S:
                reported_s = now_s
                eta_s = (now_s - began_s) / index * (total - index)
                run.progress(video_pb2.STAGE_DECODE, index, total, eta_s)

    def _predict_decode_s(self, spec: video_pb2.ResolvedSpec) -> float:
        return self._decode_s_per_pixel * _pixels(spec)

    def _recover(self, error: Exception) -> None:
        if is_out_of_memory(error):
            # The frames of the traceback hold the very tensors that did not fit.
            error.__traceback__ = None
            gc.collect()
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()


class _DenoiseReport:
    """Turns finished steps into progress events with the time that is left."""

    def __init__(self, run: Run, *, decode_s: float) -> None:
        self._run = run
        self._decode_s = decode_s
        self._began_s = time.monotonic()

    def step_done(self, step: int) -> None:
        """The device has finished ``step``, counted from 1."""
        total = self._run.spec.steps
        step_s = (time.monotonic() - self._began_s) / step
        eta_s = step_s * (total - step) + self._decode_s
        self._run.progress(video_pb2.STAGE_DENOISE, step, total, eta_s)


class _StageClock:
    elapsed_s = 0.0


@contextmanager
def _stage(run: Run, name: str) -> Iterator[_StageClock]:
    clock = _StageClock()
    context = trace.set_span_in_context(run.span)
    with _tracer.start_as_current_span(f"worker.{name}", context=context):
        began_s = time.monotonic()
        try:
            yield clock
        finally:
            clock.elapsed_s = time.monotonic() - began_s


def _pixels(spec: video_pb2.ResolvedSpec) -> float:
    return float(spec.width * spec.height * spec.num_frames)
