"""Harnesses of the application port's contract suite."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.application import VideoApplication
from gateway.fake_application import FakeApplication
from reelkit.clock import SystemClock


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


HARNESSES = [fake_harness]
