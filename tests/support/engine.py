"""The engine inside the test's own process: a model, an artist, and what it said."""

import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from reelmesh.v1 import node_service_pb2, video_pb2, worker_pb2

from node_agent.engine.drawing import Artist
from node_agent.engine.encode import ChunkSink, Mp4Encoder
from node_agent.engine.loader import LoadedModel, load_model
from node_agent.engine.run import Run
from node_agent.engine.settings import WorkerSettings
from node_agent.engine.tail import Tail
from node_agent.engine.worker import open_encoder

DEADLINE_S = 60.0
TERMINAL = ("completed", "failed", "cancelled")


@cache
def shared_model(model_dir: Path) -> LoadedModel:
    """The random model, loaded once per test process."""
    torch.set_num_threads(1)
    return load_model(model_dir, "cpu")


def resolved(**changes: Any) -> video_pb2.ResolvedSpec:
    """A request that the random model can run, 9 small frames unless changed."""
    fields: dict[str, Any] = {
        "prompt": "a red ball 红球",
        "model": "wan-demo",
        "model_version": "random-1",
        "width": 64,
        "height": 64,
        "num_frames": 9,
        "fps": 8.0,
        "steps": 2,
        "guidance_scale": 3.0,
        "flow_shift": 5.0,
        "seed": 1,
    }
    return video_pb2.ResolvedSpec(**{**fields, **changes})


class Events:
    """Run events in the order they were sent, with waiting."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen: list[tuple[str, node_service_pb2.NodeEvent]] = []
        self.on_event: Callable[[str, node_service_pb2.NodeEvent], None] = lambda *_: None

    def send(self, event: worker_pb2.WorkerEvent) -> None:
        copy = node_service_pb2.NodeEvent()
        copy.CopyFrom(event.run.event)
        with self._changed:
            self._seen.append((event.run.run_id, copy))
            self._changed.notify_all()
        self.on_event(event.run.run_id, copy)

    def all(self, run_id: str) -> list[node_service_pb2.NodeEvent]:
        with self._changed:
            return [event for owner, event in self._seen if owner == run_id]

    def order(self) -> list[tuple[str, str]]:
        with self._changed:
            return [(owner, event.WhichOneof("event") or "") for owner, event in self._seen]

    def wait_for(self, run_id: str, *kinds: str) -> node_service_pb2.NodeEvent:
        """The first event of a kind; fails at the deadline."""

        def found() -> node_service_pb2.NodeEvent | None:
            for owner, event in self._seen:
                if owner == run_id and event.WhichOneof("event") in kinds:
                    return event
            return None

        with self._changed:
            event = self._changed.wait_for(found, DEADLINE_S)
        assert event is not None, f"no {kinds} of {run_id}; saw {self.order()}"
        return event

    def terminal(self, run_id: str) -> node_service_pb2.NodeEvent:
        return self.wait_for(run_id, *TERMINAL)

    def video(self, run_id: str) -> bytes:
        """The chunks joined, after checking that they leave no gap."""
        data = b""
        for event in self.all(run_id):
            if event.HasField("chunk"):
                assert event.chunk.offset == len(data)
                data += event.chunk.data
        return data


class Studio:
    """An artist and a tail over the shared model; use as a context manager."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        make_encoder: Callable[[Run, ChunkSink], Mp4Encoder] | None = None,
    ) -> None:
        self.events = Events()
        self.tail = Tail(make_encoder or default_encoder)
        self.artist = Artist(model, self.tail, region="ap", node_id="ap-node-0")

    def __enter__(self) -> Self:
        self.tail.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.tail.stop(DEADLINE_S)

    def run(self, run_id: str, **changes: Any) -> Run:
        """A run that has not begun."""
        return Run(run_id, 1, resolved(**changes), "", self.events.send)

    def draw(self, run_id: str, **changes: Any) -> node_service_pb2.NodeEvent:
        """Draws on this thread and returns the terminal event."""
        run = self.run(run_id, **changes)
        assert run.begin()
        self.artist.draw(run)
        return self.events.terminal(run_id)


def default_encoder(run: Run, sink: ChunkSink) -> Mp4Encoder:
    return open_encoder(run.spec, sink, WorkerSettings())


def wait_until(condition: Callable[[], bool], *, what: str, timeout_s: float = 30.0) -> None:
    """Returns once the condition holds; for states of other processes, which send nothing."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"gave up waiting for {what}"
        time.sleep(0.02)
