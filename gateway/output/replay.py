"""The events of a video that has ended, from its record and artifact alone.

Any gateway makes the same events with the same seqs: pieces of 256 KiB numbered from
2**31 within the winning attempt. A resume that stands inside the node's own numbering,
or in an earlier attempt, gets RESTARTED first, since what the client has then cannot
be matched to a piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

from reelmesh.v1 import job_service_pb2, video_pb2

from gateway.jobs.attempts import REPLAY_N, TERMINAL_N, seq_of, split_seq
from gateway.jobs.records import last_attempt, terminal_event
from gateway.output.artifacts import READ_PIECE_BYTES, ArtifactStore, check_digest


async def replay(
    record: job_service_pb2.JobRecord, artifacts: ArtifactStore, *, after_seq: int
) -> AsyncGenerator[video_pb2.VideoEvent]:
    """QUEUED, the video's bytes after a seq where there are any, and the terminal event.

    Raises:
        ArtifactMissing: It expired meanwhile.
        ArtifactCorrupt: All of its bytes were asked for, and are not what was drawn; it is said
            before the last of them.
        ArtifactError: The store failed.
    """
    video = record.video
    queued = video_pb2.QueuedEvent(durable=video.durable, spec=video.spec)
    yield video_pb2.VideoEvent(video_id=video.id, queued=queued)
    attempt = last_attempt(record)
    if video.HasField("result") and after_seq < seq_of(attempt, TERMINAL_N):
        async for event in _bytes(record, artifacts, attempt=attempt, after_seq=after_seq):
            yield event
    terminal = terminal_event(video, attempt)
    if terminal is not None:
        yield terminal


async def _bytes(
    record: job_service_pb2.JobRecord, artifacts: ArtifactStore, *, attempt: int, after_seq: int
) -> AsyncGenerator[video_pb2.VideoEvent]:
    video = record.video
    at_attempt, at_n = split_seq(after_seq)
    piece = 0
    if at_attempt == attempt and at_n >= REPLAY_N:
        piece = at_n - REPLAY_N
    elif after_seq:
        restarted = video_pb2.RestartedEvent(attempt=attempt, reason="replayed")
        seq = seq_of(attempt, REPLAY_N)
        yield video_pb2.VideoEvent(seq=seq, video_id=video.id, restarted=restarted)
    total = video.result.size_bytes
    digest = hashlib.sha256() if piece == 0 else None
    for offset in range(piece * READ_PIECE_BYTES, total, READ_PIECE_BYTES):
        piece += 1
        length = min(READ_PIECE_BYTES, total - offset)
        data = await artifacts.read(record.artifact_key, offset, length)
        if digest is not None:
            digest.update(data)
            if offset + length == total:
                check_digest(record.artifact_key, digest.hexdigest(), video.result.sha256)
        chunk = video_pb2.ChunkEvent(attempt=attempt, offset=offset, data=data)
        seq = seq_of(attempt, REPLAY_N + piece)
        yield video_pb2.VideoEvent(seq=seq, video_id=video.id, chunk=chunk)
