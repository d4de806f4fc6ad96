"""A node that answers at once: what remains is the cost of everything in front of it.

``python -m benchmarks.support.instant_node --control-plane HOST:PORT --ready-file FILE``

Speaks the real NodeService and attaches to a real control plane. The prompt of a job is
the number of bytes that its "video" has; they come in 256 KiB messages, made before the
first request, so that a run costs this process little more than writing to a socket.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from pathlib import Path

import grpc
from grpc import aio
from reelmesh.v1 import (
    control_plane_service_pb2,
    control_plane_service_pb2_grpc,
    model_pb2,
    node_pb2,
    node_service_pb2,
    video_pb2,
)

from benchmarks.support import openai_door
from reelkit import rpc
from reelkit.files import write_json_atomic

CHUNK_BYTES = 256 * 1024
NODE_ID = "instant-node"
STEPS = 8
MODEL = model_pb2.ModelInfo(
    name="instant",
    version="1",
    manifest_sha256="0" * 64,
    pipeline_class="WanPipeline",
    sizes=[model_pb2.VideoSize(width_px=128, height_px=96)],
    frames=model_pb2.FrameRule(min=5, max=49, step=4),
    fps=8,
    seconds=model_pb2.SecondsRule(min_s=0.5, max_s=6),
    steps=model_pb2.IntRange(min=1, max=50),
    guidance_scale=model_pb2.DoubleRange(min=0, max=20),
    flow_shift=model_pb2.DoubleRange(min=0.1, max=20),
    defaults=model_pb2.GenerationDefaults(
        size=model_pb2.VideoSize(width_px=128, height_px=96),
        num_frames=17,
        steps=STEPS,
        guidance_scale=5,
        flow_shift=5,
    ),
    max_prompt_chars=2000,
)


def status() -> node_pb2.NodeStatus:
    """Idle, with room for far more than the benchmark sends."""
    return node_pb2.NodeStatus(
        node_id=NODE_ID,
        version=1,
        state=node_pb2.NODE_STATE_READY,
        free_slots=1000,
        units_per_second=1e9,
        models=[
            node_pb2.ModelVersion(
                name=MODEL.name, version=MODEL.version, manifest_sha256=MODEL.manifest_sha256
            )
        ],
        incarnation="instant",
        workers=[
            node_pb2.WorkerStatus(
                id=f"{NODE_ID}/worker-0", pid=os.getpid(), state=node_pb2.WORKER_STATE_IDLE
            )
        ],
    )


@lru_cache(maxsize=8)
def script(total_bytes: int) -> tuple[bytes, ...]:
    """The serialised events of one run that delivers ``total_bytes``."""
    block = os.urandom(CHUNK_BYTES)
    digest = hashlib.sha256()
    events: list[dict[str, object]] = [
        {
            "started": video_pb2.StartedEvent(
                region="bench", node=NODE_ID, attempt=1, model_version=MODEL.version
            )
        }
    ]
    events += [
        {
            "progress": video_pb2.ProgressEvent(
                step=step, total_steps=STEPS, stage=video_pb2.STAGE_DENOISE
            )
        }
        for step in range(1, STEPS + 1)
    ]
    for offset in range(0, total_bytes, CHUNK_BYTES):
        data = block[: min(CHUNK_BYTES, total_bytes - offset)]
        digest.update(data)
        events.append({"chunk": video_pb2.ChunkEvent(attempt=1, offset=offset, data=data)})
    events.append({"completed": _completed(total_bytes, digest.hexdigest())})
    return tuple(
        node_service_pb2.RunResponse(
            event=node_service_pb2.NodeEvent(attempt=1, n=n, **event)  # type: ignore[arg-type]  # one oneof field each
        ).SerializeToString()
        for n, event in enumerate(events, start=1)
    )


def completed_event(data: bytes, *, attempt: int) -> video_pb2.CompletedEvent:
    """The end of a run that brought these bytes."""
    event = _completed(len(data), hashlib.sha256(data).hexdigest())
    event.attempt = attempt
    return event


def _completed(total_bytes: int, sha256: str) -> video_pb2.CompletedEvent:
    return video_pb2.CompletedEvent(
        sha256=sha256,
        size_bytes=total_bytes,
        num_frames=17,
        fps=8,
        width=128,
        height=96,
        model=MODEL.name,
        model_version=MODEL.version,
        attempt=1,
        gpu_seconds=0.001,
    )


async def run(request: bytes, _context: aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    """NodeService.Run without a device behind it."""
    spec = node_service_pb2.RunRequest.FromString(request).spec
    for event in script(int(spec.prompt)):
        yield event


async def watch_status(
    _request: bytes, _context: aio.ServicerContext[bytes, bytes]
) -> AsyncIterator[bytes]:
    """The status once; it never changes."""
    yield node_service_pb2.WatchStatusResponse(status=status()).SerializeToString()
    await asyncio.Event().wait()


async def release(_request: bytes, _context: aio.ServicerContext[bytes, bytes]) -> bytes:
    """Nothing is kept, so there is nothing to forget."""
    return node_service_pb2.ReleaseResponse().SerializeToString()


async def cancel(_request: bytes, _context: aio.ServicerContext[bytes, bytes]) -> bytes:
    """Every run is over before it can be cancelled."""
    return node_service_pb2.CancelResponse(found=False).SerializeToString()


async def attach(
    control_plane: str,
    address: str,
    *,
    region: str = "bench",
    status: Callable[[], node_pb2.NodeStatus] = status,
) -> None:
    """Keeps a node in the fleet for as long as the process lives.

    Args:
        control_plane: Whose fleet.
        address: Where the node is reached.
        region: Its own.
        status: What it is now; its id and its life are taken from the first.
    """
    first = status()

    async def reports() -> AsyncIterator[control_plane_service_pb2.AttachRequest]:
        yield control_plane_service_pb2.AttachRequest(
            hello=control_plane_service_pb2.NodeHello(
                node_id=first.node_id,
                region=region,
                address=address,
                incarnation=first.incarnation,
                models=[MODEL],
                pid=os.getpid(),
                status=first,
            )
        )
        while True:
            await asyncio.sleep(1)
            yield control_plane_service_pb2.AttachRequest(status=status())

    async with rpc.internal_channel(control_plane) as channel:
        stub = control_plane_service_pb2_grpc.ControlPlaneServiceStub(channel)
        async for _answer in stub.Attach(reports()):
            pass


async def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control-plane", required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--openai", action="store_true", help="speak OpenAI's API by HTTP too")
    args = parser.parse_args()
    server = aio.server(options=rpc.server_options())
    handlers = {
        "Run": grpc.unary_stream_rpc_method_handler(run),
        "WatchStatus": grpc.unary_stream_rpc_method_handler(watch_status),
        "Release": grpc.unary_unary_rpc_method_handler(release),
        "Cancel": grpc.unary_unary_rpc_method_handler(cancel),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("reelmesh.v1.NodeService", handlers),)
    )
    port = rpc.listen(server, "127.0.0.1:0")
    await server.start()
    ready = {"grpc": f"127.0.0.1:{port}", "pid": os.getpid()}
    if args.openai:
        _, ready["http"] = await openai_door.serve()
    write_json_atomic(args.ready_file, ready)
    await attach(args.control_plane, f"127.0.0.1:{port}")


if __name__ == "__main__":
    asyncio.run(main())
