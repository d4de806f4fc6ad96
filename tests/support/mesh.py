"""A whole mesh as processes, started by ``reelmesh up``; the fixture of all e2e tests.

Register it in a conftest: ``from tests.support.mesh import mesh``. The fixture starts one
mesh per session and checks at its end that no process is left behind.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

START_TIMEOUT_S = 100.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.05


class RunningMesh:
    """A mesh that serves, and the ``reelmesh up`` in front of it."""

    def __init__(self, process: subprocess.Popen[bytes], state_dir: Path, output: Path) -> None:
        self.process = process
        self.state_dir = state_dir
        self.output = output

    @property
    def file(self) -> Path:
        return self.state_dir / "mesh.json"

    def document(self) -> dict[str, Any]:
        return json.loads(self.file.read_text(encoding="utf-8"))

    @property
    def token(self) -> str:
        return self.document()["tokens"]["user"]

    def grpc(self, region: str = "ap") -> str:
        return self.document()["regions"][region]["grpc"]

    def http(self, region: str = "ap") -> str:
        return self.document()["regions"][region]["http"]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a client, as ``reelmesh up`` prints it."""
        regions = self.document()["regions"]
        return {
            **os.environ,
            "REELMESH_ENDPOINTS": ",".join(f"{n}={r['grpc']}" for n, r in regions.items()),
            "REELMESH_TOKEN": self.token,
        }

    def pid(self, process_id: str) -> int:
        found = [p["pid"] for p in self.document()["processes"] if p["id"] == process_id]
        assert len(found) == 1, f"{process_id} is listed {len(found)} times"
        return found[0]

    def wait_until(
        self, holds: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = 30
    ) -> dict[str, Any]:
        """Returns mesh.json once it ``holds``."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            document = self.document()
            if holds(document):
                return document
            time.sleep(POLL_S)
        raise AssertionError(f"{what}: not within {timeout_s} s\n{self.said()}")

    def wait_for_new_pid(self, process_id: str, old: int, timeout_s: float = 30) -> int:
        """The pid under which a process is listed after ``old`` died."""

        def renewed(document: dict[str, Any]) -> bool:
            return any(p["id"] == process_id and p["pid"] != old for p in document["processes"])

        self.wait_until(renewed, f"{process_id} is listed with a new pid", timeout_s)
        return self.pid(process_id)

    def family(self) -> list[psutil.Process]:
        """``reelmesh up`` and every process below it."""
        up = psutil.Process(self.process.pid)
        return [up, *up.children(recursive=True)]

    def said(self) -> str:
        """What ``reelmesh up`` printed, and the end of each log."""
        logs = sorted((self.state_dir / "logs").glob("*.log"))
        tails = [f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs]
        return "\n".join([self.output.read_text(errors="replace"), *tails])

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Signals ``reelmesh up``; returns its exit code once nothing is left of the mesh."""
        family = self.family() if self.process.poll() is None else []
        self.process.send_signal(signum)
        code = self.process.wait(STOP_TIMEOUT_S)
        assert_gone(family)
        return code


def assert_gone(processes: list[psutil.Process], timeout_s: float = 20) -> None:
    """Every one of them has ended, or is left as a zombie for its parent to reap."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    left = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {' '.join(process.cmdline())[:150]}")
    assert not left, "left behind:\n" + "\n".join(left)


def launch_up(state_dir: Path, *arguments: str) -> RunningMesh:
    """Starts ``reelmesh up`` and returns at once."""
    output = state_dir.with_name(f"{state_dir.name}.out")
    command = [sys.executable, "-m", "reelmesh_cli", "up", "--state-dir", str(state_dir)]
    # Tests ask for the same again and again, and mean another video.
    environment = {"REELMESH_GATEWAY__CACHE__ENABLED": "false", **os.environ}
    with output.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--threads", "1", *arguments],
            stdout=log,
            stderr=log,
            cwd=state_dir.parent,
            env=environment,
        )
    return RunningMesh(process, state_dir, output)


@contextlib.contextmanager
def running_mesh(state_dir: Path, *arguments: str) -> Iterator[RunningMesh]:
    """A mesh that serves in the block, and of which nothing is left after it."""
    # That of a mesh that was killed in this folder would be taken for the new one's.
    (state_dir / "mesh.json").unlink(missing_ok=True)
    mesh = launch_up(state_dir, *arguments)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not mesh.file.exists():
            assert mesh.process.poll() is None, f"reelmesh up ended:\n{mesh.said()}"
            assert time.monotonic() < deadline_s, f"no mesh.json in time:\n{mesh.said()}"
            time.sleep(POLL_S)
        yield mesh
    finally:
        if mesh.process.poll() is None:
            mesh.stop()


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, random_model_dir: Path) -> Iterator[RunningMesh]:
    """Two regions, ap and eu, with a node each; shared, so leave it as it was."""
    state_dir = tmp_path_factory.mktemp("mesh") / "state"
    with running_mesh(state_dir, "--regions", "ap,eu", "--model", str(random_model_dir)) as running:
        yield running
        assert running.process.poll() is None, f"reelmesh up did not last:\n{running.said()}"
        assert running.stop(signal.SIGINT) == 0
        assert not running.file.exists()
