"""Copies of other regions' finished videos, so that their bytes cross once.

A copy is one of bytes and of nothing else. Whether the video is still there, and whose it is,
its home is asked each time, and what it says holds. So nothing is ever served of a video that
is gone; and a copy that nobody was allowed to read in a while goes too, since its video may be.

Which videos are worth their room is a matter of how often they are asked for
(:class:`gateway.cache.worth.Worth`). Those who ask for one that is on its way share its fetch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Final

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.application import Download
from gateway.cache.copy import Copy, Fetch, chunks_of
from gateway.cache.worth import Worth
from gateway.output.artifacts import ArtifactMissing, ArtifactStore
from gateway.output.replay import replay
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

Ask = Callable[[], Awaitable[video_pb2.Video]]
"""A video as its home has it now, for the caller who wants it."""

_MAX_FETCHES: Final = 16
_MAX_WATCHED: Final = 10_000


def _nobody(*_args: object) -> None:
    """Whom to tell where nobody listens."""


class KeptVideos:
    """See the module.

    Args:
        store: Keeps the copies; nothing else lies in it, and nothing of another life.
        folder: For those on their way.
        executor: Threads for the disk.
        max_bytes: Of all copies.
        max_entries: How many those may be.
        keep_s: How long one is kept that nobody is allowed to read.
        scope: Owns the fetches.
        on_evict: Told how many gave way to others.
        on_bytes: Told of bytes that were wanted, and whether they were here.
    """

    def __init__(
        self,
        *,
        store: ArtifactStore,
        folder: Path,
        executor: Executor,
        max_bytes: int,
        max_entries: int,
        keep_s: float,
        clock: Clock,
        scope: TaskScope,
        on_evict: Callable[[int], None] = _nobody,
        on_bytes: Callable[[int, bool], None] = _nobody,
    ) -> None:
        self._store = store
        self._folder = folder
        self._executor = executor
        self._worth = Worth(max_bytes=max_bytes, max_entries=max_entries)
        self._keep_s = keep_s
        self._clock = clock
        self._scope = scope
        self._on_evict = on_evict
        self._on_bytes = on_bytes
        self._copies: dict[str, Copy] = {}
        self._by_id: dict[str, Copy] = {}
        self._fetches = 0
        self._opening: dict[str, asyncio.Event] = {}
        self._watched: OrderedDict[str, None] = OrderedDict()

    @property
    def bytes_held(self) -> int:
        """Bytes of all copies, those on their way included."""
        return self._worth.bytes_held

    @property
    def fetching(self) -> int:
        """Videos on their way."""
        return self._fetches

    def __len__(self) -> int:
        return len(self._copies)

    # --- what clients read ---

    async def download(
        self, video_id: str, *, offset: int, as_file: bool, ask: Ask, fetch: Fetch
    ) -> Download:
        """The bytes of a finished video from an offset; its home allows each.

        Raises:
            GatewayError: What its home answered.
        """
        opening = self._opening.get(video_id)
        if opening is not None and video_id not in self._by_id:
            # Whoever asked first is about to know whether it is kept.
            await opening.wait()
        copy = await self._allowed(video_id, ask)
        if copy is not None and 0 <= offset <= copy.total:
            self._on_bytes(copy.total - offset, True)
            return await copy.download(offset, fetch, as_file=as_file, hit=True)
        opened = self._opening.setdefault(video_id, asyncio.Event())
        try:
            return await self._open(video_id, offset, as_file, fetch)
        finally:
            opened.set()
            if self._opening.get(video_id) is opened:
                del self._opening[video_id]

    async def _open(self, video_id: str, offset: int, as_file: bool, fetch: Fetch) -> Download:
        """From its home, and kept if it is worth that."""
        download = await fetch(offset)
        new = self._take(video_id, download.total_bytes, download.sha256)
        if new is None:
            self._on_bytes(download.total_bytes - offset, False)
            return replace(download, cache=video_pb2.CACHE_STATUS_MISS)
        if offset:
            # A part of it was asked for: that is read from the whole as it comes.
            await _close(download)
        self._begin(new, fetch, None if offset else download)
        return await new.download(offset, fetch, as_file=as_file, hit=False)

    def holds(self, video_id: str) -> bool:
        """Whether a whole copy of it is here."""
        copy = self._by_id.get(video_id)
        return copy is not None and copy.stored

    async def events(
        self, video_id: str, *, after_seq: int, ask: Ask
    ) -> AsyncGenerator[video_pb2.VideoEvent]:
        """The events of a video whose copy is here, as its home would replay them.

        Raises:
            GatewayError: What its home answered.
            ArtifactError: The copy is gone; its home has to be asked for what follows the last
                seq.
        """
        video: video_pb2.Video | None = None

        async def noted() -> video_pb2.Video:
            nonlocal video
            video = await ask()
            return video

        copy = await self._allowed(video_id, noted)
        if copy is None or video is None or not copy.stored:
            raise ArtifactMissing("there is no copy")
        self._on_bytes(copy.total, True)
        record = job_service_pb2.JobRecord(video=video, artifact_key=copy.key)
        async with contextlib.aclosing(replay(record, self._store, after_seq=after_seq)) as events:
            async for event in events:
                yield event

    def watched(self, video_id: str, result: video_pb2.CompletedEvent, fetch: Fetch) -> None:
        """A client has had all of a video from its home by its events.

        The second time it is fetched too: nearly all are watched once, by whoever asked for them.
        """
        self._on_bytes(result.size_bytes, False)
        if video_id in self._by_id:
            return
        if video_id not in self._watched:
            self._watched[video_id] = None
            if len(self._watched) > _MAX_WATCHED:
                self._watched.popitem(last=False)
            return
        del self._watched[video_id]
        copy = self._take(video_id, result.size_bytes, result.sha256)
        if copy is not None:
            self._begin(copy, fetch, None)

    # --- what is kept ---

    async def _allowed(self, video_id: str, ask: Ask) -> Copy | None:
        """The copy of what the video is now, if its home lets the caller have it."""
        if video_id not in self._by_id:
            return None
        # One that is not found stays: it may be another tenant's. Its time is running.
        video = await ask()
        copy = self._standing(video_id, video.result.sha256)
        if copy is not None:
            copy.confirmed_s = self._clock.monotonic()
            self._worth.touch(copy.name)
        return copy

    def _standing(self, video_id: str, sha256: str) -> Copy | None:
        copy = self._by_id.get(video_id)
        return copy if copy is not None and copy.sha256 == sha256 else None

    def _take(self, video_id: str, total: int, sha256: str) -> Copy | None:
        """Room for a video that is worth it; None: it is not, or too many are on their way."""
        if not total or self._fetches >= _MAX_FETCHES:
            return None
        copy = Copy(
            video_id,
            total=total,
            sha256=sha256,
            store=self._store,
            folder=self._folder,
            executor=self._executor,
        )
        copy.confirmed_s = self._clock.monotonic()
        self.forget(video_id)
        lost = self._worth.offer(copy.name, total)
        for name in lost:
            if name in self._copies:
                self._drop(self._copies[name])
        self._on_evict(len(lost) - (copy.name in lost))
        if copy.name in lost:
            return None
        self._copies[copy.name] = self._by_id[video_id] = copy
        return copy

    def _begin(self, copy: Copy, fetch: Fetch, download: Download | None) -> None:
        self._fetches += 1
        fetching = self._scope.spawn(
            copy.fetch(fetch, download, self._on_bytes), name=f"keep/{copy.video_id}", fatal=False
        )

        def fetched(_task: object) -> None:
            self._fetches -= 1
            if not copy.stored and copy.wanted:
                self._drop(copy)

        fetching.add_done_callback(fetched)

    def forget(self, video_id: str) -> None:
        """It is gone, or has become another."""
        copy = self._by_id.get(video_id)
        if copy is not None:
            self._drop(copy)

    def _drop(self, copy: Copy) -> None:
        self._worth.drop(copy.name)
        copy.wanted = False
        del self._copies[copy.name], self._by_id[copy.video_id]
        if copy.stored:
            self._scope.spawn(copy.delete(), name=f"drop/{copy.video_id}", fatal=False)

    async def run(self) -> None:
        """Drops what nobody was allowed to read in a while, again and again."""
        while True:
            await self._clock.sleep(self._keep_s / 8)
            before_s = self._clock.monotonic() - self._keep_s
            for copy in [copy for copy in self._copies.values() if copy.confirmed_s < before_s]:
                self._drop(copy)


async def _close(download: Download) -> None:
    async with contextlib.aclosing(chunks_of(download)) as chunks:
        await anext(chunks, None)
