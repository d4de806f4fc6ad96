"""A worker process that speaks the wire and computes nothing, told what to do by prompts.

The agent's tests start it instead of the engine's worker: it is up in a fraction of a
second, and can be made to hang or die at any point. ``tests/contract`` runs the same
cases against it and the real one, so that it stays true to it.

What the load does is in a :class:`Script`. A run does what words in its prompt say:
``die@2`` (killed at step 2), ``hang@2`` (no further event from step 2 on), the same at
``@text``, ``@decode`` and ``@tail`` (encoding), ``fail`` (a failure of its own), ``slow``
(0.2 s a step instead of the script's).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reelmesh.v1 import node_pb2, video_pb2, worker_pb2
from reelmesh.v1.node_service_pb2 import NodeEvent
from reelmesh.v1.worker_pb2 import WorkerEvent

from node_agent.model_folder import (
    ModelFolder,
    ModelFolderError,
    open_model_folder,
    write_manifest,
)
from node_agent.worker_wire import SyncWire, WireError, socket_pair

SIZE = (96, 64)
NAME, VERSION = "fake", "v1"


@dataclass(frozen=True)
class Script:
    """How a worker behaves; ``load`` is ok, die, fatal or hang (heartbeats go on)."""

    load: str = "ok"
    heartbeat_s: float = 0.1
    step_s: float = 0.0
    chunks: int = 2
    chunk_bytes: int = 10_000
    tail_s: float = 0.0
    units_per_second: float = 100.0


# --- the agent's side ---


class FakeHandle:
    """A started fake worker, with the face of the engine's ``WorkerProcess``."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.pid = process.pid
        self.sock = sock
        self._process = process

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


@dataclass
class FakeLauncher:
    """Starts fake workers; each start takes the next script, the last one for good."""

    scripts: list[Script] = field(default_factory=lambda: [Script()])
    handles: list[FakeHandle] = field(default_factory=list)

    def __call__(self, worker_id: str) -> FakeHandle:
        script = self.scripts[min(len(self.handles), len(self.scripts) - 1)]
        ours, theirs = socket_pair()
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    str(theirs.fileno()),
                    json.dumps(asdict(script)),
                    worker_id,
                ],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        handle = FakeHandle(process, ours)
        self.handles.append(handle)
        return handle


def write_fake_model(folder: Path) -> ModelFolder:
    """A model folder with a real manifest and no weights to speak of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"\0" * 64)
    width, height = SIZE
    size = {"width_px": width, "height_px": height}
    return write_manifest(
        folder,
        {
            "name": NAME,
            "version": VERSION,
            "sizes": [size],
            "size_aliases": {"480p": size},
            "frames": {"min": 5, "max": 33},
            "fps": 8.0,
            "seconds": {"min_s": 0.5, "max_s": 4.0},
            "steps": {"min": 1, "max": 100},
            "guidance_scale": {"min": 1.0, "max": 10.0},
            "flow_shift": {"min": 1.0, "max": 10.0},
            "defaults": {
                "size": size,
                "num_frames": 9,
                "steps": 4,
                "guidance_scale": 5.0,
                "flow_shift": 5.0,
            },
            "max_sequence_length": 64,
            "vram_gb": 0.0,
        },
    )


def fake_spec(prompt: str = "a red ball", **changes: object) -> video_pb2.ResolvedSpec:
    """A request that the fake model takes."""
    fields: dict[str, object] = {
        "prompt": prompt,
        "model": NAME,
        "model_version": VERSION,
        "width": SIZE[0],
        "height": SIZE[1],
        "num_frames": 9,
        "fps": 8.0,
        "steps": 4,
        "guidance_scale": 5.0,
        "flow_shift": 5.0,
        "seed": 7,
        **changes,
    }
    return video_pb2.ResolvedSpec(**fields)


# --- the process ---


class _Cancelled(Exception):  # noqa: N818 - it is control flow, like the engine's
    """The run was cancelled."""


class FakeWorker:
    """The scripted process."""

    def __init__(self, wire: SyncWire, script: Script) -> None:
        self._wire = wire
        self._script = script
        self._runs: queue.Queue[str] = queue.Queue()
        self._waiting: dict[str, worker_pb2.WorkerGenerate] = {}
        self._cancelled: dict[str, str] = {}
        self._cancel_came = threading.Condition()
        self._deadlines_s: dict[str, float] = {}
        self._n = 0

    def main(self) -> None:
        """Serves until the agent leaves or says so."""
        threading.Thread(target=self._beat, daemon=True).start()
        threading.Thread(target=self._work, daemon=True).start()
        while (command := self._wire.receive()) is not None:
            kind = command.WhichOneof("command")
            if kind == "load":
                self._load(Path(command.load.model_dir))
            elif kind == "generate":
                self._accept(command.generate)
            elif kind == "cancel":
                self._cancel(command.cancel)
            elif kind == "shutdown":
                return

    def _accept(self, generate: worker_pb2.WorkerGenerate) -> None:
        with self._cancel_came:
            self._waiting[generate.run_id] = generate
            if generate.HasField("deadline_s"):
                self._deadlines_s[generate.run_id] = time.monotonic() + generate.deadline_s
        self._runs.put(generate.run_id)

    def _beat(self) -> None:
        while True:
            self._wire.send(WorkerEvent(heartbeat=worker_pb2.WorkerHeartbeat()))
            time.sleep(self._script.heartbeat_s)

    def _state(self, state: node_pb2.WorkerState.ValueType) -> None:
        self._wire.send(WorkerEvent(state=worker_pb2.WorkerStateChange(state=state)))

    def _load(self, model_dir: Path) -> None:
        self._state(node_pb2.WORKER_STATE_LOADING)
        if self._script.load == "die":
            os._exit(3)
        if self._script.load == "hang":
            return
        if self._script.load == "fatal":
            fatal = worker_pb2.WorkerFatal(code="model_broken", message="told to")
            self._wire.send(WorkerEvent(fatal=fatal))
            os._exit(1)
        try:
            model = open_model_folder(model_dir).to_model_info()
        except ModelFolderError as error:
            fatal = worker_pb2.WorkerFatal(code="model_unusable", message=str(error))
            self._wire.send(WorkerEvent(fatal=fatal))
            os._exit(1)
        self._state(node_pb2.WORKER_STATE_WARMING)
        loaded = worker_pb2.WorkerLoaded(
            model=model, units_per_second=self._script.units_per_second
        )
        self._wire.send(WorkerEvent(loaded=loaded))

    def _cancel(self, cancel: worker_pb2.WorkerCancel) -> None:
        with self._cancel_came:
            waiting = self._waiting.pop(cancel.run_id, None)
            if waiting is None:
                self._cancelled[cancel.run_id] = cancel.reason
                self._cancel_came.notify_all()
        if waiting is not None:
            cancelled = video_pb2.CancelledEvent(reason=cancel.reason)
            self._event(waiting, n=1, cancelled=cancelled)

    def _work(self) -> None:
        while True:
            run_id = self._runs.get()
            with self._cancel_came:
                generate = self._waiting.pop(run_id, None)
            if generate is None:
                continue
            self._n = 0
            try:
                self._generate(generate)
            except _Cancelled:
                reason = self._cancelled[run_id]
                self._event(generate, cancelled=video_pb2.CancelledEvent(reason=reason))

    def _event(self, generate: worker_pb2.WorkerGenerate, n: int = 0, **event: object) -> None:
        if n == 0:
            self._n = n = self._n + 1
        self._wire.send(
            WorkerEvent(
                run=worker_pb2.WorkerRunEvent(
                    run_id=generate.run_id,
                    event=NodeEvent(attempt=generate.attempt, n=n, **event),
                )
            )
        )

    def _wait(self, run_id: str, seconds: float) -> None:
        """Sleeps as a device would; a cancel or the run's deadline ends it."""
        left_s = self._deadlines_s.get(run_id, math.inf) - time.monotonic()
        with self._cancel_came:
            if self._cancel_came.wait_for(lambda: run_id in self._cancelled, min(seconds, left_s)):
                raise _Cancelled
            if left_s <= seconds:
                self._cancelled[run_id] = "deadline"
                raise _Cancelled

    def _generate(self, generate: worker_pb2.WorkerGenerate) -> None:
        spec, run_id = generate.spec, generate.run_id
        self._wait(run_id, 0)
        started = video_pb2.StartedEvent(
            region="fake", node="fake", attempt=generate.attempt, model_version=VERSION
        )
        self._event(generate, started=started)
        if "fail" in spec.prompt:
            failed = video_pb2.FailedEvent(code="model_error", message="told to", retryable=False)
            self._event(generate, failed=failed)
            return
        self._trouble(generate, "text")
        self._denoise(generate)
        self._trouble(generate, "decode")
        done = worker_pb2.WorkerRunDeviceDone(run_id=run_id)
        self._wire.send(WorkerEvent(device_done=done))
        self._finish(generate)

    def _trouble(self, generate: worker_pb2.WorkerGenerate, where: str) -> None:
        """Dies or hangs here where the prompt says so."""
        trouble = re.search(rf"(die|hang)@{where}\b", generate.spec.prompt)
        if trouble is not None and trouble[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble is not None:
            threading.Event().wait()

    def _denoise(self, generate: worker_pb2.WorkerGenerate) -> None:
        spec, run_id = generate.spec, generate.run_id
        step_s = 0.2 if "slow" in spec.prompt else self._script.step_s
        for step in range(1, spec.steps + 1):
            self._trouble(generate, str(step))
            self._wait(run_id, step_s)
            progress = video_pb2.ProgressEvent(
                step=step, total_steps=spec.steps, stage=video_pb2.STAGE_DENOISE
            )
            self._event(generate, progress=progress)

    def _finish(self, generate: worker_pb2.WorkerGenerate) -> None:
        spec = generate.spec
        digest, offset = hashlib.sha256(), 0
        for index in range(self._script.chunks):
            self._wait(generate.run_id, self._script.tail_s)
            data = bytes([(spec.seed + index) % 256]) * self._script.chunk_bytes
            digest.update(data)
            chunk = video_pb2.ChunkEvent(attempt=generate.attempt, offset=offset, data=data)
            self._event(generate, chunk=chunk)
            offset += len(data)
            self._trouble(generate, "tail")
        completed = video_pb2.CompletedEvent(
            sha256=digest.hexdigest(),
            size_bytes=offset,
            num_frames=spec.num_frames,
            fps=spec.fps,
            width=spec.width,
            height=spec.height,
            seed=spec.seed,
            model=spec.model,
            model_version=spec.model_version,
            attempt=generate.attempt,
        )
        self._event(generate, completed=completed)


def main() -> None:
    """The child process: socket's number, script, worker's id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        FakeWorker(SyncWire.of_worker(sock), Script(**json.loads(sys.argv[2]))).main()
    except (OSError, WireError):
        return


if __name__ == "__main__":
    main()
