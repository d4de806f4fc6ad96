"""The application port in memory: the fake beside it, for tests of the edges.

It keeps the port's promises with the same validation as the real one; one contract
suite runs on both. What it leaves out is the mesh: a video is "drawn" at once, or, with
``hold``, when the test says so by :meth:`FakeApplication.progress`, ``finish``, ``fail``.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from reelmesh.v1 import fleet_service_pb2, model_pb2, video_pb2, video_service_pb2

from gateway import errors
from gateway.application import ALL_FIT, JPEG, MP4, Caller, Download, Link, Variant
from gateway.jobs.attempts import TERMINAL_N, seq_of
from gateway.jobs.ids import VideoIds, not_here, region_of
from gateway.jobs.records import no_bytes
from gateway.jobs.store import TERMINAL_STATUSES
from gateway.output.local_file import LocalFile
from gateway.output.threads import Threads
from gateway.output.wire import encode_event
from gateway.priority import check_priority, granted
from gateway.tenants import Policies, TenantPolicies
from gateway.validation.fields import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, check_options
from gateway.validation.policy import resolve_within
from gateway.validation.remix import remixed
from gateway.validation.request import Catalog
from gateway.webhooks.addresses import UrlRules
from reelkit.clock import Clock
from reelkit.tracing import current_traceparent

CHUNK_BYTES = 4_096
FILE_TIMEOUT_S = 10.0
EXPIRY_S = 24 * 3600
# Of no video, but JPEGs by their first and last bytes.
PICTURES: Mapping[Variant, bytes] = MappingProxyType(
    {
        video_service_pb2.VIDEO_VARIANT_THUMBNAIL: b"\xff\xd8\xff a thumbnail \xff\xd9",
        video_service_pb2.VIDEO_VARIANT_SPRITESHEET: b"\xff\xd8\xff a spritesheet \xff\xd9",
    }
)


def fake_model() -> model_pb2.ModelInfo:
    """A model with a little of every rule."""
    return model_pb2.ModelInfo(
        name="fake-t2v",
        version="1.0.0",
        manifest_sha256="0" * 64,
        pipeline_class="WanPipeline",
        sizes=[
            model_pb2.VideoSize(width_px=128, height_px=96),
            model_pb2.VideoSize(width_px=96, height_px=128),
        ],
        size_aliases=[
            model_pb2.SizeAlias(alias=alias, size=model_pb2.VideoSize(width_px=w, height_px=h))
            for alias, w, h in (
                ("480p", 128, 96),
                ("1280x720", 128, 96),
                ("720x1280", 96, 128),
                ("1792x1024", 128, 96),
                ("1024x1792", 96, 128),
            )
        ],
        frames=model_pb2.FrameRule(min=5, max=97, step=4),
        fps=8,
        seconds=model_pb2.SecondsRule(min_s=0.5, max_s=12),
        steps=model_pb2.IntRange(min=1, max=100),
        guidance_scale=model_pb2.DoubleRange(min=0, max=20),
        flow_shift=model_pb2.DoubleRange(min=0.1, max=20),
        defaults=model_pb2.GenerationDefaults(
            size=model_pb2.VideoSize(width_px=128, height_px=96),
            num_frames=17,
            steps=4,
            guidance_scale=5,
            flow_shift=3,
        ),
        max_prompt_chars=2000,
    )


@dataclass(eq=False, slots=True)
class _Job:
    """One video, its events and who watches."""

    tenant: str
    video: video_pb2.Video
    request: bytes
    key: str
    streamed: bool
    keeps_on: bool
    data: bytes
    events: list[video_pb2.VideoEvent] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: int = 0
    attempt: int = 1
    sent: int = 0

    def tell(self, n: int, **event: object) -> None:
        seq = seq_of(self.attempt, n)
        # The keyword is one of the oneof's names; mypy cannot follow that.
        event_ = video_pb2.VideoEvent(seq=seq, video_id=self.video.id, **event)  # type: ignore[arg-type]
        self.events.append(event_)
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.video.status in TERMINAL_STATUSES


class FakeApplication:
    """A :class:`gateway.application.VideoApplication` without a mesh behind it.

    Args:
        clock: Stamps the records.
        region: The home region of every video.
        hold: Videos wait for the test; otherwise each is complete before its create
            call answers.
        video_bytes: Size of each video.
        policies: What tenants may do.
        folder: Where downloads are files; nowhere by default.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        region: str = "ap",
        hold: bool = False,
        video_bytes: int = 10_000,
        policies: Policies | None = None,
        folder: Path | None = None,
    ) -> None:
        self.hold = hold
        self.broken: Exception | None = None
        """Raised by every call, where a test sets it."""
        self.links = ""
        """What links begin with, where a test has them."""
        self.readiness: tuple[bool, str] = (True, "")
        self.traceparents: list[str] = []
        """The span around each create call, as a W3C traceparent."""
        self._clock = clock
        self._region = region
        self.video_bytes = video_bytes
        self._policies = policies or TenantPolicies()
        self._folder = folder
        self._threads = Threads(4, "fake-files")
        self._ids = VideoIds(region, clock=clock)
        self._models = [fake_model()]
        self._jobs: dict[str, _Job] = {}
        self._keys: dict[tuple[str, str], str] = {}

    # --- what a test does ---

    def progress(self, video_id: str, step: int) -> None:
        """The node finished a step; the first one also starts the video."""
        job = self._jobs[video_id]
        total = job.video.spec.steps
        if job.video.status == video_pb2.VIDEO_STATUS_QUEUED:
            self._start(job)
        job.video.progress_percent = 100 * step // total
        event = video_pb2.ProgressEvent(step=step, total_steps=total, stage=video_pb2.STAGE_DENOISE)
        job.tell(1 + step, progress=event)

    def finish(self, video_id: str) -> None:
        """The node drew the video to its end."""
        job = self._jobs[video_id]
        if job.video.status == video_pb2.VIDEO_STATUS_QUEUED:
            self._start(job)
        spec = job.video.spec
        self.send(video_id, until=len(job.data))
        completed = video_pb2.CompletedEvent(
            sha256=hashlib.sha256(job.data).hexdigest(),
            size_bytes=len(job.data),
            num_frames=spec.num_frames,
            fps=spec.fps,
            width=spec.width,
            height=spec.height,
            seed=spec.seed,
            model_version=spec.model_version,
            model=spec.model,
            attempt=job.attempt,
        )
        job.video.result.CopyFrom(completed)
        job.video.progress_percent = 100
        self._end(job, video_pb2.VIDEO_STATUS_COMPLETED, completed=completed)

    def send(self, video_id: str, *, until: int) -> None:
        """The node sent its bytes up to there."""
        job = self._jobs[video_id]
        for offset in range(job.sent, until, CHUNK_BYTES):
            data = job.data[offset : min(offset + CHUNK_BYTES, until)]
            chunk = video_pb2.ChunkEvent(attempt=job.attempt, offset=offset, data=data)
            job.tell(1_000 + offset, chunk=chunk)
        job.sent = until

    def restart(self, video_id: str) -> None:
        """Another node begins anew: what was told and sent before is void."""
        job = self._jobs[video_id]
        job.attempt += 1
        job.sent = 0
        job.events = []
        restarted = video_pb2.RestartedEvent(attempt=job.attempt, reason="node_lost")
        job.tell(0, restarted=restarted)

    def fail(self, video_id: str, *, code: str, message: str, retryable: bool = False) -> None:
        """The video failed for good."""
        failed = video_pb2.FailedEvent(code=code, message=message, retryable=retryable)
        job = self._jobs[video_id]
        job.video.error.CopyFrom(failed)
        self._end(job, video_pb2.VIDEO_STATUS_FAILED, failed=failed)

    def watchers(self, video_id: str) -> int:
        """Open subscriptions of a video."""
        return self._jobs[video_id].watchers

    # --- the port ---

    async def create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
        unfit: Mapping[str, int] = ALL_FIT,
    ) -> video_pb2.Video:
        """See the port."""
        self._check_broken()
        self.traceparents.append(current_traceparent())
        if options.remixed_from_video_id:
            original = self._job(caller, options.remixed_from_video_id).video
            spec = remixed(spec, original.spec, unfit)
        catalog = Catalog(tuple(self._models), self._models[0].name)
        seed = random.getrandbits(32)
        policy = self._policies.of(caller.tenant)
        violations = [
            *check_options(options),
            *check_priority(options.priority, policy),
            *UrlRules().check(options.webhook_url),
        ]
        resolved = resolve_within(
            policy, spec, catalog, drawn_seed=seed, violations=violations, unfit=unfit
        )
        request = spec.SerializeToString(deterministic=True)
        known = self._keys.get((caller.tenant, options.idempotency_key))
        if options.idempotency_key and known is not None:
            if self._jobs[known].request != request:
                raise errors.IdempotencyConflict("the key was used with another request")
            return _copy(self._jobs[known].video)
        ready, reason = self.readiness
        if not ready:
            raise errors.Unavailable(reason, retry_after_s=5.0)
        job = self._admit(caller.tenant, resolved, options, streamed=streamed, request=request)
        answer = _copy(job.video)
        if not self.hold:
            self.finish(job.video.id)
        return answer

    async def get(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See the port."""
        return _copy(self._job(caller, video_id).video)

    async def watch_encoded(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[bytes, None]:
        """See the port."""
        async with aclosing(self.watch(caller, video_id, after_seq=after_seq)) as events:
            async for event in events:
                yield encode_event(event)

    async def watch(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[video_pb2.VideoEvent, None]:
        """See the port."""
        job = self._job(caller, video_id)
        job.watchers += 1
        try:
            queued = video_pb2.QueuedEvent(spec=job.video.spec, durable=job.video.durable)
            yield video_pb2.VideoEvent(video_id=video_id, queued=queued)
            events, told = job.events, 0
            while True:
                changed = job.changed
                if job.events is not events:
                    events, told = job.events, 0
                while told < len(job.events):
                    event = job.events[told]
                    told += 1
                    # The terminal event ends every stream, however late it is resumed.
                    if event.seq > after_seq or (job.ended and told == len(job.events)):
                        yield event
                if job.ended and told == len(job.events):
                    return
                await changed.wait()
        finally:
            job.watchers -= 1
            if job.watchers == 0 and job.streamed and not job.keeps_on and not job.ended:
                self._cancel(job, "disconnected")

    async def list_page(
        self, caller: Caller, *, page_size: int, page_token: str, oldest_first: bool = False
    ) -> tuple[list[video_pb2.Video], str]:
        """See the port."""
        self._check_broken()
        if page_size > MAX_PAGE_SIZE:
            violation = errors.FieldViolation(
                "page_size", f"must be 1 to {MAX_PAGE_SIZE}", (str(MAX_PAGE_SIZE),)
            )
            raise errors.InvalidRequest((violation,))
        if page_token and region_of(page_token) is None:
            violation = errors.FieldViolation("page_token", "must be the id of a video")
            raise errors.InvalidRequest((violation,))
        limit = page_size or DEFAULT_PAGE_SIZE
        ids = sorted(
            (job.video.id for job in self._jobs.values() if job.tenant == caller.tenant),
            reverse=not oldest_first,
        )
        if page_token:
            ids = [i for i in ids if (i > page_token) == oldest_first and i != page_token]
        page = [_copy(self._jobs[i].video) for i in ids[:limit]]
        return page, page[-1].id if len(ids) > limit else ""

    async def cancel(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See the port."""
        job = self._job(caller, video_id)
        if not job.ended:
            self._cancel(job, "client")
        return _copy(job.video)

    async def delete(self, caller: Caller, video_id: str) -> None:
        """See the port."""
        job = self._job(caller, video_id)
        if not job.ended:
            self._cancel(job, "client")
        del self._jobs[video_id]
        self._keys.pop((job.tenant, job.key), None)

    async def download(
        self,
        caller: Caller,
        video_id: str,
        *,
        offset: int,
        variant: Variant = video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
        as_file: bool = False,
    ) -> Download:
        """See the port."""
        job = self._job(caller, video_id)
        if job.video.status != video_pb2.VIDEO_STATUS_COMPLETED:
            raise no_bytes(job.video)
        if variant not in video_service_pb2.VideoVariant.values():
            rule = f"must be one of {', '.join(video_service_pb2.VideoVariant.keys())}"
            raise errors.InvalidRequest((errors.FieldViolation("variant", rule),))
        picture = PICTURES.get(variant)
        data = picture or job.data
        if offset > len(data):
            message = f"is past the end: there are {len(data)} bytes"
            violation = errors.FieldViolation("offset", message, (str(len(data)),))
            raise errors.InvalidRequest((violation,))
        return Download(
            len(data),
            hashlib.sha256(data).hexdigest(),
            _pieces(data, offset),
            content_type=JPEG if picture else MP4,
            file=self._file(data) if as_file and not picture else None,
        )

    async def link(
        self,
        caller: Caller,
        video_id: str,
        *,
        variant: Variant = video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
    ) -> Link:
        """See the port."""
        found = await self.download(caller, video_id, offset=0, variant=variant)
        if not self.links:
            raise errors.InvalidRequest((errors.FieldViolation("link", "is not offered", ("0",)),))
        url = f"{self.links}/{video_id}/{variant}"
        return Link(url, self._clock.wall() + 300, found.total_bytes, found.sha256)

    def _file(self, data: bytes) -> LocalFile | None:
        if self._folder is None:
            return None
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.write(data)
            file.flush()
            descriptor = os.dup(file.fileno())
        return LocalFile(
            descriptor, size=len(data), executor=self._threads, timeout_s=FILE_TIMEOUT_S
        )

    def models(self) -> tuple[list[model_pb2.ModelInfo], str]:
        """See the port."""
        return list(self._models), self._models[0].name

    def regions(self) -> list[fleet_service_pb2.Region]:
        """See the port."""
        state = (
            fleet_service_pb2.REGION_STATE_SERVING
            if self.readiness[0]
            else fleet_service_pb2.REGION_STATE_NOT_SERVING
        )
        return [
            fleet_service_pb2.Region(name=self._region, state=state, ready_workers=1, local=True)
        ]

    def ready(self) -> tuple[bool, str]:
        """See the port."""
        return self.readiness

    # --- inside ---

    def _check_broken(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _job(self, caller: Caller, video_id: str) -> _Job:
        self._check_broken()
        job = self._jobs.get(video_id)
        if job is None or job.tenant != caller.tenant:
            raise not_here(video_id, region=self._region)
        return job

    def _admit(
        self,
        tenant: str,
        spec: video_pb2.ResolvedSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
        request: bytes,
    ) -> _Job:
        video = video_pb2.Video(
            id=self._ids.draw(),
            status=video_pb2.VIDEO_STATUS_QUEUED,
            spec=spec,
            region=self._region,
            priority=granted(options.priority, self._policies.of(tenant)),
            remixed_from_video_id=options.remixed_from_video_id,
        )
        video.created_at.FromNanoseconds(int(self._clock.wall() * 1e9))
        job = _Job(
            tenant=tenant,
            video=video,
            request=request,
            key=options.idempotency_key,
            streamed=streamed,
            keeps_on=options.durable,
            data=random.Random(spec.seed).randbytes(self.video_bytes),  # noqa: S311 - repeatable
        )
        self._jobs[video.id] = job
        if options.idempotency_key:
            self._keys[tenant, options.idempotency_key] = video.id
        return job

    def _start(self, job: _Job) -> None:
        job.video.status = video_pb2.VIDEO_STATUS_RUNNING
        job.video.attempts = 1
        started = video_pb2.StartedEvent(
            region=self._region,
            node=f"{self._region}-node-0",
            attempt=1,
            model_version=job.video.spec.model_version,
        )
        job.tell(1, started=started)

    def _cancel(self, job: _Job, reason: str) -> None:
        cancelled = video_pb2.CancelledEvent(reason=reason)
        self._end(job, video_pb2.VIDEO_STATUS_CANCELLED, cancelled=cancelled)

    def _end(self, job: _Job, status: video_pb2.VideoStatus.ValueType, **event: object) -> None:
        now_s = self._clock.wall()
        job.video.status = status
        job.video.completed_at.FromNanoseconds(int(now_s * 1e9))
        job.video.expires_at.FromNanoseconds(int((now_s + EXPIRY_S) * 1e9))
        job.tell(TERMINAL_N, **event)


async def _pieces(data: bytes, offset: int) -> AsyncIterator[bytes]:
    for start in range(offset, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def _copy(video: video_pb2.Video) -> video_pb2.Video:
    copy = video_pb2.Video()
    copy.CopyFrom(video)
    return copy
