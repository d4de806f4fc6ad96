"""One video's bytes from another region: on their way, and read as they come, or in the store.

Its last bytes are held back until all of them are known to be the right ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import structlog
from reelmesh.v1 import video_pb2

from gateway.application import Download
from gateway.errors import GatewayError, Unavailable
from gateway.jobs.attempts import FIRST_ATTEMPT
from gateway.output.artifacts import ArtifactError, ArtifactStore, artifact_key, pieces
from gateway.output.spool_file import SpoolFile

_log = structlog.get_logger("gateway.kept")

P = ParamSpec("P")
T = TypeVar("T")

Fetch = Callable[[int], Awaitable[Download]]
"""A video's bytes from an offset, from its home, for the caller who wants them."""

_PIECE_BYTES: Final = 256 * 1024
_RETRY_AFTER_S: Final = 5.0


class Copy:
    """See the module.

    Args:
        video_id: Whose bytes.
        total: How many.
        sha256: Their digest.
        store: Keeps them.
        folder: For those on their way.
        executor: Threads for the disk.
    """

    def __init__(
        self,
        video_id: str,
        *,
        total: int,
        sha256: str,
        store: ArtifactStore,
        folder: Path,
        executor: Executor,
    ) -> None:
        self.video_id = video_id
        self.total = total
        self.sha256 = sha256
        self.name = f"{video_id}/{sha256}"
        self.key = artifact_key(secrets.token_hex(8), FIRST_ATTEMPT)
        """In the store, once it is whole."""
        self.confirmed_s = 0.0
        """When its home last said that the video is there, monotonic."""
        self.wanted = True
        """Nothing has taken its room."""
        self.stored = False
        self.failure: GatewayError | None = None
        self._store = store
        self._folder = folder
        self._executor = executor
        self._file: SpoolFile | None = None
        self._readable = 0
        self._moved = asyncio.Event()

    # --- its way ---

    async def fetch(
        self, fetch: Fetch, download: Download | None, on_bytes: Callable[[int, bool], None]
    ) -> None:
        """Brings the bytes and stores them; its readers are told of what goes wrong."""
        try:
            await self._fill(download or await fetch(0), on_bytes)
        except GatewayError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - a supervisor: its readers are told
            _log.warning("video not fetched", job_id=self.video_id, cause=str(error))
        finally:
            if self._readable < self.total and self.failure is None:
                self.failure = Unavailable(
                    "the video's region stopped answering", retry_after_s=_RETRY_AFTER_S
                )
            if self._file is not None:
                self._file.close()
                self._file = None
            self._tell()

    async def _fill(self, download: Download, on_bytes: Callable[[int, bool], None]) -> None:
        digest, written = hashlib.sha256(), 0
        async with contextlib.aclosing(chunks_of(download)) as chunks:
            if (download.total_bytes, download.sha256) != (self.total, self.sha256):
                raise ValueError("its home sends another video than it told of")
            self._file = file = SpoolFile(self._folder)
            self._tell()
            async for chunk in chunks:
                await self._in_thread(_write, file, digest, chunk)
                written += len(chunk)
                on_bytes(len(chunk), False)
                self._readable = min(written, self.total - 1)
                self._tell()
        if (written, digest.hexdigest()) != (self.total, self.sha256):
            raise ValueError("what came is not what its home told of")
        self._readable = self.total
        self._tell()
        if self.wanted:
            await self._store.put(self.key, file)
            self.stored = True
            if not self.wanted:
                # It gave way meanwhile.
                await self.delete()

    async def delete(self) -> None:
        """Removes it from the store; those who read it read on."""
        try:
            await self._store.delete(self.key)
        except ArtifactError as error:
            _log.warning("copy not deleted", job_id=self.video_id, error=str(error))

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # --- its readers ---

    async def download(self, offset: int, fetch: Fetch, *, as_file: bool, hit: bool) -> Download:
        """The bytes from an offset.

        Raises:
            GatewayError: They could not be brought.
        """
        while not (self.stored or self._file or self.failure):
            await self._moved.wait()
        if self.failure is not None:
            raise self.failure
        file = None
        if as_file and self.stored:
            with contextlib.suppress(ArtifactError):
                file = await self._store.open(self.key, sha256=self.sha256)
        return Download(
            total_bytes=self.total,
            sha256=self.sha256,
            chunks=self._read(offset, fetch),
            file=file,
            cache=video_pb2.CACHE_STATUS_HIT if hit else video_pb2.CACHE_STATUS_MISS,
        )

    async def _read(self, offset: int, fetch: Fetch) -> AsyncGenerator[bytes]:
        at = offset
        growing = contextlib.aclosing(self._read_growing(offset))
        async with growing as chunks:
            async for data in chunks:
                at += len(data)
                yield data
        if at >= self.total:
            return
        stored = pieces(self._store, self.key, offset=at, total=self.total, sha256=self.sha256)
        try:
            async with contextlib.aclosing(stored) as chunks:
                async for data in chunks:
                    at += len(data)
                    yield data
        except ArtifactError:
            # It gave way to another meanwhile.
            async with contextlib.aclosing(chunks_of(await fetch(at))) as chunks:
                async for data in chunks:
                    yield data

    async def _read_growing(self, at: int) -> AsyncGenerator[bytes]:
        """Of the file on its way, if it is; to the end then."""
        if self._file is None:
            return
        file = self._file.duplicate()
        try:
            while at < self.total:
                if at < self._readable:
                    data = await self._in_thread(
                        file.read, at, min(_PIECE_BYTES, self._readable - at)
                    )
                    at += len(data)
                    yield data
                elif self.failure is not None:
                    raise self.failure
                else:
                    await self._moved.wait()
        finally:
            file.close()

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._executor.submit(call, *args, **kwargs))


def _write(file: SpoolFile, digest: hashlib._Hash, chunk: bytes) -> None:
    file.write(chunk)
    digest.update(chunk)


async def chunks_of(download: Download) -> AsyncGenerator[bytes]:
    """The chunks; what brings them is closed with the generator, once it has begun."""
    try:
        async for chunk in download.chunks:
            yield chunk
    finally:
        if isinstance(download.chunks, AsyncGenerator):
            await download.chunks.aclose()
