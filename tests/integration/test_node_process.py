"""The agent as a process of its own, with the engine's real worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from reelmesh.v1 import node_pb2

from tests.support.agents import DEADLINE_S, agent_process, until

MAX_AGENT_BYTES = 120 * 1024 * 1024


async def all_gone(family: list[psutil.Process]) -> None:
    """Zombies count as gone: whoever is init here reaps them."""

    def living() -> list[psutil.Process]:
        alive = []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive

    await until(lambda: not living(), what="the agent's children to leave", within_s=30)


async def test_one_agent_from_start_to_sigterm(tmp_path, random_model_dir):
    """Runs, survives its worker's death, stays small, and leaves nothing behind."""
    async with agent_process(tmp_path, random_model_dir) as agent:
        status = await agent.until_ready()
        worker_pid = status.workers[0].pid
        family = agent.family()
        assert worker_pid in {process.pid for process in family}
        completed = (await agent.last_event(agent.request("a"))).completed
        assert completed.size_bytes > 0

        rss_bytes = psutil.Process(agent.process.pid).memory_info().rss
        assert rss_bytes < MAX_AGENT_BYTES, f"{rss_bytes / 2**20:.0f} MiB"

        os.kill(worker_pid, signal.SIGKILL)
        await agent.until(
            lambda s: s.state == node_pb2.NODE_STATE_READY and s.workers[0].pid != worker_pid
        )
        again = (await agent.last_event(agent.request("b"))).completed
        assert again.sha256 == completed.sha256, "same seed, same bytes, another process"

        family = agent.family()
        agent.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.process.wait, DEADLINE_S) == 0
        await all_gone(family)
        assert "Traceback" not in agent.log.read_text()


async def test_a_dead_fork_server_is_replaced_and_a_killed_agent_takes_all_along(
    tmp_path, random_model_dir
):
    async with agent_process(tmp_path, random_model_dir) as agent:
        before = (await agent.until_ready()).workers[0].pid
        fork_server = psutil.Process(before).parent()
        assert fork_server.pid != agent.process.pid
        fork_server.kill()
        status = await agent.until(
            lambda s: s.state == node_pb2.NODE_STATE_READY and s.workers[0].pid != before
        )
        family = agent.family()
        assert status.workers[0].pid in {process.pid for process in family}
        agent.process.kill()
        agent.process.wait(DEADLINE_S)
        await all_gone(family)


async def test_sigterm_while_the_engine_is_still_imported_is_obeyed(tmp_path, random_model_dir):
    async with agent_process(tmp_path, random_model_dir) as agent:
        family = agent.family()
        began_s = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.process.wait, DEADLINE_S) == 0
        await all_gone(family)
        assert time.monotonic() - began_s < 5, "it did not wait for torch"


def test_the_agent_imports_no_torch():
    """Everything that the agent process imports, in a fresh interpreter."""
    script = (
        "import sys, node_agent.__main__, node_agent.app, node_agent.engine.spawn\n"
        "import grpc_reflection.v1alpha.reflection\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'av', 'obstore'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--check-config", "--set", "workers.threads=3"], 0, "threads: 3"),
        (["--set", "workers.threads=-1"], 2, "workers.threads"),
        (["--set", "nonsense"], 2, "nonsense"),
    ],
)
def test_the_command_line(tmp_path, arguments, code, said):
    file = tmp_path / "node.yaml"
    file.write_text("node_id: a\nregion: ap\nmodel: {source: x}\n")
    done = subprocess.run(
        [sys.executable, "-m", "node_agent", "--config", str(file), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
