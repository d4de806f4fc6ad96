"""A gateway without a mesh: the public services over made-up videos, with scripted trouble.

It serves from threads, so that tests of the sync client can block theirs.
"""
# ruff: noqa: N802, ARG002 - methods are named and called as the services say

import hashlib
import io
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field

import av
import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from reelmesh.v1 import (
    batch_service_pb2_grpc,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    model_pb2,
    video_pb2,
    video_service_pb2,
    video_service_pb2_grpc,
)

from tests.support.fakebatches import FakeBatches

TOKEN = "good-token"
WIDTH, HEIGHT, FRAMES, FPS = 64, 32, 9, 16
ATTEMPT = 2**32


def make_mp4(*, frames: int = FRAMES, shade: int = 200) -> bytes:
    """A tiny H.264 video whose left half is red and right half is dark."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"movflags": "frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        picture[:, : WIDTH // 2, 0] = shade
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sink.getvalue()


@dataclass
class Trouble:
    """What goes wrong, each consumed once by the next stream or call it fits."""

    break_streams_after: list[int] = field(default_factory=list)
    """Events after which a stream breaks as a lost connection does."""
    refuse: list[tuple[grpc.StatusCode, str, float]] = field(default_factory=list)
    """(status, reason, retry after) that a create is answered with."""
    fail_runs: list[video_pb2.FailedEvent] = field(default_factory=list)
    """Videos that end as failed."""
    restart_runs: int = 0
    """Videos whose first attempt is lost after half of its bytes."""
    damage_streams: int = 0
    """Streams whose first chunk has a flipped byte."""
    hang: bool = False
    """Streams say nothing after the start until the gateway stops."""
    forget_videos: bool = False
    """Videos are unknown to every call but the create that makes them."""
    lose_homes: int = 0
    """Videos that are made in a region ``far``, which nobody reaches after their first stream."""
    hide_fleet: bool = False
    """Regions are told to nobody, as to a token without fleet:read."""


class FakeGateway(
    video_service_pb2_grpc.VideoServiceServicer, fleet_service_pb2_grpc.FleetServiceServicer
):
    def __init__(
        self,
        region: str,
        *,
        state=fleet_service_pb2.REGION_STATE_SERVING,
        delay_s=0.0,
        credentials: grpc.ServerCredentials | None = None,
    ):
        self.region = region
        self.state = state
        self.delay_s = delay_s
        self.trouble = Trouble()
        self.mp4 = make_mp4()
        self.calls: list[str] = []
        self._lost: set[str] = set()
        self.options: list[video_service_pb2.CreateOptions] = []
        self.specs: list[video_pb2.VideoSpec] = []
        self.watched_after: list[int] = []
        self.cancelled: list[str] = []
        self.traceparents: list[str] = []
        self.cancelled_event = threading.Event()
        self._videos: dict[str, list[video_pb2.VideoEvent]] = {}
        self._records: dict[str, video_pb2.Video] = {}
        self._by_key: dict[str, str] = {}
        self.batches = FakeBatches(enter=self._enter, make=self._make_of_batch, abort=abort)
        self._stopped = threading.Event()
        self._server = self._serve(credentials)

    def _serve(self, credentials):
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=16),
            options=[("grpc.so_reuseport", 0)],
        )
        video_service_pb2_grpc.add_VideoServiceServicer_to_server(self, server)
        batch_service_pb2_grpc.add_BatchServiceServicer_to_server(self.batches, server)
        fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(self, server)
        if credentials is None:
            self.port = server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return server

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop(grace=None).wait(5)

    # -- FleetService

    def ListRegions(self, request, context):
        self._enter("ListRegions", context)
        if self.trouble.hide_fleet:
            abort(context, grpc.StatusCode.PERMISSION_DENIED, "permission_denied", "no scope")
        time.sleep(self.delay_s)
        local = fleet_service_pb2.Region(
            name=self.region, state=self.state, ready_workers=1, local=True
        )
        other = fleet_service_pb2.Region(
            name="elsewhere", state=fleet_service_pb2.REGION_STATE_UNKNOWN
        )
        return fleet_service_pb2.ListRegionsResponse(regions=[local, other])

    def ListModels(self, request, context):
        self._enter("ListModels", context)
        size = model_pb2.VideoSize(width_px=WIDTH, height_px=HEIGHT)
        info = model_pb2.ModelInfo(
            name="demo",
            version="1",
            sizes=[size],
            size_aliases=[model_pb2.SizeAlias(alias="480p", size=size)],
            frames=model_pb2.FrameRule(min=5, max=33, step=4),
            fps=FPS,
        )
        return fleet_service_pb2.ListModelsResponse(models=[info], default_model="demo")

    # -- VideoService

    def GenerateVideo(self, request, context):
        self._enter("GenerateVideo", context)
        video_id = self._create(request.spec, request.options, context)
        for event in self._stream(video_id, 0, context):
            yield video_service_pb2.GenerateVideoResponse(event=event)

    def CreateVideo(self, request, context):
        self._enter("CreateVideo", context)
        video_id = self._create(request.spec, request.options, context)
        return video_service_pb2.CreateVideoResponse(video=self._records[video_id])

    def WatchVideo(self, request, context):
        self._enter("WatchVideo", context)
        self.watched_after.append(request.after_seq)
        if request.video_id in self._lost:
            text = "region far, the video's home, cannot be reached now"
            abort(context, grpc.StatusCode.UNAVAILABLE, "home_unreachable", text)
        self._find(request.video_id, context)
        for event in self._stream(request.video_id, request.after_seq, context):
            yield video_service_pb2.WatchVideoResponse(event=event)

    def GetVideo(self, request, context):
        self._enter("GetVideo", context)
        return video_service_pb2.GetVideoResponse(video=self._find(request.video_id, context))

    def ListVideos(self, request, context):
        self._enter("ListVideos", context)
        videos = list(self._records.values())[::-1]
        start = int(request.page_token or 0)
        end = start + min(request.page_size, 2)
        token = str(end) if end < len(videos) else ""
        return video_service_pb2.ListVideosResponse(videos=videos[start:end], next_page_token=token)

    def CancelVideo(self, request, context):
        self._enter("CancelVideo", context)
        video = self._find(request.video_id, context)
        self.cancelled.append(request.video_id)
        self.cancelled_event.set()
        return video_service_pb2.CancelVideoResponse(video=video)

    def DeleteVideo(self, request, context):
        self._enter("DeleteVideo", context)
        self._find(request.video_id, context)
        del self._records[request.video_id]
        return video_service_pb2.DeleteVideoResponse()

    def DownloadVideo(self, request, context):
        self._enter("DownloadVideo", context)
        video = self._find(request.video_id, context)
        if video.status != video_pb2.VIDEO_STATUS_COMPLETED:
            abort(context, grpc.StatusCode.FAILED_PRECONDITION, "not_finished", "not finished")
        cut = self.trouble.break_streams_after.pop(0) if self.trouble.break_streams_after else -1
        size = 1000
        for number, offset in enumerate(range(request.offset, len(self.mp4), size)):
            if number == cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            first = offset == request.offset
            yield video_service_pb2.DownloadVideoResponse(
                offset=offset,
                data=self.mp4[offset : offset + size],
                total_bytes=len(self.mp4) if first else 0,
                sha256=hashlib.sha256(self.mp4).hexdigest() if first else "",
            )

    # -- inside

    def _enter(self, name: str, context) -> None:
        self.calls.append(name)
        metadata = dict(context.invocation_metadata())
        self.traceparents.append(metadata.get("traceparent", ""))
        if metadata.get("authorization") != f"Bearer {TOKEN}":
            abort(context, grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", "bad token")

    def _find(self, video_id: str, context) -> video_pb2.Video:
        video = self._records.get(video_id)
        home = video_id.rpartition("-")[0]
        if video is None and home and home != self.region:
            text = f"the video lives in region {home}; ask a gateway there"
            abort(context, grpc.StatusCode.NOT_FOUND, "other_region", text)
        if video is None or self.trouble.forget_videos:
            abort(context, grpc.StatusCode.NOT_FOUND, "video_not_found", "no such video")
        return video

    def _create(self, spec, options, context) -> str:
        self.specs.append(spec)
        self.options.append(options)
        if self.trouble.refuse:
            code, reason, retry_after_s = self.trouble.refuse.pop(0)
            abort(context, code, reason, f"refused: {reason}", retry_after_s=retry_after_s)
        known = self._by_key.get(options.idempotency_key)
        given_up = known in self._lost and options.supersedes == known
        if known is not None and not self.trouble.forget_videos and not given_up:
            return known
        video_id = f"{self.region}-{len(self._records):026d}"
        if self.trouble.lose_homes:
            self.trouble.lose_homes -= 1
            video_id = f"far-{len(self._records):026d}"
            self._lost.add(video_id)
        self._by_key[options.idempotency_key] = video_id
        self._make(video_id, spec)
        return video_id

    def _make_of_batch(self, spec) -> video_pb2.Video:
        video_id = f"{self.region}-{len(self._records):026d}"
        self.specs.append(spec)
        self._make(video_id, spec)
        return self._records[video_id]

    def _make(self, video_id: str, spec) -> None:
        resolved = video_pb2.ResolvedSpec(
            prompt=spec.prompt,
            model="demo",
            model_version="1",
            width=WIDTH,
            height=HEIGHT,
            num_frames=FRAMES,
            fps=FPS,
            steps=spec.steps or 4,
            seed=spec.seed or 7,
            requested_resolution=spec.resolution,
            requested_seconds=spec.seconds if spec.HasField("seconds") else None,
        )
        record = video_pb2.Video(
            id=video_id, spec=resolved, region=self.region, attempts=1, durable=True
        )
        record.created_at.GetCurrentTime()
        self._records[video_id] = record
        self._videos[video_id] = self._script(video_id, resolved, record)

    def _script(self, video_id, resolved, record) -> list[video_pb2.VideoEvent]:
        events = [
            video_pb2.VideoEvent(video_id=video_id, queued=video_pb2.QueuedEvent(spec=resolved))
        ]
        if self.trouble.restart_runs:
            self.trouble.restart_runs -= 1
            half = bytes(len(self.mp4) // 2)
            events += self._attempt(video_id, 1, half, steps=2)
            events.append(
                video_pb2.VideoEvent(
                    video_id=video_id,
                    seq=2 * ATTEMPT,
                    restarted=video_pb2.RestartedEvent(attempt=2, reason="worker_died"),
                )
            )
        ordinal = 1 + sum(event.HasField("restarted") for event in events)
        events += self._attempt(video_id, ordinal, self.mp4, steps=resolved.steps)
        last = video_pb2.VideoEvent(video_id=video_id, seq=events[-1].seq + 1)
        if self.trouble.fail_runs:
            last.failed.CopyFrom(self.trouble.fail_runs.pop(0))
            record.status = video_pb2.VIDEO_STATUS_FAILED
        else:
            last.completed.CopyFrom(self._completed(ordinal, resolved))
            record.status = video_pb2.VIDEO_STATUS_COMPLETED
            record.result.CopyFrom(last.completed)
        return [*events, last]

    def _attempt(self, video_id, ordinal, data, *, steps) -> list[video_pb2.VideoEvent]:
        bodies: list[dict] = [
            {"started": video_pb2.StartedEvent(region=self.region, node="n0", attempt=ordinal)}
        ]
        bodies += [
            {
                "progress": video_pb2.ProgressEvent(
                    step=step + 1, total_steps=steps, stage=video_pb2.STAGE_DENOISE
                )
            }
            for step in range(steps)
        ]
        bodies += [
            {
                "chunk": video_pb2.ChunkEvent(
                    attempt=ordinal, offset=offset, data=data[offset : offset + 500]
                )
            }
            for offset in range(0, len(data), 500)
        ]
        return [
            video_pb2.VideoEvent(video_id=video_id, seq=ordinal * ATTEMPT + n, **body)
            for n, body in enumerate(bodies, start=1)
        ]

    def _completed(self, ordinal, resolved) -> video_pb2.CompletedEvent:
        return video_pb2.CompletedEvent(
            sha256=hashlib.sha256(self.mp4).hexdigest(),
            size_bytes=len(self.mp4),
            num_frames=FRAMES,
            fps=FPS,
            width=WIDTH,
            height=HEIGHT,
            seed=resolved.seed,
            model="demo",
            model_version="1",
            cache=video_pb2.CACHE_STATUS_MISS,
            timings=video_pb2.StageTimings(total_s=1.5),
            attempt=ordinal,
        )

    def _stream(self, video_id: str, after_seq: int, context):
        cut = self.trouble.break_streams_after.pop(0) if self.trouble.break_streams_after else -1
        damage = self.trouble.damage_streams > 0
        self.trouble.damage_streams -= int(damage)
        wanted = [
            event for event in self._videos[video_id] if not after_seq or event.seq > after_seq
        ]
        for number, event in enumerate(wanted):
            if number == cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if self.trouble.hang and event.HasField("chunk"):
                while not self._stopped.wait(0.02) and context.is_active():
                    pass
                return
            if damage and event.HasField("chunk"):
                damage = False
                spoilt = video_pb2.VideoEvent()
                spoilt.CopyFrom(event)
                spoilt.chunk.data = bytes([event.chunk.data[0] ^ 1]) + event.chunk.data[1:]
                event = spoilt
            yield event


def abort(context, code, reason, message, *, retry_after_s=0.0, violations=(), metadata=None):
    """Ends a call as a gateway does: with rich details."""
    details = []
    info = error_details_pb2.ErrorInfo(reason=reason, domain="reelmesh", metadata=metadata or {})
    details.append(info)
    if retry_after_s:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=text)
            for name, text in violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    packed = []
    for each in details:
        wrapped = any_pb2.Any()
        wrapped.Pack(each)
        packed.append(wrapped)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
