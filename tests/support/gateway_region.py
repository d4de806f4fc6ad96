"""A region in the test's process: gateways with all their edges, a control plane, fake nodes.

Everything speaks over real connections. A gateway's end by :meth:`Member.crash` writes
nothing and says no goodbye: as far as the others can tell, it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from prometheus_client import CollectorRegistry
from reelmesh.v1 import job_service_pb2

from control_plane.app import ControlPlaneApp
from control_plane.store.memory import MemoryStore
from gateway.app import GatewayApp, build_app
from gateway.batches.remote import RemoteBatchStore
from gateway.jobs.remote import RemoteJobStore
from reelkit.clock import SystemClock
from tests.support.controlplanes import running
from tests.support.fakenode import FakeNode
from tests.support.gateways import DEADLINE_S, Gateway, gateway_config
from tests.support.healthnodes import HealthNode, attached
from tests.support.tokens import TokenIssuer

ANSWER_S = 5.0


class Gate:
    """A place in the code at which a test may stop whoever comes by."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.reached.set()
        await self._open.wait()

    async def until_reached(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.reached.wait()


class GatedJobs(RemoteJobStore):
    """The region's records, with a gate before and after each write."""

    def __init__(self, *addresses: str, patience_s: float = ANSWER_S) -> None:
        super().__init__(endpoints=addresses, clock=SystemClock(), patience_s=patience_s)
        self.before_create, self.after_create = Gate(), Gate()
        self.before_finish, self.after_finish = Gate(), Gate()
        self.before_claim = Gate()

    async def create(self, record: Any, *, over_assignment: bool = False) -> Any:
        await self.before_create.passed()
        answer = await super().create(record, over_assignment=over_assignment)
        await self.after_create.passed()
        return answer

    async def finish(self, record: Any) -> Any:
        await self.before_finish.passed()
        answer = await super().finish(record)
        await self.after_finish.passed()
        return answer

    async def update(self, record: Any) -> None:
        await super().finish(record)

    async def claim(self, job_id: str, *, epoch: int, owner: Any) -> Any:
        await self.before_claim.passed()
        return await super().claim(job_id, epoch=epoch, owner=owner)


class GatedBatches(RemoteBatchStore):
    """The region's batch records, likewise."""

    def __init__(self, *addresses: str, patience_s: float = ANSWER_S) -> None:
        super().__init__(endpoints=addresses, clock=SystemClock(), patience_s=patience_s)
        self.before_create, self.after_create = Gate(), Gate()
        self.before_update = Gate()

    async def create(self, record: Any) -> Any:
        await self.before_create.passed()
        answer = await super().create(record)
        await self.after_create.passed()
        return answer

    async def update(self, record: Any) -> Any:
        await self.before_update.passed()
        return await super().update(record)


class Member(Gateway):
    """One gateway of the region."""

    def __init__(
        self,
        app: GatewayApp,
        jobs: GatedJobs,
        batches: GatedBatches,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(app.core, CollectorRegistry())
        self.app = app
        self.jobs = jobs
        self.batches = batches
        self.name = app.core.owner.gateway_id
        self._stack = stack

    async def crash(self) -> None:
        """Ends it as kill -9 does."""
        await self._stack.aclose()

    async def drain(self) -> None:
        """Ends it in good order."""
        await self.app.drain()
        await self._stack.aclose()

    @property
    def shares(self) -> Any:
        """Its parts of tenants' limits."""
        return self.app.shares

    def policy(self, tenant: str) -> Any:
        """What it has heard that a tenant may do."""
        return self.core.policies.of(tenant)

    def execution(self, video_id: str) -> Any:
        return self.core.lifetimes.get(video_id)


class GatewayRegion:
    """See the module."""

    def __init__(self, tmp_path: Path, stack: contextlib.AsyncExitStack) -> None:
        self.tmp_path = tmp_path
        self.issuer = TokenIssuer()
        self.control: ControlPlaneApp
        self.nodes: list[HealthNode] = []
        self.records: RemoteJobStore
        self._stack = stack
        self._ends: dict[str, contextlib.AsyncExitStack] = {}

    async def start_control(self, *endpoints: str, **fields: Any) -> Self:
        store = None
        if not endpoints:
            store = await self._stack.enter_async_context(MemoryStore(clock=SystemClock()))
        self.control = await self._stack.enter_async_context(
            running(*endpoints, store=store, **fields)
        )
        self.records = RemoteJobStore(
            endpoints=[self.control.address], clock=SystemClock(), patience_s=ANSWER_S
        )
        self._stack.push_async_callback(self.records.close)
        return self

    async def add_node(self, node: HealthNode) -> None:
        self.nodes.append(node)
        await self._stack.enter_async_context(attached(self.control.address, node))

    async def start(
        self,
        name: str,
        *,
        control: str = "",
        records: str | tuple[str, ...] = "",
        ready: bool = True,
        **changes: Any,
    ) -> Member:
        """A gateway that knows the nodes and the gateways there are.

        Args:
            name: Its id.
            control: Where it finds the control plane, where that is not the place itself.
            records: The same for its job records alone.
            ready: Wait for that.
        """
        jwks = self.issuer.write_jwks(self.tmp_path / "jwks.json")
        auth = {"issuer": self.issuer.issuer, "audience": self.issuer.audience}
        jobs_changes = changes.pop("jobs", {})
        config = gateway_config(
            self.tmp_path,
            gateway_id=name,
            control_plane={"endpoints": [control or self.control.address]},
            jobs={"store": "control-plane", **jobs_changes},
            artifacts={"url": str(self.tmp_path / "artifacts"), **changes.pop("artifacts", {})},
            auth={"issuers": [{**auth, "jwks_file": str(jwks)}]},
            **changes,
        )
        stack = contextlib.AsyncExitStack()
        self._stack.push_async_callback(stack.aclose)
        endpoints = records or control or self.control.address
        jobs = GatedJobs(
            *((endpoints,) if isinstance(endpoints, str) else endpoints),
            patience_s=config.jobs.patience_s,
        )
        stack.push_async_callback(jobs.close)
        batches = GatedBatches(
            *((endpoints,) if isinstance(endpoints, str) else endpoints),
            patience_s=config.jobs.patience_s,
        )
        stack.push_async_callback(batches.close)
        app = await stack.enter_async_context(build_app(config, jobs=jobs, batches=batches))
        member = Member(app, jobs, batches, stack)
        if ready:
            await member.until(lambda: all(member.ready(node) for node in self.nodes))
            await member.until(lambda: member.core.gateways.heard)
        return member

    async def pair(self, **changes: Any) -> tuple[Member, Member]:
        """Two gateways that know one another."""
        one, other = await self.start("a", **changes), await self.start("b", **changes)
        await acquainted(one, other)
        return one, other

    async def record(self, video_id: str, *, tenant: str = "acme") -> job_service_pb2.JobRecord:
        """What stands in the store."""
        record = await self.records.get(tenant, video_id)
        assert record is not None, f"{video_id} has no record"
        return record

    async def until_record(
        self, video_id: str, holds: Callable[[job_service_pb2.JobRecord], object]
    ) -> job_service_pb2.JobRecord:
        """Waits for the record to say something."""
        async with asyncio.timeout(DEADLINE_S):
            while not holds(record := await self.record(video_id)):  # noqa: ASYNC110 - of a store
                await asyncio.sleep(0.02)
        return record

    async def until_record_appears(self, video_id: str) -> job_service_pb2.JobRecord:
        """Waits for there to be one."""
        async with asyncio.timeout(DEADLINE_S):
            while (record := await self.records.get("acme", video_id)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return record

    def run_of(self, video_id: str) -> Any:
        """The only run of a video at any node."""
        runs = [run for node in self.nodes for run in node.runs if run.request.job_id == video_id]
        assert len(runs) == 1, [run.request for run in runs]
        return runs[0]

    def node_of(self, video_id: str) -> FakeNode | None:
        """The node that holds a live run of a video."""
        return next((node for node in self.nodes if video_id in node.live), None)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - conditions of many parts, one wait
                await asyncio.sleep(0.005)


async def acquainted(*members: Member) -> None:
    """Waits until each has heard of the others' present lives."""
    for one in members:
        for other in members:
            owner = other.core.owner
            gateways = one.core.gateways
            await one.until(
                lambda o=owner, g=gateways: g.address_of(o.gateway_id, o.incarnation) is not None
            )


@contextlib.asynccontextmanager
async def gateway_region(
    tmp_path: Path, *etcd: str, nodes: int = 2, script: Any = None, **control: Any
) -> AsyncIterator[GatewayRegion]:
    """A region with a control plane and nodes ``n0`` and on, which keep what nobody reads."""
    async with contextlib.AsyncExitStack() as stack:
        region = await GatewayRegion(tmp_path, stack).start_control(*etcd, **control)
        for index in range(nodes):
            node = HealthNode(f"n{index}", keeps=True)
            if script is not None:
                node.default = script
            await region.add_node(node)
        yield region
