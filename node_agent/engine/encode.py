"""RGB frames to a fragmented MP4, as bytes that are final as soon as they are made.

The container is written front to back and never revisited, so that a client can play
what has arrived. The same frames and settings give the same bytes on one machine.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    VideoReformatter,
)

Rgb = npt.NDArray[np.uint8]

# Video frames that come of one latent frame (the VAE's temporal factor).
FRAMES_PER_LATENT = 4

MAX_CHUNK_BYTES = 256 * 1024

# Fragments smaller than this wait for the next, but never longer than the delay: each
# chunk costs every process on its way about as much as 100 KiB of bytes.
_SMALL_CHUNK_BYTES = 16 * 1024
_SMALL_CHUNK_DELAY_S = 0.2

# FFmpeg hands over what it has whenever this is full; larger than most fragments.
_IO_BUFFER_BYTES = 512 * 1024

_KEYFRAME_INTERVAL_S = 2

# Rates are written with two or three digits.
_NTSC_TOLERANCE = 0.001


def exact_rate(fps: float) -> Fraction:
    """The rate as a ratio; 23.976, 29.97 and 59.94 mean 24000/1001 and so on."""
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(float(ntsc) - fps) < _NTSC_TOLERANCE:
        return ntsc
    return Fraction(fps).limit_denominator(1000)


class ChunkSink:
    """Collects written bytes and hands them on as chunks with contiguous offsets.

    It has ``write`` and nothing else, so that FFmpeg knows that it cannot seek.
    """

    def __init__(
        self,
        on_chunk: Callable[[int, bytes], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_chunk = on_chunk
        self._monotonic = monotonic
        self._pending = bytearray()
        self._offset = 0
        self._digest = hashlib.sha256()
        self._flushed_s = monotonic()
        self._discarding = False

    @property
    def size_bytes(self) -> int:
        """Bytes handed on so far."""
        return self._offset

    def sha256_hex(self) -> str:
        """The digest of the bytes handed on so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Takes what FFmpeg wrote."""
        if not self._discarding:
            self._pending += data
        return len(data)

    def offer(self) -> None:
        """Hands on what is pending where it is large or old enough."""
        due = self._monotonic() - self._flushed_s >= _SMALL_CHUNK_DELAY_S
        if len(self._pending) >= _SMALL_CHUNK_BYTES or (self._pending and due):
            self.flush()

    def flush(self) -> None:
        """Hands on everything pending, in chunks of at most :data:`MAX_CHUNK_BYTES`."""
        data = bytes(self._pending)
        self._pending.clear()
        self._flushed_s = self._monotonic()
        for start in range(0, len(data), MAX_CHUNK_BYTES):
            chunk = data[start : start + MAX_CHUNK_BYTES]
            self._digest.update(chunk)
            offset, self._offset = self._offset, self._offset + len(chunk)
            self._on_chunk(offset, chunk)

    def discard(self) -> None:
        """Throws away what is pending and everything that follows."""
        self._discarding = True
        self._pending.clear()


class Mp4Encoder:
    """An H.264 encoder and MP4 writer for one video; used by one thread.

    yuv420p in BT.709 at video range, tagged so. No B frames and no lookahead: a frame's
    bytes exist once the frame is given. One encoder thread, so that the bytes do not
    depend on the machine's core count.
    """

    def __init__(
        self,
        sink: ChunkSink,
        *,
        width: int,
        height: int,
        rate: Fraction,
        crf: int = 18,
        latent_frames_per_fragment: int = 1,
    ) -> None:
        self._sink = sink
        self._time_base = 1 / rate
        self._reformatter = VideoReformatter()
        self._num_frames = 0
        fragment_s = latent_frames_per_fragment * FRAMES_PER_LATENT / rate
        self._container: Any = av.open(
            sink,
            "w",
            format="mp4",
            buffer_size=_IO_BUFFER_BYTES,
            options={
                "movflags": "empty_moov+default_base_moof",
                "frag_duration": str(int(fragment_s * 1_000_000)),
            },
        )
        self._stream = self._container.add_stream(
            "libx264",
            rate=rate,
            options={"preset": "veryfast", "tune": "zerolatency", "crf": str(crf)},
        )
        self._stream.width = width
        self._stream.height = height
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._time_base
        context = self._stream.codec_context
        context.thread_count = 1
        context.max_b_frames = 0
        context.gop_size = max(1, round(rate * _KEYFRAME_INTERVAL_S))
        _tag_colors(context)

    @property
    def num_frames(self) -> int:
        """Frames written so far."""
        return self._num_frames

    def write(self, frames: Rgb) -> None:
        """Encodes frames of shape [t, height, width, 3]; finished fragments reach the sink."""
        for rgb in frames:
            frame = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(rgb, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            frame.pts = self._num_frames
            frame.time_base = self._time_base
            frame.duration = 1
            _tag_colors(frame)
            self._container.mux(self._stream.encode(frame))
            self._num_frames += 1
        self._sink.offer()

    def close(self) -> None:
        """Ends the video: the last fragment and the index reach the sink."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._sink.flush()

    def abort(self) -> None:
        """Frees everything; what FFmpeg still writes is thrown away. Idempotent."""
        self._sink.discard()
        self._container.close()


def _tag_colors(target: Any) -> None:
    """Says what the numbers mean; a player otherwise guesses, and guesses BT.601."""
    target.colorspace = Colorspace.ITU709
    target.color_range = ColorRange.MPEG
    target.color_primaries = ColorPrimaries.BT709
    target.color_trc = ColorTrc.BT709
