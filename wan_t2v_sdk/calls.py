"""One call each on one gateway: a message out, a plain value back."""

from __future__ import annotations

import time

from reelmesh.v1 import fleet_service_pb2, video_pb2, video_service_pb2

from wan_t2v_sdk.buffer import VideoBuffer
from wan_t2v_sdk.connection import CALL_TIMEOUT_S, Connection
from wan_t2v_sdk.download import fetch
from wan_t2v_sdk.records import ModelRecord, VideoRecord, model_of, video_of
from wan_t2v_sdk.result import GenerationResult, facts_of
from wan_t2v_sdk.tracing import new_traceparent, trace_id_of

MAX_PAGE = 100


async def create_video(
    connection: Connection, request: video_service_pb2.CreateVideoRequest
) -> VideoRecord:
    """Starts a video; safe to send again, since the request carries its key."""
    answer = await connection.call(
        lambda: connection.videos.CreateVideo(
            request, metadata=connection.metadata(new_traceparent()), timeout=CALL_TIMEOUT_S
        )
    )
    return video_of(answer.video)


async def get_video(connection: Connection, video_id: str) -> video_pb2.Video:
    """The record as the wire has it."""
    request = video_service_pb2.GetVideoRequest(video_id=video_id)
    answer = await connection.call(
        lambda: connection.videos.GetVideo(
            request, metadata=connection.metadata(), timeout=CALL_TIMEOUT_S
        )
    )
    return answer.video


async def cancel_video(connection: Connection, video_id: str) -> VideoRecord:
    """Stops a video; the record says what won."""
    request = video_service_pb2.CancelVideoRequest(video_id=video_id)
    answer = await connection.call(
        lambda: connection.videos.CancelVideo(
            request, metadata=connection.metadata(), timeout=CALL_TIMEOUT_S
        )
    )
    return video_of(answer.video)


async def delete_video(connection: Connection, video_id: str) -> None:
    """Removes record and bytes."""
    request = video_service_pb2.DeleteVideoRequest(video_id=video_id)
    await connection.call(
        lambda: connection.videos.DeleteVideo(
            request, metadata=connection.metadata(), timeout=CALL_TIMEOUT_S
        )
    )


async def newest_videos(connection: Connection, limit: int) -> list[VideoRecord]:
    """The newest videos of one region, newest first, at most ``limit``."""
    videos: list[VideoRecord] = []
    request = video_service_pb2.ListVideosRequest()
    while len(videos) < limit:
        request.page_size = min(limit - len(videos), MAX_PAGE)
        answer = await connection.call(
            lambda: connection.videos.ListVideos(
                request, metadata=connection.metadata(), timeout=CALL_TIMEOUT_S
            )
        )
        videos.extend(map(video_of, answer.videos))
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    return videos


async def list_models(connection: Connection) -> list[ModelRecord]:
    """What the models of one region can do."""
    answer = await connection.call(
        lambda: connection.fleet.ListModels(
            fleet_service_pb2.ListModelsRequest(),
            metadata=connection.metadata(),
            timeout=CALL_TIMEOUT_S,
        )
    )
    return [model_of(each, default_model=answer.default_model) for each in answer.models]


async def download_video(connection: Connection, video_id: str) -> GenerationResult:
    """A finished video with its bytes, checked."""
    trace = new_traceparent()
    started_s = time.monotonic()
    video = await get_video(connection, video_id)
    buffer = VideoBuffer()
    try:
        await fetch(connection, video_id, buffer, traceparent=trace)
    except BaseException:
        buffer.close()
        raise
    facts = facts_of(
        video_id=video_id,
        completed=video.result,
        spec=video.spec,
        region=video.region,
        node="",
        attempts=video.attempts,
        client_s=time.monotonic() - started_s,
        trace_id=trace_id_of(trace),
    )
    return GenerationResult(facts=facts, buffer=buffer)
