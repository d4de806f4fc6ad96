"""Harnesses of the application port's contract suite."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.application import VideoApplication
from gateway.fake_application import FakeApplication
from reelkit.clock import SystemClock
from tests.support.fakenode import FakeNode, held, serve_node
from tests.support.gateways import Gateway, open_gateway


class FakeHarness:
    """The fake, whose videos wait for the test."""

    def __init__(self) -> None:
        self._fake = FakeApplication(clock=SystemClock(), hold=True)
        self.application: VideoApplication = self._fake

    async def finish(self, video_id: str) -> None:
        self._fake.progress(video_id, 1)
        self._fake.finish(video_id)


@contextlib.asynccontextmanager
async def fake_harness(_tmp_path: Path) -> AsyncIterator[FakeHarness]:
    yield FakeHarness()


class GatewayHarness:
    """The real one over a fake node whose runs wait for the test."""

    def __init__(self, gateway: Gateway, node: FakeNode) -> None:
        self._node = node
        self.application: VideoApplication = gateway.videos

    async def finish(self, video_id: str) -> None:
        await self._node.until(lambda: video_id in self._node.live)
        run = self._node.live[video_id]
        run.go.set()
        await run.ended.wait()


@contextlib.asynccontextmanager
async def gateway_harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    node = FakeNode("n0", slots=100)
    node.default = held()
    async with (
        serve_node(node),
        open_gateway(tmp_path, runs={"client_grace_s": 0.1}) as gateway,
    ):
        await gateway.know(node)
        yield GatewayHarness(gateway, node)


HARNESSES = [fake_harness, gateway_harness]
