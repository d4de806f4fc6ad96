"""A worker process: it owns one device, takes commands from its agent and draws.

Threads: the main one owns the device; ``reader`` takes commands, so that a cancel
arrives in the middle of a step; ``heartbeat`` shows that the process lives; ``tail``
encodes and sends. The process ends when its agent does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from pathlib import Path

import structlog
import torch
from opentelemetry.sdk.trace import TracerProvider
from reelmesh.v1 import node_pb2, video_pb2, worker_pb2

from node_agent.engine.drawing import Artist, DeviceLostError
from node_agent.engine.encode import ChunkSink, Mp4Encoder, exact_rate
from node_agent.engine.failures import Failure, LoadError
from node_agent.engine.loader import LoadedModel, load_model
from node_agent.engine.run import Run
from node_agent.engine.settings import WorkerSettings
from node_agent.engine.tail import Tail
from node_agent.engine.warmup import measure_speed
from node_agent.worker_wire import SyncWire, WireError
from reelkit.logs import setup_logging
from reelkit.tracing import setup_tracing

_log = structlog.get_logger("node_agent.engine.worker")

# The agent keeps to one running and one waiting. A second one may be on its way in
# the moment between two runs; more is the agent's mistake.
_MAX_WAITING_RUNS = 2

_TRACE_FLUSH_S = 1
_TAIL_STOP_S = 5.0

_BUSY = Failure("worker_full", "the worker holds a running and a waiting job", retryable=True)
_NOT_READY = Failure("worker_not_ready", "the worker has not loaded its model", retryable=True)

Command = worker_pb2.WorkerLoad | Run


def run_worker(*, sock: socket.socket, worker_id: str, settings: WorkerSettings) -> None:
    """Serves commands on ``sock`` until told to leave; does not return.

    Exit codes: 0 when the agent said so or left, 1 after WorkerFatal.
    """
    setup_logging(level=settings.log_level, fmt=settings.log_format, process="worker")
    structlog.contextvars.bind_contextvars(worker=worker_id)
    provider = setup_tracing(settings.tracing, service="reelmesh-worker", instance=worker_id)
    worker = Worker(SyncWire.of_worker(sock), settings, provider)
    worker.serve()


class Worker:
    """The process's parts and the commands between them."""

    def __init__(
        self,
        wire: SyncWire[worker_pb2.WorkerCommand, worker_pb2.WorkerEvent],
        settings: WorkerSettings,
        provider: TracerProvider,
    ) -> None:
        self._wire = wire
        self._settings = settings
        self._provider = provider
        self._commands: queue.Queue[Command] = queue.Queue(_MAX_WAITING_RUNS + 1)
        self._runs: dict[str, Run] = {}
        self._ready = False
        self._state: node_pb2.WorkerState.ValueType = node_pb2.WORKER_STATE_UNSPECIFIED
        self._tail = Tail(self._open_encoder)

    def serve(self) -> None:
        """The main thread's life: load, warm up, then draw what comes."""
        self._enter(node_pb2.WORKER_STATE_STARTING)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            artist = self._prepare()
            while True:
                self._draw_next(artist)
        except LoadError as error:
            # The message says what is wrong with the folder; a trace adds what it came from.
            _log.error(
                "cannot serve the model",
                code=error.code,
                reason=str(error),
                exc_info=error.__cause__ or False,
            )
            self._die(error.code, str(error))
        except DeviceLostError:
            _log.exception("the device is lost")
            # The job that was hit learns of it before the worker leaves.
            self._tail.stop(_TAIL_STOP_S)
            self._die("device_failed", "the device reported an error; the worker leaves")
        except Exception as error:  # noqa: BLE001 - the process's boundary; logged
            _log.exception("the worker failed")
            self._die("worker_failed", f"unexpected {type(error).__name__}")

    def _prepare(self) -> Artist:
        command = self._commands.get()
        if not isinstance(command, worker_pb2.WorkerLoad):
            raise LoadError("protocol", "the first command must be load")
        if command.threads:
            torch.set_num_threads(command.threads)
        self._enter(node_pb2.WORKER_STATE_LOADING)
        began_s = time.monotonic()
        model = load_model(Path(command.model_dir), command.device or "cpu")
        _log.info(
            "model loaded",
            model=model.folder.manifest.name,
            version=model.folder.manifest.version,
            device=str(model.device),
            seconds=round(time.monotonic() - began_s, 3),
        )
        self._enter(node_pb2.WORKER_STATE_WARMING)
        self._tail.start()
        artist = self._make_artist(model)
        units_per_second = measure_speed(model.folder.manifest, artist)
        _log.info("model warm", units_per_second=round(units_per_second, 3))
        # Before the agent hears of it: its first job may come at once.
        self._ready = True
        loaded = worker_pb2.WorkerLoaded(
            model=model.folder.to_model_info(),
            units_per_second=units_per_second,
            device_uuid=_device_uuid(model.device),
        )
        self._wire.send(worker_pb2.WorkerEvent(loaded=loaded))
        self._enter(node_pb2.WORKER_STATE_IDLE)
        return artist

    def _make_artist(self, model: LoadedModel) -> Artist:
        settings = self._settings
        return Artist(model, self._tail, region=settings.region, node_id=settings.node_id)

    def _draw_next(self, artist: Artist) -> None:
        try:
            command = self._commands.get_nowait()
        except queue.Empty:
            self._enter(node_pb2.WORKER_STATE_IDLE)
            command = self._commands.get()
        if not isinstance(command, Run):
            raise LoadError("protocol", "a worker loads one model in its life")
        if not command.begin():
            return
        self._enter(node_pb2.WORKER_STATE_BUSY)
        try:
            artist.draw(command)
        finally:
            done = worker_pb2.WorkerRunDeviceDone(run_id=command.run_id)
            self._wire.send(worker_pb2.WorkerEvent(device_done=done))

    def _enter(self, state: node_pb2.WorkerState.ValueType) -> None:
        if state == self._state:
            return
        self._state = state
        change = worker_pb2.WorkerStateChange(state=state)
        self._wire.send(worker_pb2.WorkerEvent(state=change))

    def _open_encoder(self, run: Run, sink: ChunkSink) -> Mp4Encoder:
        return open_encoder(run.spec, sink, self._settings)

    def _die(self, code: str, message: str) -> None:
        fatal = worker_pb2.WorkerFatal(code=code, message=message)
        with contextlib.suppress(OSError):
            self._wire.send(worker_pb2.WorkerEvent(fatal=fatal))
        self._leave(1)

    def _leave(self, code: int) -> None:
        self._provider.force_flush(_TRACE_FLUSH_S * 1000)
        # Not sys.exit: the device thread may be in the middle of a kernel, and
        # nothing here needs saying goodbye to.
        os._exit(code)

    # ---- the reader's and the heartbeat's threads ----

    def _beat(self) -> None:
        event = worker_pb2.WorkerEvent(heartbeat=worker_pb2.WorkerHeartbeat())
        while True:
            try:
                self._wire.send(event)
            except OSError:
                self._leave(0)
            time.sleep(self._settings.heartbeat_s)

    def _read(self) -> None:
        try:
            while (command := self._wire.receive()) is not None:
                self._obey(command)
        except (WireError, OSError):
            _log.warning("the agent's connection broke", exc_info=True)
        except Exception:  # noqa: BLE001 - the thread's boundary; logged
            _log.exception("the reader failed")
            self._leave(1)
        self._leave(0)

    def _obey(self, command: worker_pb2.WorkerCommand) -> None:
        match command.WhichOneof("command"):
            case "load":
                self._commands.put(command.load)
            case "generate":
                self._accept(command.generate)
            case "cancel":
                run = self._runs.get(command.cancel.run_id)
                if run is not None:
                    run.cancel(command.cancel.reason)
            case "shutdown":
                self._leave(0)
            case unknown:
                _log.warning("unknown command is ignored", command=unknown)

    def _accept(self, command: worker_pb2.WorkerGenerate) -> None:
        self._runs = {run_id: run for run_id, run in self._runs.items() if not run.ended}
        spec = video_pb2.ResolvedSpec()
        spec.CopyFrom(command.spec)
        run = Run(
            command.run_id,
            command.attempt,
            spec,
            command.traceparent,
            self._wire.send,
            deadline_s=command.deadline_s if command.HasField("deadline_s") else None,
        )
        if not self._ready:
            run.end_failed(_NOT_READY)
            return
        self._runs[run.run_id] = run
        self._drop_ended()
        try:
            self._commands.put_nowait(run)
        except queue.Full:
            run.end_failed(_BUSY)

    def _drop_ended(self) -> None:
        """Takes runs that were cancelled while they waited out of the queue.

        The device thread would pass over them, but only when its present run is over;
        until then they would take the place of runs that the agent may send.
        """
        with self._commands.mutex:
            kept = [
                command
                for command in self._commands.queue
                if not (isinstance(command, Run) and command.ended)
            ]
            self._commands.queue.clear()
            self._commands.queue.extend(kept)


def _device_uuid(device: torch.device) -> str:
    """What NVML calls the device, whose number there may be another; "" for a CPU."""
    if device.type != "cuda":
        return ""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", "")
    return f"GPU-{uuid}" if uuid else ""


def open_encoder(
    spec: video_pb2.ResolvedSpec, sink: ChunkSink, settings: WorkerSettings
) -> Mp4Encoder:
    """The encoder of a run's video with the worker's settings."""
    return Mp4Encoder(
        sink,
        width=spec.width,
        height=spec.height,
        rate=exact_rate(spec.fps),
        crf=settings.video_quality_crf,
        latent_frames_per_fragment=settings.latent_frames_per_fragment,
    )
