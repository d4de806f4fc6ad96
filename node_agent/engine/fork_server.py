"""A fork server that several agents of one machine share.

``python -m node_agent.engine.fork_server --listen PATH`` imports torch and diffusers once
and then forks a worker for each connection to its socket: agents on one machine start
their workers in milliseconds and share one copy of the libraries' pages. For the local
mesh and for tests; an agent that is alone has a fork server of its own (:mod:`spawn`).

A connection is one worker. The agent sends a line of JSON with the two ends that the
worker gets (its wire and its stderr) beside it; the server answers with lines: the pid,
and in the end the exit code. When the agent closes the connection, or dies, the worker is
killed; when the server dies, all of them are.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_MAX_REQUEST_BYTES: Final = 64 * 1024
_PASSED_FDS: Final = 2
KILL: Final = b"K"


@dataclass(eq=False)
class _Worker:
    connection: socket.socket
    pid: int


class ForkServer:
    """Forks, kills and reaps; one thread, since a fork copies no other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Worker] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def serve(self) -> None:
        """Serves for ever; SIGTERM ends it and every worker."""
        # Bound under another name first: who finds the path finds it listening.
        waiting = self._path.with_suffix(".new")
        waiting.unlink(missing_ok=True)
        self._listener.bind(str(waiting))
        waiting.chmod(0o600)
        self._listener.listen(16)
        waiting.rename(self._path)
        woken, wakes = socket.socketpair()
        woken.setblocking(False)
        wakes.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_args: None)
        signal.signal(signal.SIGTERM, lambda *_args: sys.exit(0))
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is woken:
                    with contextlib.suppress(BlockingIOError):
                        woken.recv(4096)
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
            self._reap()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(5.0)
        try:
            data, fds, _, _ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, _PASSED_FDS)
            request = json.loads(data)
        except (OSError, ValueError):
            connection.close()
            return
        if len(fds) != _PASSED_FDS:
            for fd in fds:
                os.close(fd)
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            self._become_worker(request, *fds)
        for fd in fds:
            os.close(fd)
        self._workers[pid] = _Worker(connection, pid)
        self._selector.register(connection, selectors.EVENT_READ)
        self._tell(connection, pid)

    def _become_worker(self, request: dict[str, object], wire_fd: int, stderr_fd: int) -> None:
        """In the child; does not return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            self._selector.close()
            self._listener.close()
            for worker in self._workers.values():
                worker.connection.close()
            os.dup2(stderr_fd, 1)
            os.dup2(stderr_fd, 2)
            from node_agent.engine.settings import WorkerSettings
            from node_agent.engine.spawn import run_as_worker

            run_as_worker(
                sock=socket.socket(fileno=wire_fd),
                worker_id=str(request["worker_id"]),
                settings=WorkerSettings.model_validate(request["settings"]),
            )
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _hear(self, connection: socket.socket) -> None:
        """Anything an agent says, or its silence, means the same."""
        with contextlib.suppress(OSError):
            connection.recv(64)
        for worker in self._workers.values():
            if worker.connection is connection:
                # Not reaped yet, so the pid is still its own.
                os.kill(worker.pid, signal.SIGKILL)
        self._selector.unregister(connection)

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is None:
                continue
            self._tell(worker.connection, os.waitstatus_to_exitcode(status))
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(worker.connection)
            worker.connection.close()

    def _tell(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            connection.send(f"{number}\n".encode(), socket.MSG_DONTWAIT)


def main() -> None:
    """Imports, then serves."""
    parser = argparse.ArgumentParser(description="Forks engine workers for this machine's agents.")
    parser.add_argument("--listen", type=Path, required=True, help="path of the Unix socket")
    arguments = parser.parse_args()
    import node_agent.engine.preload  # noqa: F401 - the very point

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ForkServer(arguments.listen).serve()


if __name__ == "__main__":
    main()
