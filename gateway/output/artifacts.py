"""Finished videos: bytes under attempt-unique keys in a folder or an object store.

Key: ``videos/<video id>/<attempt ordinal>-<chance>.mp4``. Nobody ever writes a key
twice, so a gateway that lost its job can spoil nothing. Any obstore URL will do
(``s3://bucket/prefix``, ``gs://…``, ``file:///…``, ``memory:///``).

obstore's blocking calls run in threads here: each releases the GIL, and its own
asynchronous ones can abort the interpreter when one ends as the process exits (seen
with 0.12.1's ``collect_async``).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, from_url

from gateway.output.spool_file import SpoolFile

_PREFIX: Final = "videos"
_MARKER_FOLDER: Final = "gateways"
READ_PIECE_BYTES: Final = 256 * 1024


class ArtifactError(Exception):
    """The artifact store failed; the message is for the operator, never for a client."""


class ArtifactMissing(ArtifactError):  # noqa: N818 - named for what it says
    """There is no artifact under the key."""


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """One artifact as a listing tells it."""

    key: str
    video_id: str
    modified_at_s: float


class ArtifactStore(Protocol):
    """Where finished videos are kept."""

    async def put(self, key: str, data: bytes | SpoolFile) -> None:
        """Writes an artifact whole or not at all. A file stays open and as it is.

        Raises:
            ArtifactError: The store failed.
        """
        ...

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Exactly those bytes.

        Raises:
            ArtifactMissing: There is no such artifact.
            ArtifactError: The store failed, or it ends before.
        """
        ...

    async def delete(self, key: str) -> None:
        """Removes an artifact; none is fine.

        Raises:
            ArtifactError: The store failed.
        """
        ...

    async def listing(self) -> list[StoredArtifact]:
        """Every artifact.

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
    return f"{_PREFIX}/{video_id}/{attempt}-{secrets.token_hex(4)}.mp4"


async def pieces(
    store: ArtifactStore, key: str, *, offset: int, total: int
) -> AsyncGenerator[bytes]:
    """The bytes from ``offset`` on, in pieces of 256 KiB."""
    while offset < total:
        piece = await store.read(key, offset, min(READ_PIECE_BYTES, total - offset))
        yield piece
        offset += len(piece)


class ObstoreArtifacts:
    """An :class:`ArtifactStore` over any store that obstore knows.

    Args:
        store: The store, such as :func:`open_store` or a ``MemoryStore``.
        where: Named in errors.
        folder: The store's local folder, where it has one: a spool file on the same file
            system becomes an artifact by being given its name, without a copy.
    """

    def __init__(self, store: Any, *, where: str, folder: Path | None = None) -> None:
        self._store = store
        self._where = where
        self._folder = folder

    async def put(self, key: str, data: bytes | SpoolFile) -> None:
        """See :meth:`ArtifactStore.put`."""
        await self._call(self._put, key, data)

    def _put(self, key: str, data: bytes | SpoolFile) -> None:
        if self._folder is not None and _put_local(self._folder, key, data):
            return
        if isinstance(data, bytes):
            obstore.put(self._store, key, data, use_multipart=False)
        else:
            obstore.put(self._store, key, data.pieces(), use_multipart=True)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """See :meth:`ArtifactStore.read`."""
        data: bytes = await self._call(self._read, key, offset, length)
        if len(data) != length:
            raise ArtifactError(f"{self._where}: {key} ends before byte {offset + length}")
        return data

    def _read(self, key: str, offset: int, length: int) -> bytes:
        return bytes(obstore.get_range(self._store, key, start=offset, length=length))

    async def delete(self, key: str) -> None:
        """See :meth:`ArtifactStore.delete`."""
        try:
            await self._call(obstore.delete, self._store, key)
        except ArtifactMissing:
            return

    async def listing(self) -> list[StoredArtifact]:
        """See :meth:`ArtifactStore.listing`."""
        found: list[StoredArtifact] = await self._call(self._listing)
        return found

    def _listing(self) -> list[StoredArtifact]:
        found = []
        for batch in obstore.list(self._store, prefix=_PREFIX):
            for meta in batch:
                parts = meta["path"].split("/")
                if len(parts) == 3:
                    modified_at_s = meta["last_modified"].timestamp()
                    found.append(StoredArtifact(meta["path"], parts[1], modified_at_s))
        return found

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

    async def _call(self, function: Any, *args: Any) -> Any:
        try:
            return await asyncio.to_thread(function, *args)
        except FileNotFoundError as error:
            raise ArtifactMissing(f"{self._where}: {error}") from error
        except (BaseError, OSError) as error:
            raise ArtifactError(f"{self._where}: {error}") from error


def _put_local(folder: Path, key: str, data: bytes | SpoolFile) -> bool:
    """Names a nameless file with the data, which is whole by then; False: not possible here."""
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, SpoolFile):
        return data.keep_as(path)
    file = SpoolFile(folder)
    try:
        file.write(data)
        return file.keep_as(path)
    finally:
        file.close()


def open_store(url: str) -> ObstoreArtifacts:
    """The artifact store at an obstore URL or a local folder, which is made if need be.

    Raises:
        ArtifactError: The URL is not understood or the folder cannot be made.
    """
    try:
        if "://" not in url:
            folder = Path(url)
            folder.mkdir(parents=True, exist_ok=True)
            folder = folder.resolve()
            return ObstoreArtifacts(LocalStore(prefix=folder), where=url, folder=folder)
        if url.startswith("memory:"):
            return ObstoreArtifacts(MemoryStore(), where=url)
        return ObstoreArtifacts(from_url(url), where=url)
    except (BaseError, OSError, ValueError) as error:
        raise ArtifactError(f"artifacts.url {url}: {error}") from error
