"""Harnesses of the application port's contract suite: the fake, and the real over a fake node."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from reelmesh.v1 import tenant_pb2, video_pb2

from gateway.application import VideoApplication
from gateway.fake_application import FakeApplication
from gateway.tenants import TenantPolicies
from reelkit.clock import SystemClock
from tests.support.fakenode import FakeNode, held, serve_node
from tests.support.gateways import Gateway, open_gateway
from tests.support.mp4s import graded_mp4

MODEST = "modest"
"""A tenant that may ask for batch alone."""


def policies() -> TenantPolicies:
    found = TenantPolicies()
    found.replace([tenant_pb2.TenantPolicy(tenant=MODEST, priority=tenant_pb2.PRIORITY_BATCH)])
    return found


class FakeHarness:
    """The fake, whose videos wait for the test."""

    def __init__(self, folder: Path) -> None:
        self._fake = FakeApplication(
            clock=SystemClock(), hold=True, policies=policies(), folder=folder
        )
        self.application: VideoApplication = self._fake

    async def finish(self, video_id: str) -> None:
        """The video completes, and its record says so."""
        self._fake.progress(video_id, 1)
        self._fake.finish(video_id)


@contextlib.asynccontextmanager
async def fake_harness(tmp_path: Path) -> AsyncIterator[FakeHarness]:
    yield FakeHarness(tmp_path)


class RealHarness:
    """The gateway's own application, over a node that waits for the test."""

    def __init__(self, gateway: Gateway, node: FakeNode) -> None:
        self._gateway = gateway
        self._node = node
        self.application: VideoApplication = gateway.core.videos

    async def finish(self, video_id: str) -> None:
        """Likewise; another video may run on the node meanwhile."""
        await self._node.until(lambda: video_id in self._node.live)
        self._node.live[video_id].go.set()
        execution = self._gateway.core.lifetimes.get(video_id)
        assert execution is not None
        await self._gateway.until(
            lambda: execution.video().status == video_pb2.VIDEO_STATUS_COMPLETED
        )


@contextlib.asynccontextmanager
async def real_harness(tmp_path: Path) -> AsyncIterator[RealHarness]:
    node = FakeNode("n0")
    node.default = held(graded_mp4(), before=2)
    async with (
        serve_node(node),
        open_gateway(tmp_path, policies=policies(), runs={"client_grace_s": 0.1}) as gateway,
    ):
        await gateway.know(node)
        yield RealHarness(gateway, node)


HARNESSES = [fake_harness, real_harness]
