"""The fork server that agents of one machine share: who dies with whom."""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from node_agent.app import default_launcher
from node_agent.config import NodeConfig
from node_agent.engine import spawn_shared
from node_agent.engine.settings import WorkerSettings
from node_agent.engine.spawn_shared import start_shared_worker

DEADLINE_S = 60.0
SETTINGS = WorkerSettings(region="ap", node_id="ap-node-0")


@pytest.fixture
def server(tmp_path):
    path = tmp_path / "s"
    command = [sys.executable, "-m", "node_agent.engine.fork_server", "--listen", str(path)]
    process = subprocess.Popen(command)
    yield path, process
    process.kill()
    process.wait(DEADLINE_S)


def gone(pid: int) -> bool:
    _, alive = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 20)
    return not alive


def test_workers_live_and_die_with_those_they_hang_on(server):
    path, process = server
    first, second, third = (
        start_shared_worker(path, worker_id=f"w{number}", settings=SETTINGS) for number in range(3)
    )
    assert first.exitcode is None
    assert len({first.pid, second.pid, third.pid}) == 3

    # Killed by its agent, or by anybody.
    first.kill()
    assert first.join(DEADLINE_S)
    assert first.exitcode == -signal.SIGKILL
    first.kill()

    # Its agent died: all that the server sees is the end of the connection.
    second._connection.close()
    assert gone(second.pid)
    assert third.exitcode is None

    # One that was stopped dies as well.
    os.kill(third.pid, signal.SIGSTOP)
    process.kill()
    assert gone(third.pid)
    assert third.join(DEADLINE_S)
    assert third.exitcode == 255
    for worker in (first, second, third):
        worker.sock.close()


def test_an_agent_without_its_shared_server_helps_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(spawn_shared, "CONNECT_S", 0.2)
    config = NodeConfig.model_validate(
        {
            "node_id": "ap-node-0",
            "region": "ap",
            "model": {"source": "none"},
            "workers": {"fork_server": str(tmp_path / "none")},
        }
    )
    worker = default_launcher(config)("w0")
    try:
        assert psutil.pid_exists(worker.pid)
    finally:
        worker.kill()
        assert worker.join(DEADLINE_S)
        worker.sock.close()


def test_nonsense_on_its_socket_hurts_nobody(server):
    path, _ = server
    sound = start_shared_worker(path, worker_id="w0", settings=SETTINGS)
    for nonsense in (b"", b"{", b"{}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bad:
            bad.connect(str(path))
            bad.send(nonsense)
    again = start_shared_worker(path, worker_id="w1", settings=SETTINGS)
    assert sound.exitcode is None
    for worker in (sound, again):
        worker.kill()
        assert worker.join(DEADLINE_S)
        worker.sock.close()
