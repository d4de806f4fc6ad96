"""Starts worker processes; imported by the agent, so it never imports torch.

A fork server (:mod:`multiprocessing.forkserver`) imports torch and diffusers once;
each worker is a fork of it, started in about 20 ms and sharing its pages. Lifetimes
hang on one another, so that nothing is left behind however a process ends:

- the agent holds the only write end of the fork server's "alive" pipe: when the agent
  is gone, the fork server leaves;
- a worker dies by PR_SET_PDEATHSIG when the fork server is gone, and leaves by itself
  when its socket to the agent closes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import weakref
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

from reelmesh.v1.worker_pb2 import WorkerEvent, WorkerFatal

from node_agent.engine.settings import WorkerSettings
from node_agent.worker_wire import SyncWire, socket_pair

_PR_SET_PDEATHSIG = 1
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["node_agent.engine.preload"])
_start_lock = threading.Lock()
_live: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """A running worker, seen from its agent.

    ``sock`` is the agent's end of the wire (hand it to ``AsyncWire.open``); ``sentinel``
    is a file descriptor that becomes readable when the process has ended.
    """

    def __init__(self, process: BaseProcess, sock: socket.socket, worker_id: str) -> None:
        assert process.pid is not None  # noqa: S101 - it was started
        self.worker_id = worker_id
        self.pid: int = process.pid
        self.sock = sock
        self.sentinel: int = process.sentinel
        self._process = process

    @property
    def exitcode(self) -> int | None:
        """None while it lives; -9 after SIGKILL; 255 where the fork server died with it."""
        return self._process.exitcode

    def kill(self) -> None:
        """Ends it now (SIGKILL); it cannot refuse. No error if it is gone."""
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def join(self, timeout_s: float) -> bool:
        """Blocks until it has ended, True, or the time is over, False. Use a thread."""
        self._process.join(timeout_s)
        return self._process.exitcode is not None


def warm_forkserver() -> None:
    """Starts the fork server and returns at once; it imports torch meanwhile (seconds)."""
    with _start_lock:
        forkserver.ensure_running()


def stop_forkserver() -> None:
    """Ends the fork server, and workers with it; returns when it is gone. Idempotent.

    It would leave by itself after the agent, but only once its imports are done and
    torch has cleaned up: seconds in which a stopped agent still shows processes.
    """
    server = forkserver._forkserver  # noqa: SLF001 - as below
    pid = getattr(server, "_forkserver_pid", None)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # Reaps it, closes the alive pipe and removes its socket.
    server._stop()  # type: ignore[attr-defined]  # noqa: SLF001 - the standard library's own tests do


def start_worker(*, worker_id: str, settings: WorkerSettings) -> WorkerProcess:
    """Forks a worker that waits for WorkerLoad on its socket.

    Blocks for about 20 ms once the fork server has done its imports and for those
    imports (about 6 s) before, so call it in a thread. A fork server that died is
    started again. The worker dies with this process.

    Raises:
        OSError: The process cannot be made.
        EOFError: The fork server died while it was asked.
    """
    ours, theirs = socket_pair()
    try:
        process = _context.Process(
            target=_run_worker,
            kwargs={"sock": theirs, "worker_id": worker_id, "settings": settings},
            name=worker_id,
            daemon=True,
        )
        with _start_lock:
            process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    worker = WorkerProcess(process, ours, worker_id)
    _live.add(worker)
    return worker


@atexit.register
def _kill_remaining() -> None:
    # Runs before multiprocessing's own exit hook, which would send SIGTERM (ignored
    # by workers) and then wait for ever.
    for worker in list(_live):
        worker.kill()


def _run_worker(*, sock: socket.socket, worker_id: str, settings: WorkerSettings) -> None:
    """The first function of the child process."""
    _die_with_forkserver()
    run_as_worker(sock=sock, worker_id=worker_id, settings=settings)


def run_as_worker(*, sock: socket.socket, worker_id: str, settings: WorkerSettings) -> None:
    """What a forked process does; returns when its agent has sent it away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        from node_agent.engine.worker import run_worker
    except ImportError as error:
        logging.getLogger(__name__).exception("the engine cannot be imported")
        message = f"{error}; install the node extra: pip install 'reelmesh[node]'"
        fatal = WorkerFatal(code="engine_unavailable", message=message)
        SyncWire.of_worker(sock).send(WorkerEvent(fatal=fatal))
        sys.exit(1)
    run_worker(sock=sock, worker_id=worker_id, settings=settings)


def _die_with_forkserver() -> None:
    server = forkserver._forkserver  # noqa: SLF001 - there is no public way to let go of it
    # Every child inherits a copy of the alive pipe's write end, which would keep the
    # fork server, and through it all of us, alive after the agent's death.
    alive_fd = getattr(server, "_forkserver_alive_fd", None)
    if alive_fd is not None:
        os.close(alive_fd)
        server._forkserver_alive_fd = None  # type: ignore[attr-defined]  # noqa: SLF001
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
