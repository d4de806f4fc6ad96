"""Finished videos: bytes under attempt-unique keys in a folder or an object store.

Key: ``videos/<video id>/<attempt ordinal>-<chance>.mp4``; what batches are made of lies in
``batches/<batch id>/``. Nobody ever writes a key
twice, so a gateway that lost its job can spoil nothing. Any obstore URL will do
(``s3://bucket/prefix``, ``gs://…``, ``file:///…``, ``memory:///``).

obstore's blocking calls run in threads here: each releases the GIL, and its own
asynchronous ones can abort the interpreter when one ends as the process exits (seen
with 0.12.1's ``collect_async``). The threads are the store's own, bounded, and nobody
waits for one longer than a deadline: a dead mount holds up neither the rest of the
gateway nor its end.

What is read whole is held against its digest as it passes; a file that the kernel sends is
read and checked once before. A range of an artifact in an object store cannot be checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store, from_url

from gateway.application import JPEG, MP4
from gateway.output.artifact_write import RevocableWrite
from gateway.output.local_file import KnownDigests, LocalFile, open_file
from gateway.output.local_names import link_local, put_local
from gateway.output.spool_file import SpoolFile
from gateway.output.threads import Threads

T = TypeVar("T")

_log = structlog.get_logger("gateway.artifacts")

VIDEOS: Final = "videos"
_ENDING: Final = ".mp4"
_MARKER_FOLDER: Final = "gateways"
READ_PIECE_BYTES: Final = 256 * 1024
_LISTED_AT_ONCE: Final = 1000
# What close gives to calls under way: a thread that comes back to an interpreter which
# is gone can abort the process.
_CLOSE_S: Final = 2.0


class ArtifactError(Exception):
    """The artifact store failed; the message is for the operator, never for a client."""


class ArtifactMissing(ArtifactError):  # noqa: N818 - named for what it says
    """There is no artifact under the key."""


class ArtifactCorrupt(ArtifactError):  # noqa: N818 - likewise
    """The artifact's bytes are not those that its record names."""


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """One artifact as a listing tells it."""

    key: str
    video_id: str
    """Of the video, or of the batch, whose folder it is in."""
    modified_at_s: float


class ArtifactStore(Protocol):
    """Where finished videos are kept."""

    async def put(self, key: str, data: bytes | SpoolFile) -> None:
        """Writes an artifact whole or not at all. A file stays open and as it is.

        A file may be closed as soon as this ends, however it does. Cancellation takes
        the artifact back.

        Raises:
            ArtifactError: The store failed, or took too long; then what is written later
                is taken back, so another try needs a key of its own.
        """
        ...

    async def copy(self, source: str, key: str, *, size: int, sha256: str) -> None:
        """Gives an artifact a second key, whole or not at all; each is deleted for itself.

        In a folder both name the same bytes, which are held against the digest; an object
        store copies them without sending them here. Cancellation takes the copy back.

        Raises:
            ArtifactMissing: There is no such artifact.
            ArtifactError: It is another one, or the store failed.
        """
        ...

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Exactly those bytes.

        Raises:
            ArtifactMissing: There is no such artifact.
            ArtifactError: The store failed, or it ends before.
        """
        ...

    @property
    def can_sign(self) -> bool:
        """Whether it can give URLs to others."""
        ...

    async def sign(self, key: str, *, expires_s: float) -> str:
        """A URL that reads the artifact, for whoever has it, for that long.

        Raises:
            ArtifactError: The store cannot, or has no credentials for it.
        """
        ...

    async def fetch(self, key: str, *, max_bytes: int) -> bytes:
        """The whole of a small artifact.

        Raises:
            ArtifactMissing: There is no such artifact.
            ArtifactError: The store failed, or it is larger.
        """
        ...

    async def open(self, key: str, *, sha256: str) -> LocalFile | None:
        """The artifact as an open file of this host, which the caller closes; None: it is none.

        Raises:
            ArtifactMissing: There is no such artifact.
            ArtifactCorrupt: Its digest is another.
            ArtifactError: The store failed.
        """
        ...

    async def delete(self, key: str) -> None:
        """Removes an artifact; none is fine.

        Raises:
            ArtifactError: The store failed.
        """
        ...

    def listing(self, folder: str = VIDEOS) -> AsyncGenerator[list[StoredArtifact]]:
        """Every artifact under a folder, some hundreds at a time, in no order.

        Raises:
            ArtifactError: The store failed.
        """
        ...

    async def verify(self, gateway_id: str) -> None:
        """Writes a marker that peers can read, and reads it back.

        Raises:
            ArtifactError: The store cannot be written or read; says which and why.
        """
        ...


def artifact_key(video_id: str, attempt: int) -> str:
    """A key that nobody else will write."""
    return f"{VIDEOS}/{video_id}/{attempt}-{secrets.token_hex(4)}{_ENDING}"


PICTURE_ENDINGS: Final = {"thumbnail": ".thumbnail.jpg", "spritesheet": ".spritesheet.jpg"}
"""What pictures of a video are kept under, in place of its own ending."""


def picture_key(key: str, kind: str) -> str:
    """The key of a picture of the video under ``key``."""
    return key.removesuffix(_ENDING) + PICTURE_ENDINGS[kind]


async def delete_video(store: ArtifactStore, key: str) -> None:
    """Removes a video's artifact and every picture of it.

    The video goes first: a picture that stays for a failure is found by the sweeper.

    Raises:
        ArtifactError: The store failed; it may be called again.
    """
    await store.delete(key)
    if key.endswith(_ENDING):
        for kind in PICTURE_ENDINGS:
            await store.delete(picture_key(key, kind))


async def pieces(
    store: ArtifactStore, key: str, *, offset: int, total: int, sha256: str = ""
) -> AsyncGenerator[bytes]:
    """The bytes from ``offset`` on, in pieces of 256 KiB.

    The last piece of a whole artifact is held back until the digest is that of ``sha256``,
    where that is given: nobody takes the wrong bytes for the whole of it.

    Raises:
        ArtifactCorrupt: It is another.
    """
    digest = hashlib.sha256() if sha256 and offset == 0 else None
    while offset < total:
        piece = await store.read(key, offset, min(READ_PIECE_BYTES, total - offset))
        offset += len(piece)
        if digest is not None:
            digest.update(piece)
            if offset == total:
                check_digest(key, digest.hexdigest(), sha256)
        yield piece


def check_digest(key: str, found: str, wanted: str) -> None:
    """Lets the right digest pass.

    Raises:
        ArtifactCorrupt: It is another.
    """
    if found != wanted:
        raise ArtifactCorrupt(f"{key}: its sha256 is {found} and should be {wanted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How long a call may take and how many may run at once."""

    timeout_s: float = 30.0
    """Of a read, a deletion or a page of a listing."""
    write_timeout_s: float = 300.0
    """Of a whole video's write."""
    max_parallel: int = 16


class ObstoreArtifacts:
    """An :class:`ArtifactStore` over any store that obstore knows.

    Args:
        store: The store, such as :func:`open_store` or a ``MemoryStore``.
        where: Named in errors.
        folder: The store's local folder, where it has one: a spool file on the same file
            system becomes an artifact by being given its name, without a copy.
        limits: Deadlines and threads.
    """

    def __init__(
        self,
        store: Any,
        *,
        where: str,
        folder: Path | None = None,
        limits: StoreLimits | None = None,
    ) -> None:
        self._store = store
        self._where = where
        self._folder = folder
        self._limits = limits or StoreLimits()
        self._threads = Threads(self._limits.max_parallel, "artifacts")
        self._digests = KnownDigests()

    async def close(self) -> None:
        """Waits a moment for the calls under way and leaves those that hang."""
        await self._threads.close(_CLOSE_S)

    async def put(self, key: str, data: bytes | SpoolFile) -> None:
        """See :meth:`ArtifactStore.put`."""
        # A thread may be at it when the caller has given up and closed its own.
        own = data.duplicate() if isinstance(data, SpoolFile) else data
        write = RevocableWrite(partial(self._write, key, own), partial(self._undo, key))
        writing = self._threads.submit(write.run)
        if isinstance(own, SpoolFile):
            writing.add_done_callback(lambda _: own.close())
        try:
            await self._result(writing, self._limits.write_timeout_s)
        except BaseException:
            if write.give_up():
                self._threads.submit(write.undo)
            raise

    async def copy(self, source: str, key: str, *, size: int, sha256: str) -> None:
        """See :meth:`ArtifactStore.copy`."""
        copy = RevocableWrite(
            partial(self._copy, source, key, size, sha256), partial(self._undo, key)
        )
        copying = self._threads.submit(copy.run)
        try:
            await self._result(copying, self._limits.write_timeout_s)
        except BaseException:
            if copy.give_up():
                self._threads.submit(copy.undo)
            raise

    def _copy(self, source: str, key: str, size: int, sha256: str) -> None:
        if self._folder is not None:
            link_local(self._folder, source, key, size=size, sha256=sha256)
            return
        obstore.copy(self._store, source, key)
        found = obstore.head(self._store, key)["size"]
        if found != size:
            self._undo(key)
            raise OSError(f"{source} has {found} bytes and not {size}")

    def _write(self, key: str, data: bytes | SpoolFile) -> None:
        if self._folder is not None and put_local(self._folder, key, data):
            return
        # What a browser is told that follows a link; a folder has no place for it.
        told = {"Content-Type": _content_type(key)} if self.can_sign else None
        if isinstance(data, bytes):
            obstore.put(self._store, key, data, use_multipart=False, attributes=told)
        else:
            obstore.put(self._store, key, data.pieces(), use_multipart=True, attributes=told)

    def _undo(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except (BaseError, OSError) as error:
            # The sweeper collects what nobody refers to.
            _log.warning("artifact not taken back", key=key, error=str(error))

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """See :meth:`ArtifactStore.read`."""
        data = await self._call(self._read, key, offset, length)
        if len(data) != length:
            raise ArtifactError(f"{self._where}: {key} ends before byte {offset + length}")
        return data

    def _read(self, key: str, offset: int, length: int) -> bytes:
        return bytes(obstore.get_range(self._store, key, start=offset, length=length))

    @property
    def can_sign(self) -> bool:
        """See :attr:`ArtifactStore.can_sign`."""
        return isinstance(self._store, (S3Store, GCSStore, AzureStore))

    async def sign(self, key: str, *, expires_s: float) -> str:
        """See :meth:`ArtifactStore.sign`."""
        if not self.can_sign:
            raise ArtifactError(f"{self._where} cannot sign URLs; S3, GCS and Azure can")
        # In a thread: it may have to fetch credentials.
        expires = timedelta(seconds=expires_s)
        return await self._call(obstore.sign, self._store, "GET", key, expires)

    async def fetch(self, key: str, *, max_bytes: int) -> bytes:
        """See :meth:`ArtifactStore.fetch`."""
        return await self._call(self._fetch, key, max_bytes)

    def _fetch(self, key: str, max_bytes: int) -> bytes:
        found = obstore.get(self._store, key)
        size = found.meta["size"]
        if size > max_bytes:
            raise ArtifactError(f"{self._where}: {key} has {size} bytes, more than {max_bytes}")
        return bytes(found.bytes())

    async def open(self, key: str, *, sha256: str) -> LocalFile | None:
        """See :meth:`ArtifactStore.open`."""
        if self._folder is None:
            return None
        opening = self._threads.submit(self._open, self._folder / key, sha256)
        try:
            # The first time it is read whole.
            descriptor, size = await self._result(opening, self._limits.write_timeout_s)
        except BaseException:
            opening.add_done_callback(_close_opened)
            raise
        timeout_s = self._limits.timeout_s
        return LocalFile(descriptor, size=size, executor=self._threads, timeout_s=timeout_s)

    def _open(self, path: Path, sha256: str) -> tuple[int, int]:
        descriptor, identity = open_file(path)
        try:
            check_digest(path.name, self._digests.of(descriptor, identity), sha256)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, identity[2]

    async def delete(self, key: str) -> None:
        """See :meth:`ArtifactStore.delete`."""
        try:
            await self._call(obstore.delete, self._store, key)
        except ArtifactMissing:
            return

    async def listing(self, folder: str = VIDEOS) -> AsyncGenerator[list[StoredArtifact]]:
        """See :meth:`ArtifactStore.listing`."""
        pages = obstore.list(self._store, prefix=folder, chunk_size=_LISTED_AT_ONCE)
        while (page := await self._call(_next_page, pages)) is not None:
            yield page

    async def verify(self, gateway_id: str) -> None:
        """See :meth:`ArtifactStore.verify`."""
        key = f"{_MARKER_FOLDER}/{gateway_id}"
        # The marker of this gateway's last life: a name that is taken is not written over.
        await self.delete(key)
        token = secrets.token_bytes(16)
        await self.put(key, token)
        if await self.read(key, 0, len(token)) != token:
            raise ArtifactError(
                f"{self._where}: {key} reads back otherwise than it was written; "
                "does another gateway use the id?"
            )

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await self._result(self._threads.submit(function, *args), self._limits.timeout_s)

    async def _result(self, work: Future[T], timeout_s: float) -> T:
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await asyncio.wrap_future(work)
        except FileNotFoundError as error:
            raise ArtifactMissing(f"{self._where}: {error}") from error
        except (BaseError, OSError) as error:
            what = f"no answer within {timeout_s:g} s" if limit.expired() else error
            raise ArtifactError(f"{self._where}: {what}") from error


def _content_type(key: str) -> str:
    if key.endswith(_ENDING):
        return MP4
    return JPEG if key.endswith(".jpg") else "application/octet-stream"


def _close_opened(opening: Future[tuple[int, int]]) -> None:
    """Closes a file that is opened when nobody waits for it any more."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])


def _next_page(pages: Any) -> list[StoredArtifact] | None:
    page = next(pages, None)
    if page is None:
        return None
    found = []
    for meta in page:
        parts = meta["path"].split("/")
        if len(parts) == 3:
            modified_at_s = meta["last_modified"].timestamp()
            found.append(StoredArtifact(meta["path"], parts[1], modified_at_s))
    return found


def open_store(url: str, limits: StoreLimits | None = None) -> ObstoreArtifacts:
    """The artifact store at an obstore URL or a local folder, which is made if need be.

    Raises:
        ArtifactError: The URL is not understood or the folder cannot be made.
    """
    try:
        if "://" not in url:
            folder = Path(url)
            folder.mkdir(parents=True, exist_ok=True)
            folder = folder.resolve()
            store = LocalStore(prefix=folder)
            return ObstoreArtifacts(store, where=url, folder=folder, limits=limits)
        if url.startswith("memory:"):
            return ObstoreArtifacts(MemoryStore(), where=url, limits=limits)
        return ObstoreArtifacts(from_url(url), where=url, limits=limits)
    except (BaseError, OSError, ValueError) as error:
        raise ArtifactError(f"artifacts.url {url}: {error}") from error
