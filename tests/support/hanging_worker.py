"""The engine's real worker as a process of its own, hung at a stage that a test names.

    python tests/support/hanging_worker.py SOCKET_FD WORKER_ID SETTINGS_JSON STAGE

Stages: ``text``, ``denoise``, ``decode``, ``tail``. The stage's own function is put out of
action once the model is warm, in the thread that would call it; heartbeats go on.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from typing import Any, NoReturn

from node_agent.engine.settings import WorkerSettings
from node_agent.worker_wire import socket_pair
from tests.support.fakeworker import FakeHandle


class HangingLauncher:
    """Starts workers that hang at a stage; after the first so many, sound ones."""

    def __init__(self, stage: str, *, hanging: int = 1) -> None:
        self.handles: list[FakeHandle] = []
        self._stage = stage
        self._hanging = hanging

    def __call__(self, worker_id: str) -> FakeHandle:
        stage = self._stage if len(self.handles) < self._hanging else ""
        settings = WorkerSettings(region="ap", node_id="ap-node-0", log_format="console")
        ours, theirs = socket_pair()
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    str(theirs.fileno()),
                    worker_id,
                    settings.model_dump_json(),
                    stage,
                ],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        handle = FakeHandle(process, ours)
        self.handles.append(handle)
        return handle


def _hang(*_args: Any, **_kwargs: Any) -> NoReturn:
    threading.Event().wait()
    raise AssertionError("an event that nobody sets was set")


def _hang_at(stage: str) -> None:
    """Lets the worker load and warm up, then hang."""
    from node_agent.engine import drawing, encode, sampler, worker

    prepare = worker.Worker._prepare

    def prepare_then_hang(self: worker.Worker) -> drawing.Artist:
        artist = prepare(self)
        if stage == "text":
            sampler.Sampler.encode_text = _hang
        elif stage == "denoise":
            sampler.Sampler.denoise = _hang
        elif stage == "decode":
            drawing.decode_frames = _hang
        elif stage == "tail":
            encode.Mp4Encoder.write = _hang
        return artist

    worker.Worker._prepare = prepare_then_hang


def main() -> None:
    from node_agent.engine.worker import run_worker

    if sys.argv[4]:
        _hang_at(sys.argv[4])
    run_worker(
        sock=socket.socket(fileno=int(sys.argv[1])),
        worker_id=sys.argv[2],
        settings=WorkerSettings.model_validate_json(sys.argv[3]),
    )


if __name__ == "__main__":
    main()
