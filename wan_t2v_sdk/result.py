"""A finished video: its bytes, its frames, and what was made of the request."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from reelmesh.v1 import video_pb2

from wan_t2v_sdk.buffer import VideoBuffer
from wan_t2v_sdk.decode import decode_rgb, to_torch, torch_is_installed

_CACHE: dict[int, str] = {
    video_pb2.CACHE_STATUS_MISS: "miss",
    video_pb2.CACHE_STATUS_HIT: "hit",
    video_pb2.CACHE_STATUS_SHARED: "shared",
    video_pb2.CACHE_STATUS_REFRESHED: "refreshed",
    video_pb2.CACHE_STATUS_BYPASSED: "bypassed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFacts:
    """What was made, and where; everything but the bytes."""

    id: str
    model: str
    model_version: str
    prompt: str
    requested_resolution: str
    """The name that was asked for, such as ``480p``; it became width and height."""
    requested_seconds: float | None
    """The length that was asked for; it became num_frames."""
    width: int
    height: int
    num_frames: int
    fps: float
    steps: int
    unloaded_steps: int | None
    """How many steps it would have had without load; None: as many as it has."""
    guidance_scale: float
    flow_shift: float
    seed: int
    size_bytes: int
    sha256: str
    region: str
    """The region whose node made it."""
    node: str
    attempts: int
    """Runs on nodes that it took; 1 where nothing went wrong."""
    cache: str
    gpu_seconds: float
    timings: dict[str, float]
    """Seconds of each stage on the node, and ``client_s`` as measured here."""
    trace_id: str
    """Names this call in the logs of the mesh."""

    @property
    def duration_s(self) -> float:
        """Playing time in seconds."""
        return self.num_frames / self.fps if self.fps else 0.0


class GenerationResult(Mapping[str, Any]):
    """A finished video. Its bytes have been checked against their sha256.

    Works as a mapping too: ``result["tensor"]``, ``result["video"]`` (the MP4's bytes)
    and every field of :class:`VideoFacts`, such as ``result["num_frames"]``.
    """

    def __init__(self, *, facts: VideoFacts, buffer: VideoBuffer) -> None:
        self.facts = facts
        self._buffer = buffer
        self._frames: Any = None
        self._finalizer = weakref.finalize(self, buffer.close)

    @property
    def id(self) -> str:
        """The video's id in the mesh."""
        return self.facts.id

    @property
    def tensor(self) -> Any:
        """All frames, shape [C, T, H, W] = [3, num_frames, height, width], RGB.

        A ``torch.Tensor`` where torch is installed, else a ``numpy.ndarray``. The
        values are uint8, 0 to 255, since that is what an MP4 holds; ``to_tensor``
        gives floats. Decoded on first use and kept.
        """
        if self._frames is None:
            frames = decode_rgb(self._buffer.open(), num_frames=self.facts.num_frames)
            self._frames = to_torch(frames) if torch_is_installed() else frames
        return self._frames

    def to_tensor(self, dtype: Literal["uint8", "float32"] = "uint8") -> Any:
        """The frames of :attr:`tensor` as uint8 (0 to 255) or float32 (0 to 1)."""
        if dtype == "uint8":
            return self.tensor
        if dtype != "float32":
            raise ValueError(f"dtype must be 'uint8' or 'float32', not {dtype!r}")
        frames = self.tensor
        floats = frames.astype("float32") if hasattr(frames, "astype") else frames.float()
        floats /= 255.0
        return floats

    @property
    def video(self) -> bytes:
        """The MP4's bytes, in memory."""
        return self._buffer.read()

    def save(self, path: str | Path) -> Path:
        """Writes the MP4, whole or not at all, and returns its path.

        Raises:
            OSError: The folder does not exist or cannot be written.
        """
        target = Path(path)
        self._buffer.save(target)
        return target

    def close(self) -> None:
        """Frees the bytes at once; otherwise that happens with the last reference."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, key: str) -> Any:
        if key in ("tensor", "video"):
            return getattr(self, key)
        try:
            return getattr(self.facts, key)
        except (AttributeError, TypeError):
            raise KeyError(f"{key!r}; there is {', '.join(self)}") from None

    def __iter__(self) -> Iterator[str]:
        yield from ("tensor", "video", *asdict(self.facts))

    def __len__(self) -> int:
        return 2 + len(asdict(self.facts))

    def __repr__(self) -> str:
        facts = self.facts
        return (
            f"<GenerationResult {facts.id} {facts.width}x{facts.height} "
            f"{facts.num_frames} frames {facts.fps:g} fps seed {facts.seed} {facts.region}>"
        )


def facts_of(
    *,
    video_id: str,
    completed: video_pb2.CompletedEvent,
    spec: video_pb2.ResolvedSpec,
    region: str,
    node: str,
    attempts: int,
    client_s: float,
    trace_id: str,
) -> VideoFacts:
    """Brings together what the terminal event, the resolved spec and the client know."""
    timings = {
        field.name: getattr(completed.timings, field.name)
        for field in completed.timings.DESCRIPTOR.fields
    }
    return VideoFacts(
        id=video_id,
        model=completed.model or spec.model,
        model_version=completed.model_version or spec.model_version,
        prompt=spec.prompt,
        requested_resolution=spec.requested_resolution,
        requested_seconds=spec.requested_seconds if spec.HasField("requested_seconds") else None,
        width=completed.width,
        height=completed.height,
        num_frames=completed.num_frames,
        fps=completed.fps,
        steps=spec.steps,
        unloaded_steps=spec.unloaded_steps or None,
        guidance_scale=spec.guidance_scale,
        flow_shift=spec.flow_shift,
        seed=completed.seed,
        size_bytes=completed.size_bytes,
        sha256=completed.sha256,
        region=region,
        node=node,
        attempts=attempts,
        cache=_CACHE.get(completed.cache, "unknown"),
        gpu_seconds=completed.gpu_seconds,
        timings={**timings, "client_s": client_s},
        trace_id=trace_id,
    )
