"""Hands files of registered versions to other nodes of the region."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, BinaryIO, Final

import grpc
from grpc import aio
from reelmesh.v1 import weights_service_pb2
from reelmesh.v1.weights_service_pb2 import ReadFileRequest, ReadFileResponse

from node_agent.bandwidth import TokenBucket
from node_agent.content import ContentStore
from reelkit.clock import Clock

SERVICE_NAME: Final = weights_service_pb2.DESCRIPTOR.services_by_name["WeightsService"].full_name

_CHUNK_BYTES: Final = 256 * 1024
# A reader that takes nothing for so long gives its place to another.
_WRITE_S: Final = 30.0
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class WeightsService:
    """Reads whole files of the content store, which holds nothing but registered versions'.

    Args:
        store: Whose.
        max_streams: Readers at once; one more is told to try elsewhere.
        bytes_per_s: For all of them together; None: no bound.
        clock: For the bound.
    """

    def __init__(
        self, *, store: ContentStore, max_streams: int, bytes_per_s: float | None, clock: Clock
    ) -> None:
        self._store = store
        self._free = max_streams
        self._bucket = TokenBucket(bytes_per_s, now_s=clock.monotonic())
        self._clock = clock
        self.sent_bytes = 0

    def add_to(self, server: aio.Server) -> None:
        """Serves on this server."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ReadFile": grpc.unary_stream_rpc_method_handler(
                self.read_file,
                request_deserializer=ReadFileRequest.FromString,
                response_serializer=ReadFileResponse.SerializeToString,
            )
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),)
        )

    async def read_file(self, request: ReadFileRequest, context: Any) -> None:
        """See weights_service.proto."""
        if not _SHA256.fullmatch(request.sha256):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "sha256: must be 64 lower-case hex digits"
            )
        path = self._store.path_of(request.sha256)
        size_bytes = await asyncio.to_thread(_size, path)
        if size_bytes is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the file is not here, or not whole")
            raise AssertionError("abort raises")
        if request.offset > size_bytes:
            await context.abort(
                grpc.StatusCode.OUT_OF_RANGE, f"offset: the file has {size_bytes} bytes"
            )
        if not self._free:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many read already")
        self._free -= 1
        try:
            await self._send(path, request.offset, context)
        except FileNotFoundError:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the file was evicted just now")
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the reader does not read")
        finally:
            self._free += 1

    async def _send(self, path: Path, offset: int, context: Any) -> None:
        # An open file stays whole, though it be evicted meanwhile.
        file: BinaryIO = await asyncio.to_thread(path.open, "rb")
        with file:
            file.seek(offset)
            while data := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                wait_s = self._bucket.draw(len(data), now_s=self._clock.monotonic())
                if wait_s:
                    await self._clock.sleep(wait_s)
                async with asyncio.timeout(_WRITE_S):
                    await context.write(ReadFileResponse(data=data))
                self.sent_bytes += len(data)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
