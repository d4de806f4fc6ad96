"""A gateway's application over fake nodes, in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from reelmesh.v1 import control_plane_service_pb2, video_pb2, video_service_pb2

from gateway.application import Caller
from gateway.config import GatewayConfig
from gateway.core.assembly import Core, open_core
from gateway.jobs.store import JobStore
from gateway.output.artifacts import ArtifactStore
from gateway.tenants import Policies
from reelkit.clock import Clock, SystemClock
from tests.support.fakenode import MODEL, FakeNode

ME = Caller("acme", "me", frozenset({"video:generate", "video:read"}))
DEADLINE_S = 20.0


def gateway_config(tmp_path: Path, **changes: Any) -> GatewayConfig:
    """Settings with short waits; sections are merged with ``changes``."""
    secret = tmp_path / "secret"
    if not secret.exists():
        secret.write_bytes(random.randbytes(32).hex().encode())
    values: dict[str, Any] = {
        "region": "ap",
        "gateway_id": "ap-gateway-0",
        "state_dir": str(tmp_path / "gateway"),
        "auth": {
            "issuers": [{"issuer": "test", "audience": "test", "shared_secret_file": str(secret)}]
        },
        "control_plane": {"endpoints": ["127.0.0.1:1"]},
        "jobs": {"store": "memory"},
        # Tests ask for the same again and again, and mean another video.
        "cache": {"enabled": False},
    }
    for name, change in changes.items():
        if isinstance(change, dict):
            values[name] = {**values.get(name, {}), **change}
        else:
            values[name] = change
    return GatewayConfig.model_validate(values)


class Gateway:
    """The application and what a test does with it again and again."""

    def __init__(self, core: Core, registry: CollectorRegistry) -> None:
        self.core = core
        self.videos = core.videos
        self.registry = registry

    async def know(self, *nodes: FakeNode) -> None:
        """Tells the fleet of nodes and waits until they are routable."""
        snapshot = control_plane_service_pb2.FleetSnapshot(
            nodes=[node.record() for node in nodes], models=[MODEL]
        )
        self.core.fleet.replace(snapshot)
        await self.until(lambda: all(self.ready(node) for node in nodes))

    def ready(self, node: FakeNode) -> bool:
        """Whether the gateway holds the node to be ready."""
        link = self.core.fleet.link(node.node_id)
        return link is not None and link.ready

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for a condition with a deadline; looks again whenever the loop turned."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - conditions of many parts, one wait
                await asyncio.sleep(0.005)

    async def create(
        self, *, streamed: bool = False, caller: Caller = ME, prompt: str = "a ball", **fields: Any
    ) -> video_pb2.Video:
        """Creates; options are told apart from the spec's fields by their names."""
        named = {"idempotency_key", "durable", "deadline_s", "supersedes", "priority", "no_cache"}
        options = video_service_pb2.CreateOptions(
            **{name: fields.pop(name) for name in named & fields.keys()}
        )
        spec = video_pb2.VideoSpec(prompt=prompt, **fields)
        return await self.videos.create(caller, spec, options, streamed=streamed)

    async def watched(
        self, video_id: str, *, after_seq: int = 0, caller: Caller = ME
    ) -> list[video_pb2.VideoEvent]:
        """Every event to the end."""
        async with asyncio.timeout(DEADLINE_S):
            return [
                event async for event in self.videos.watch(caller, video_id, after_seq=after_seq)
            ]

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the registry; 0 where there is none yet."""
        return self.registry.get_sample_value(f"reelmesh_gateway_{name}", labels) or 0.0


@contextlib.asynccontextmanager
async def open_gateway(
    tmp_path: Path,
    *,
    clock: Clock | None = None,
    jobs: JobStore | None = None,
    artifacts: ArtifactStore | None = None,
    policies: Policies | None = None,
    storage: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[Gateway]:
    """A gateway without edges; it must end without a failed task.

    ``storage`` is the section ``artifacts`` of its settings, whose name is the store's here.
    """
    registry = CollectorRegistry()
    if storage is not None:
        changes["artifacts"] = storage
    config = gateway_config(tmp_path, **changes)
    core_of = open_core(
        config,
        clock=clock or SystemClock(),
        registry=registry,
        jobs=jobs,
        artifacts=artifacts,
        policies=policies,
    )
    async with core_of as core:
        yield Gateway(core, registry)
        assert core.scope.failure is None, core.scope.failure


def kinds(events: list[video_pb2.VideoEvent]) -> list[str]:
    """The kinds of events, in order."""
    return [event.WhichOneof("event") or "" for event in events]


def data_of(events: list[video_pb2.VideoEvent]) -> bytes:
    """The bytes that a client has which throws earlier attempts away on RESTARTED."""
    data = b""
    for event in events:
        if event.HasField("restarted"):
            data = b""
        elif event.HasField("chunk"):
            assert event.chunk.offset == len(data)
            data += event.chunk.data
    return data
