"""Draws with the serving engine: a real worker process, its MP4 decoded again."""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import av
import numpy as np
from reelmesh.v1 import node_pb2, video_pb2, worker_pb2

from node_agent.engine.settings import WorkerSettings
from node_agent.engine.spawn import start_worker
from node_agent.model_folder import open_model_folder
from node_agent.worker_wire import SyncWire
from tools.demo_model.evaluator import Clip

_SETTINGS: Final = WorkerSettings(region="tools", node_id="tools", log_level="warning")
_SILENCE_S: Final = 60.0  # a worker beats twice a second


class EngineError(Exception):
    """The worker could not load the model, or failed a run; says what it said."""


class EngineArtist:
    """A worker process that holds one model; use as a context manager.

    Args:
        folder: the model folder.
        threads: torch's threads in the worker; 0 leaves torch its choice.

    Attributes:
        load_s: seconds from the order to load to the weights being there, imports excluded.
        clip_s: seconds of each clip drawn, from the prompt to the last byte of its MP4.
    """

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self._folder = folder
        self._threads = threads
        self._manifest = open_model_folder(folder).manifest
        self.load_s = 0.0
        self.clip_s: list[float] = []

    def __enter__(self) -> Self:
        """Start the worker; return when it is warm."""
        self._process = start_worker(worker_id="tools/worker-0", settings=_SETTINGS)
        self._process.sock.settimeout(_SILENCE_S)
        self._wire = SyncWire.of_agent(self._process.sock)
        try:
            self._load()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker."""
        self._process.kill()
        self._wire.close()
        self._process.join(10)

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
        """Draw one clip [T, H, W, 3] per prompt and seed, at the manifest's defaults."""
        pairs = zip(prompts, seeds, strict=True)
        return [decode_mp4(self.video(prompt, seed)) for prompt, seed in pairs]

    def video(self, prompt: str, seed: int, **changes: Any) -> bytes:
        """Return the MP4 of a prompt at the manifest's defaults, but for ``changes``.

        Raises:
            EngineError: the run failed.
        """
        began_s = time.monotonic()
        generate = worker_pb2.WorkerGenerate(
            run_id=f"{len(self.clip_s)}", attempt=1, spec=self._spec(prompt, seed, changes)
        )
        self._wire.send(worker_pb2.WorkerCommand(generate=generate))
        data = bytearray()
        while True:
            event = self._next("run").run.event
            match event.WhichOneof("event"):
                case "chunk":
                    data += event.chunk.data
                case "completed":
                    self.clip_s.append(time.monotonic() - began_s)
                    return bytes(data)
                case "failed":
                    raise EngineError(f"{event.failed.code}: {event.failed.message}")

    def _load(self) -> None:
        load = worker_pb2.WorkerLoad(
            model_dir=str(self._folder.resolve()), device="cpu", threads=self._threads
        )
        self._until(node_pb2.WORKER_STATE_STARTING)
        began_s = time.monotonic()
        self._wire.send(worker_pb2.WorkerCommand(load=load))
        self._until(node_pb2.WORKER_STATE_WARMING)
        self.load_s = time.monotonic() - began_s
        self._until(node_pb2.WORKER_STATE_IDLE)

    def _until(self, state: node_pb2.WorkerState.ValueType) -> None:
        while self._next("state").state.state != state:
            pass

    def _next(self, kind: str) -> worker_pb2.WorkerEvent:
        """Return the worker's next event of a kind; others are passed over."""
        while (event := self._wire.receive()) is not None:
            if event.HasField("fatal"):
                raise EngineError(f"{event.fatal.code}: {event.fatal.message}")
            if event.WhichOneof("event") == kind:
                return event
        raise EngineError("the worker left")

    def _spec(self, prompt: str, seed: int, changes: dict[str, Any]) -> video_pb2.ResolvedSpec:
        manifest, defaults = self._manifest, self._manifest.defaults
        fields = {
            "prompt": prompt,
            "negative_prompt": defaults.negative_prompt,
            "model": manifest.name,
            "model_version": manifest.version,
            "width": defaults.size.width_px,
            "height": defaults.size.height_px,
            "num_frames": defaults.num_frames,
            "fps": manifest.fps,
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "flow_shift": defaults.flow_shift,
            "seed": seed,
        }
        return video_pb2.ResolvedSpec(**{**fields, **changes})


def decode_mp4(data: bytes) -> Clip:
    """Return the frames [T, H, W, 3] of an MP4, 8-bit RGB as a player shows them."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
