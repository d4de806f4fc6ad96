"""Node agents as far as the control plane can tell: their Attach streams, many in a process.

Run by benchmarks/fleet.py. All of them name one address, at which this process answers the
standard health calls: the control plane's own calls to nodes are part of what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Sequence

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import model_pb2, node_pb2
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub

from benchmarks.machine import LoopDelay
from benchmarks.support.talk import Answer, answer_questions
from reelkit import rpc
from reelkit.tasks import TaskScope

REGION = "bench"
HELLOS_AT_ONCE = 100

_MODEL = model_pb2.ModelInfo(name="demo", version="v0", manifest_sha256="0" * 64)


class SimAgent:
    """One agent's stream; begun anew when it breaks."""

    def __init__(self, node_id: str, address: str, channel: aio.Channel, scope: TaskScope) -> None:
        self.node_id = node_id
        self._scope = scope
        self.silent = False
        self.breaks = 0
        self._address = address
        self._stub = ControlPlaneServiceStub(channel)
        self._lease_id = 0
        self._status = node_pb2.NodeStatus(
            node_id=node_id,
            version=1,
            state=node_pb2.NODE_STATE_READY,
            workers=[node_pb2.WorkerStatus(id=f"{node_id}/worker-0", device="cuda:0")],
            free_slots=2,
            units_per_second=2.0,
            models=[
                node_pb2.ModelVersion(
                    name=_MODEL.name,
                    version=_MODEL.version,
                    manifest_sha256=_MODEL.manifest_sha256,
                )
            ],
        )
        self._news = asyncio.Event()
        self._beat_s = 2.0

    async def run(self, hellos: asyncio.Semaphore, welcomed: asyncio.Queue[str]) -> None:
        """Attaches, reports and attaches again, until cancelled."""
        while True:
            try:
                await self._attached(hellos, welcomed)
            except (aio.AioRpcError, asyncio.InvalidStateError):
                self.breaks += 1
                await asyncio.sleep(1.0)

    def change(self, mark: str) -> None:
        """Something about the node changed; reported at once."""
        self._status.reason = mark
        self._news.set()

    async def _attached(self, hellos: asyncio.Semaphore, welcomed: asyncio.Queue[str]) -> None:
        async with hellos:
            call = self._stub.Attach()
            hello = cp.NodeHello(
                node_id=self.node_id,
                region=REGION,
                address=self._address,
                incarnation="life-1",
                models=[_MODEL],
                pid=1,
                status=self._status,
                lease_id=self._lease_id,
            )
            await call.write(cp.AttachRequest(hello=hello))
            self._take(await call.read())
        welcomed.put_nowait(self.node_id)
        reading = self._scope.spawn(self._read(call), name=self.node_id, fatal=False)
        try:
            while not reading.done():
                try:
                    async with asyncio.timeout(self._beat_s):
                        await self._news.wait()
                except TimeoutError:
                    pass
                # Before the report is made: what is new while it is sent makes another.
                self._news.clear()
                if not self.silent:
                    self._status.version += 1
                    await call.write(cp.AttachRequest(status=self._status))
            await reading
        finally:
            reading.cancel()
            call.cancel()

    async def _read(self, call: aio.StreamStreamCall) -> None:
        while isinstance(response := await call.read(), cp.AttachResponse):
            self._take(response)

    def _take(self, response: object) -> None:
        if isinstance(response, cp.AttachResponse) and response.HasField("welcome"):
            self._lease_id = response.welcome.lease_id
            self._beat_s = response.welcome.lease_ttl_s / rpc.REPORTS_PER_LEASE


class Agents:
    """The agents of this process, and what they are asked to do."""

    def __init__(self, agents: Sequence[SimAgent], scope: TaskScope) -> None:
        self._agents = agents
        self._scope = scope
        self._welcomed: asyncio.Queue[str] = asyncio.Queue()

    async def attach(self) -> Answer:
        """All of them say hello; answers when all were welcomed."""
        hellos = asyncio.Semaphore(HELLOS_AT_ONCE)
        for agent in self._agents:
            self._scope.spawn(agent.run(hellos, self._welcomed), name=f"{agent.node_id}/run")
        for _ in self._agents:
            await self._welcomed.get()
        return {"at": time.monotonic()}

    async def change(self, rate: float, for_s: float) -> Answer:
        """Changes one node after the other at a steady rate; the mark holds the time."""
        async with LoopDelay() as loop:
            begin_s = time.monotonic()
            agents = itertools.cycle(self._agents)
            for number in range(int(rate * for_s)):
                pause_s = begin_s + number / rate - time.monotonic()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)
                next(agents).change(f"mark {time.monotonic():.6f}")
        return {"changes": int(rate * for_s), "loop_p99_s": loop.delay.p99_s}

    async def silence(self, share: float) -> Answer:
        """That share of the agents hangs: streams stand, and nothing is reported."""
        silenced = self._agents[: round(share * len(self._agents))]
        for agent in silenced:
            agent.silent = True
        return {"at": time.monotonic(), "agents": len(silenced)}

    async def resume(self) -> Answer:
        """All of them report again."""
        for agent in self._agents:
            agent.silent = False
        return {"at": time.monotonic()}

    async def breaks(self) -> Answer:
        """How often a stream broke."""
        return {"breaks": sum(agent.breaks for agent in self._agents)}


async def serve(args: argparse.Namespace) -> None:
    """Runs the agents until the parent closes our input."""
    server = aio.server(options=rpc.server_options())
    health_service = health.aio.HealthServicer()
    await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with TaskScope("fleet-agents") as scope:
        channels: list[aio.Channel] = []
        agents = []
        for number in range(args.first, args.first + args.count):
            if (number - args.first) % args.per_connection == 0:
                channels.append(rpc.internal_channel(args.control_plane))
            agents.append(SimAgent(f"node-{number:05d}", address, channels[-1], scope))
        fleet = Agents(agents, scope)
        await answer_questions(
            {
                "attach": fleet.attach,
                "change": fleet.change,
                "silence": fleet.silence,
                "resume": fleet.resume,
                "breaks": fleet.breaks,
            }
        )


def main() -> None:
    """Starts as a child of benchmarks/fleet.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control-plane", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--per-connection", type=int, required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
