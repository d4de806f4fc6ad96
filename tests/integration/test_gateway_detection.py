"""How soon a gateway notices that a node is gone, with default settings and real processes.

``benchmarks/failover.py`` has the figures; here are the bounds that follow from keepalive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from reelmesh.v1 import control_plane_service_pb2

from tests.support.fake_agent import fake_agent
from tests.support.faultproxy import FaultProxy
from tests.support.gateways import kinds, open_gateway

# Keepalive's timeout and interval, and what a busy machine adds.
NOTICED_S = 2.5 + 1.25
DEADLINE_S = 20.0
WATCHER = Path(__file__).parents[1] / "support" / "link_watcher.py"


@contextlib.asynccontextmanager
async def region(tmp_path):
    """A gateway, and two agents behind proxies."""
    async with contextlib.AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(fake_agent(tmp_path, f"n{i}")) for i in range(2)]
        proxies = [await stack.enter_async_context(FaultProxy(a.address)) for a in agents]
        gateway = await stack.enter_async_context(open_gateway(tmp_path))
        records = [a.record(p.address) for a, p in zip(agents, proxies, strict=True)]
        snapshot = control_plane_service_pb2.FleetSnapshot(nodes=records, models=[agents[0].model])
        gateway.core.fleet.replace(snapshot)
        await gateway.until(
            lambda: all(
                (link := gateway.core.fleet.link(agent.node_id)) is not None and link.ready
                for agent in agents
            )
        )
        yield gateway, agents, proxies


@pytest.mark.parametrize(
    ("fault", "within_s"),
    [("kill", 1.0), ("stop", NOTICED_S), ("cut", NOTICED_S)],
)
async def test_a_node_that_is_gone_is_noticed_and_its_job_goes_on_elsewhere(
    tmp_path, fault, within_s
):
    async with region(tmp_path) as (gateway, agents, proxies):
        video = await gateway.create(prompt="slow", steps=20)
        execution = gateway.core.lifetimes.get(video.id)
        await gateway.until(lambda: execution.progress_percent > 0)
        link = execution.link
        index = next(i for i, agent in enumerate(agents) if agent.node_id == link.node_id)
        began_s = asyncio.get_running_loop().time()
        if fault == "kill":
            agents[index].signal(signal.SIGKILL)
        elif fault == "stop":
            agents[index].signal(signal.SIGSTOP)
        else:
            proxies[index].hold()
        await gateway.until(lambda: not link.connected)
        await gateway.until(lambda: len(execution.record.attempts) == 2)
        assert asyncio.get_running_loop().time() - began_s < within_s
        assert execution.record.attempts[0].cause == "node_lost"
        assert execution.record.attempts[1].node_id == agents[1 - index].node_id
        assert kinds(await gateway.watched(video.id))[-1] == "completed"


class Watcher:
    """A process that holds links, and what it says of them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> dict[str, object]:
        async with asyncio.timeout(DEADLINE_S):
            line = await self.process.stdout.readline()
            assert line, "the process ended"
            return json.loads(line)

    async def block(self, seconds: float) -> None:
        self.process.stdin.write(f"block {seconds}\n".encode())
        await self.process.stdin.drain()
        assert await self.says() == {"blocked": seconds}

    async def stop(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        # The stall is the stimulus: there is nothing to wait for.
        await asyncio.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def watcher_of(*addresses):
    """A process with a link to each address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(WATCHER),
        *addresses,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield Watcher(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("stall", ["block", "stop"])
async def test_a_gateway_that_stood_still_declares_no_node_dead(tmp_path, stall):
    """Twice as long as a cut would take to be noticed."""
    async with (
        fake_agent(tmp_path, "n0") as first,
        fake_agent(tmp_path, "n1") as second,
        watcher_of(first.address, second.address) as watcher,
    ):
        for _ in range(2):
            assert (await watcher.says())["connected"]
        if stall == "block":
            await watcher.block(6.0)
        else:
            await watcher.stop(6.0)
        # Nothing was said of either since; and it does notice what really happens.
        first.signal(signal.SIGKILL)
        assert await watcher.says() == {"node": "n0", "connected": False}
        second.signal(signal.SIGKILL)
        assert await watcher.says() == {"node": "n1", "connected": False}
