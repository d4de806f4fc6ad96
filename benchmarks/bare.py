"""The bare loop that the mesh is measured against: one process, the stock pipeline, PyAV.

It does what a script does that has diffusers and PyAV and nothing else: call
``WanPipeline``, turn its frames into 8 bits, encode them. Same weights, threads and codec
settings as a worker, so the same request gives the same bytes (a test checks that).

    python benchmarks/bare.py MODEL_DIR --threads 1 --repeat 20
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from diffusers import WanPipeline

from node_agent.engine.encode import exact_rate
from node_agent.model_folder import open_model_folder

CRF = 18


@dataclass(frozen=True)
class Request:
    """What to draw, every choice made."""

    prompt: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance_scale: float
    flow_shift: float
    seed: int
    negative_prompt: str = ""


class BareLoop:
    """A loaded pipeline; :meth:`generate` is one whole request."""

    def __init__(self, model_dir: Path, *, threads: int, device: str = "cpu") -> None:
        if threads:
            torch.set_num_threads(threads)
        self.manifest = open_model_folder(model_dir).manifest
        dtypes = {
            part: getattr(torch, name) for part, name in self.manifest.dtypes.model_dump().items()
        }
        self._pipe = WanPipeline.from_pretrained(model_dir, local_files_only=True, dtype=dtypes)
        self._pipe.to(device)
        self._pipe.set_progress_bar_config(disable=True)

    def default_request(self, *, prompt: str = "a red ball", seed: int = 0) -> Request:
        """The model's default settings."""
        defaults = self.manifest.defaults
        return Request(
            prompt=prompt,
            negative_prompt=defaults.negative_prompt,
            width=defaults.size.width_px,
            height=defaults.size.height_px,
            num_frames=defaults.num_frames,
            steps=defaults.steps,
            guidance_scale=defaults.guidance_scale,
            flow_shift=defaults.flow_shift,
            seed=seed,
        )

    def generate(self, request: Request) -> bytes:
        """The MP4 of a request, drawn and encoded before this returns."""
        config = self._pipe.scheduler.config
        if config.flow_shift != request.flow_shift:
            self._pipe.scheduler = type(self._pipe.scheduler).from_config(
                config, flow_shift=request.flow_shift
            )
        video = self._pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            max_sequence_length=self.manifest.max_sequence_length,
            output_type="pt",
        ).frames[0]
        levels = video.mul(255.0).round().to(torch.uint8)
        rgb = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return encode_mp4(rgb, exact_rate(self.manifest.fps))


def encode_mp4(frames: np.ndarray, rate: Fraction) -> bytes:
    """Frames of shape [t, height, width, 3] as H.264 in a fragmented MP4."""
    file = io.BytesIO()
    options = {
        "movflags": "empty_moov+default_base_moof",
        "frag_duration": str(int(4 / rate * 1_000_000)),
    }
    with av.open(_WriteOnly(file), "w", format="mp4", options=options) as container:
        stream = container.add_stream(
            "libx264",
            rate=rate,
            options={"preset": "veryfast", "tune": "zerolatency", "crf": str(CRF)},
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / rate
        stream.codec_context.thread_count = 1
        stream.codec_context.max_b_frames = 0
        stream.codec_context.gop_size = max(1, round(rate * 2))
        _tag(stream.codec_context)
        reformatter = VideoReformatter()
        for index, rgb in enumerate(frames):
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(rgb, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            frame.pts, frame.time_base, frame.duration = index, 1 / rate, 1
            _tag(frame)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


class _WriteOnly:
    """A sink that cannot seek, as a network stream."""

    def __init__(self, file: io.BytesIO) -> None:
        self.write = file.write


def _tag(target: av.VideoFrame | av.VideoCodecContext) -> None:
    target.colorspace = Colorspace.ITU709
    target.color_range = ColorRange.MPEG
    target.color_primaries = ColorPrimaries.BT709
    target.color_trc = ColorTrc.BT709


def main() -> None:
    """Prints the loop's own seconds a request and requests a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    loop = BareLoop(args.model_dir, threads=args.threads)
    request = loop.default_request()
    loop.generate(request)
    times_s = []
    for seed in range(args.repeat):
        began_s = time.perf_counter()
        loop.generate(replace(request, seed=seed))
        times_s.append(time.perf_counter() - began_s)
    print(f"p50 {statistics.median(times_s) * 1e3:.1f} ms a request")
    print(f"{len(times_s) / sum(times_s):.2f} requests a second")


if __name__ == "__main__":
    main()
