"""Videos and readers around the product's own caches, for :mod:`benchmarks.cache`.

What is the product's: the copies of other regions' videos (``gateway/cache/kept.py``, with its
files, digests and fetches), the index of finished ones (``index.py``), both with their policy
(``worth.py``), and single flight (``gateway/core/sharing.py``). What is played here: homes that
answer at once, readers, and time.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.application import Download
from gateway.cache.index import Index
from gateway.cache.kept import KeptVideos
from gateway.cache.keys import video_key
from gateway.core.execution import Execution
from gateway.core.sharing import Sharing
from gateway.fleet.order import Standing
from gateway.fleet.placement import Ask
from gateway.fleet.waiting import Ticket
from gateway.output.artifacts import READ_PIECE_BYTES, open_store
from gateway.output.event_log import EventLog
from gateway.output.spool import VideoBytes
from gateway.output.spool_budget import SpoolBudget
from gateway.tenants import TenantPolicies
from reelkit.clock import SystemClock
from reelkit.tasks import TaskScope

TENANT = "acme"


def popularity(count: int, exponent: float) -> list[float]:
    """Zipf's weights, the most popular first."""
    return [1.0 / rank**exponent for rank in range(1, count + 1)]


def sizes_of(count: int, mean_bytes: int, rng: random.Random) -> list[int]:
    """Lognormal sizes (sigma 0.8), in no relation to popularity."""
    mu = math.log(mean_bytes) - 0.8**2 / 2
    bounds = (mean_bytes // 16, mean_bytes * 16)
    return [int(min(max(rng.lognormvariate(mu, 0.8), bounds[0]), bounds[1])) for _ in range(count)]


@dataclass
class PlainLru:
    """What most would write: the least recently used goes, by bytes."""

    max_bytes: int

    def __post_init__(self) -> None:
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._used = 0

    def ask(self, item: int, size: int) -> bool:
        """Whether it was there; it is from now on."""
        if item in self._sizes:
            self._sizes.move_to_end(item)
            return True
        if size <= self.max_bytes:
            self._sizes[item] = size
            self._used += size
            while self._used > self.max_bytes:
                self._used -= self._sizes.popitem(last=False)[1]
        return False


# --- other regions' videos ---


@dataclass(frozen=True, slots=True)
class Reading:
    """Somebody's download."""

    region: int
    item: int


class Homes:
    """The videos of all regions, each in one."""

    def __init__(self, sizes: Sequence[int], regions: int) -> None:
        self.sizes = sizes
        self.regions = regions
        self._videos: dict[int, tuple[bytes, video_pb2.Video]] = {}

    def home_of(self, item: int) -> int:
        """The region that a video lives in."""
        return item % self.regions

    def video(self, item: int) -> tuple[bytes, video_pb2.Video]:
        """Its bytes and what its home says of it."""
        if item not in self._videos:
            data = random.Random(item).randbytes(self.sizes[item])  # noqa: S311 - only bytes
            sha256 = hashlib.sha256(data).hexdigest()
            result = video_pb2.CompletedEvent(sha256=sha256, size_bytes=len(data), attempt=1)
            self._videos[item] = (
                data,
                video_pb2.Video(
                    id=f"r{self.home_of(item)}-{item}",
                    status=video_pb2.VIDEO_STATUS_COMPLETED,
                    result=result,
                ),
            )
        return self._videos[item]


class Region:
    """One region's gateway, as far as it keeps others' videos."""

    def __init__(self, homes: Homes, kept: KeptVideos) -> None:
        self._homes = homes
        self.kept = kept
        self.crossed_bytes = self.read_bytes = self.hits = self.reads = 0

    async def read(self, item: int) -> None:
        """A client downloads a video of another region whole, and checks it."""
        data, video = self._homes.video(item)

        async def ask() -> video_pb2.Video:
            return video

        async def fetch(offset: int) -> Download:
            return Download(len(data), video.result.sha256, self._sent(data, offset))

        download = await self.kept.download(video.id, offset=0, as_file=False, ask=ask, fetch=fetch)
        got = b"".join([chunk async for chunk in download.chunks])
        assert got == data, "a client got other bytes"
        self.reads += 1
        self.hits += download.cache == video_pb2.CACHE_STATUS_HIT
        self.read_bytes += len(data)

    async def _sent(self, data: bytes, offset: int) -> AsyncGenerator[bytes]:
        for at in range(offset, len(data), READ_PIECE_BYTES):
            piece = data[at : at + READ_PIECE_BYTES]
            self.crossed_bytes += len(piece)
            yield piece


@contextlib.asynccontextmanager
async def open_region(
    folder: Path, homes: Homes, *, max_bytes: int, max_entries: int
) -> AsyncIterator[Region]:
    """A region that keeps so much."""
    store = open_store(str(folder))
    executor = ThreadPoolExecutor(1)
    try:
        async with TaskScope("cache") as scope:
            kept = KeptVideos(
                store=store,
                folder=folder,
                executor=executor,
                max_bytes=max_bytes,
                max_entries=max_entries,
                keep_s=3600.0,
                clock=SystemClock(),
                scope=scope,
            )
            yield Region(homes, kept)
    finally:
        await store.close()
        executor.shutdown()


# --- requests for new videos ---


@dataclass(slots=True)
class Drawn:
    """How requests were answered."""

    requests: int = 0
    hits: int = 0
    shared: int = 0

    @property
    def drawn(self) -> int:
        """The rest."""
        return self.requests - self.hits - self.shared


class Requests:
    """Requests in virtual time, through the index and single flight."""

    def __init__(
        self, sizes: Sequence[int], *, max_bytes: int, max_entries: int, drawing_s: float
    ) -> None:
        policies = TenantPolicies()
        self._sizes = sizes
        self._drawing_s = drawing_s
        self._index = Index(policies=policies, max_bytes=max_bytes, max_entries=max_entries)
        self._sharing = Sharing(policies=policies, enabled=True, max_followers=10**6)
        self._ids = itertools.count()
        self._ends: list[tuple[float, int, Execution]] = []

    def run(self, arrivals: Sequence[tuple[float, int]], *, single_flight: bool) -> Drawn:
        """Answers all of them."""
        found = Drawn()
        for at_s, item in arrivals:
            self._end_until(at_s)
            found.requests += 1
            record = self._record(item)
            entry = self._index.find(TENANT, record.execution_key)
            if entry is not None:
                record.artifact_key = record.video.id
                self._index.used(entry, record)
                found.hits += 1
            elif single_flight and self._sharing.leader_for(TENANT, record.execution_key):
                found.shared += 1
            else:
                self._draw(at_s, record)
        return found

    def _draw(self, at_s: float, record: job_service_pb2.JobRecord) -> None:
        execution = _execution(record)
        self._sharing.open(execution)
        heapq.heappush(self._ends, (at_s + self._drawing_s, next(self._ids), execution))

    def _end_until(self, at_s: float) -> None:
        while self._ends and self._ends[0][0] <= at_s:
            _, _, execution = heapq.heappop(self._ends)
            self._sharing.close(execution)
            self._index.add(execution.record)

    def _record(self, item: int) -> job_service_pb2.JobRecord:
        video_id = f"ap-{next(self._ids)}"
        spec = video_pb2.ResolvedSpec(prompt=f"prompt {item}", model="m", seed=next(self._ids))
        result = video_pb2.CompletedEvent(size_bytes=self._sizes[item])
        return job_service_pb2.JobRecord(
            video=video_pb2.Video(id=video_id, spec=spec, result=result),
            tenant=TENANT,
            artifact_key=video_id,
            execution_key=video_key(spec, seeded=False),
        )


def _execution(record: job_service_pb2.JobRecord) -> Execution:
    log = EventLog(video_id=record.video.id, new_bytes=_no_bytes, queued=video_pb2.QueuedEvent())
    ask = Ask(model=("m", ""), units=1.0)
    ticket = Ticket(
        job_id=record.video.id,
        ask=ask,
        standing=_STANDING,
        units=1.0,
        number=0,
        on_position=_not_told,
    )
    return Execution(record=record, log=log, ticket=ticket, deadline_at_s=math.inf)


_STANDING = Standing(tenant=TENANT, rank=0, weight=1.0, deadline_at_s=math.inf, came_at_s=0.0)
_BUDGET = SpoolBudget(max_bytes=0, max_bytes_per_video=0, patience_s=0.0, clock=SystemClock())


def _no_bytes() -> VideoBytes:
    return VideoBytes(directory=Path(), memory_bytes=0, budget=_BUDGET, executor=_NOBODY)


_NOBODY = ThreadPoolExecutor(1)


def _not_told(_position: int, _eta_s: float | None) -> None:
    """Nobody reads positions here."""
