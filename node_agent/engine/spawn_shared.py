"""Starts workers by a fork server that other agents use too; never imports torch."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from node_agent.engine.settings import WorkerSettings
from node_agent.worker_wire import socket_pair

# Its imports take six seconds, more beside other starts; then the agent helps itself.
CONNECT_S = 30.0
_POLL_S = 0.05
_ANSWER_S = 10.0


class SharedWorker:
    """A running worker whose parent is the shared fork server."""

    def __init__(self, connection: socket.socket, sock: socket.socket, pid: int) -> None:
        self.pid = pid
        self.sock = sock
        self._connection = connection
        self._exitcode: int | None = None
        self._lock = threading.Lock()
        # Names the process itself: a pid alone may be another's once the server reaped it.
        self._pidfd = _pidfd(pid)

    @property
    def exitcode(self) -> int | None:
        """None while it lives; -9 after SIGKILL; 255 where the fork server died with it."""
        self.join(0.0)
        return self._exitcode

    def kill(self) -> None:
        """Ends it now (SIGKILL); no error if it is gone."""
        if self._pidfd is not None and self._exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._connection.send(b"K", socket.MSG_DONTWAIT)

    def join(self, timeout_s: float) -> bool:
        """Blocks until it has ended, True, or the time is over, False."""
        with self._lock:
            if self._exitcode is None:
                readable, _, _ = select.select([self._connection], [], [], timeout_s)
                if readable:
                    self._take_exit()
            return self._exitcode is not None

    def _take_exit(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = self._connection.recv(64)
        self._exitcode = int(data) if data else 255
        self._connection.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def start_shared_worker(path: Path, *, worker_id: str, settings: WorkerSettings) -> SharedWorker:
    """Has the fork server at ``path`` fork a worker that waits for WorkerLoad on its socket.

    Blocks while the server is importing, so call it in a thread.

    Raises:
        OSError: There is no server within :data:`CONNECT_S`, or it does not answer.
    """
    connection = _connect(path)
    ours, theirs = socket_pair()
    try:
        request = {"worker_id": worker_id, "settings": settings.model_dump(mode="json")}
        fds = [theirs.fileno(), sys.stderr.fileno()]
        socket.send_fds(connection, [json.dumps(request).encode()], fds)
        connection.settimeout(_ANSWER_S)
        answer = b""
        while not answer.endswith(b"\n"):
            piece = connection.recv(1)
            if not piece:
                raise OSError("the fork server ended the connection")
            answer += piece
        connection.setblocking(True)
        return SharedWorker(connection, ours, int(answer))
    except BaseException:
        connection.close()
        ours.close()
        raise
    finally:
        theirs.close()


def _connect(path: Path) -> socket.socket:
    give_up_s = time.monotonic() + CONNECT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if time.monotonic() > give_up_s:
                raise OSError(f"no fork server at {path}: {error}") from None
            time.sleep(_POLL_S)
        else:
            return connection


def _pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        # It has ended already, or the system has none.
        return None
