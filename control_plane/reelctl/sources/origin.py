"""Where weights lie, as reelctl reads them: a folder, an object store, the Hub."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotSupportedError
from obstore.store import from_url

from control_plane.reelctl.errors import CtlError, UsageError

MAX_FILES: Final = 10_000
BLOCK_BYTES: Final = 1024 * 1024
# A silence after which a connection is dropped and tried anew, and how often that is.
_SILENCE: Final = "30s"
_RETRIES: Final = 5


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that lies there; ``sha256`` where the place itself vouches for it."""

    path: str
    size_bytes: int
    sha256: str | None = None


class Origin(Protocol):
    """A folder of files, wherever it is. Errors are CtlErrors that name what and where."""

    @property
    def url(self) -> str:
        """How nodes are told of it."""
        ...

    def files(self) -> list[SourceFile] | None:
        """Everything in it; None where the place cannot list."""
        ...

    def size(self, path: str) -> int | None:
        """A file's size; None where there is none."""
        ...

    def head(self, path: str, length: int, *, offset: int = 0) -> bytes:
        """At most ``length`` of a file's bytes."""
        ...

    def blocks(self, path: str) -> Iterator[bytes]:
        """A file's bytes, in order."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Writes a small file."""
        ...


class FolderOrigin:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        if not self._folder.is_dir():
            raise UsageError(f"{folder}: is no folder")

    @property
    def url(self) -> str:
        """See :class:`Origin`."""
        return self._folder.as_uri()

    def files(self) -> list[SourceFile] | None:
        """See :class:`Origin`; a symbolic link is an error, since it may lead anywhere."""
        found: list[SourceFile] = []
        for root, folders, names in os.walk(self._folder, followlinks=False):
            for name in sorted([*folders, *names]):
                entry = Path(root) / name
                path, info = entry.relative_to(self._folder).as_posix(), entry.lstat()
                if stat.S_ISLNK(info.st_mode):
                    raise CtlError(
                        f"{path}: is a symbolic link", hint="put the file itself in its place"
                    )
                if stat.S_ISREG(info.st_mode):
                    found.append(SourceFile(path, info.st_size))
                elif not stat.S_ISDIR(info.st_mode):
                    raise CtlError(f"{path}: is neither file nor folder")
            if len(found) > MAX_FILES:
                raise CtlError(f"{self._folder}: holds more than {MAX_FILES} files")
        return found

    def size(self, path: str) -> int | None:
        """See :class:`Origin`."""
        try:
            info = (self._folder / path).lstat()
        except FileNotFoundError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def head(self, path: str, length: int, *, offset: int = 0) -> bytes:
        """See :class:`Origin`."""
        with self._open(path) as file:
            os.lseek(file, offset, os.SEEK_SET)
            parts = []
            while length and (block := os.read(file, min(length, BLOCK_BYTES))):
                parts.append(block)
                length -= len(block)
            return b"".join(parts)

    def blocks(self, path: str) -> Iterator[bytes]:
        """See :class:`Origin`."""
        with self._open(path) as file:
            while block := os.read(file, BLOCK_BYTES):
                yield block

    def put(self, path: str, data: bytes) -> None:
        """See :class:`Origin`."""
        try:
            (self._folder / path).write_bytes(data)
        except OSError as error:
            raise CtlError(f"{path}: cannot be written: {error.strerror}") from None

    def _open(self, path: str) -> _Descriptor:
        try:
            # A link that was put there since it was listed is not followed.
            return _Descriptor(os.open(self._folder / path, os.O_RDONLY | os.O_NOFOLLOW))
        except OSError as error:
            raise CtlError(f"{path}: cannot be read: {error.strerror}") from None


class _Descriptor:
    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> int:
        return self._number

    def __exit__(self, *_: object) -> None:
        os.close(self._number)


class StoreOrigin:
    """A folder of an object store, or of a web server."""

    def __init__(self, url: str, store: Any, *, lists: bool) -> None:
        self._url = url
        self._store = store
        self._lists = lists

    @property
    def url(self) -> str:
        """See :class:`Origin`."""
        return self._url

    def files(self) -> list[SourceFile] | None:
        """See :class:`Origin`."""
        if not self._lists:
            return None
        found: list[SourceFile] = []
        try:
            for page in obstore.list(self._store, chunk_size=500):
                found += [SourceFile(each["path"], each["size"]) for each in page]
                if len(found) > MAX_FILES:
                    raise CtlError(f"{self._url}: holds more than {MAX_FILES} files")
        except (OSError, BaseError, ValueError) as error:
            raise _told(self._url, error) from None
        if not found:
            raise CtlError(f"{self._url}: there are no files")
        return sorted(found, key=lambda each: each.path)

    def size(self, path: str) -> int | None:
        """See :class:`Origin`."""
        try:
            return int(obstore.head(self._store, path)["size"])
        except FileNotFoundError:
            return None
        except (OSError, BaseError, ValueError) as error:
            raise _told(f"{self._url}/{path}", error) from None

    def head(self, path: str, length: int, *, offset: int = 0) -> bytes:
        """See :class:`Origin`."""
        try:
            got = obstore.get_range(self._store, path, start=offset, length=length)
        except NotSupportedError:
            # A web server may know no ranges of its smaller files.
            return self._skimmed(path, offset + length)[offset:]
        except (OSError, BaseError, ValueError) as error:
            raise _told(f"{self._url}/{path}", error) from None
        return bytes(got)

    def _skimmed(self, path: str, length: int) -> bytes:
        data = b""
        for block in self.blocks(path):
            data += block
            if len(data) >= length:
                break
        return data[:length]

    def blocks(self, path: str) -> Iterator[bytes]:
        """See :class:`Origin`."""
        try:
            for block in obstore.get(self._store, path).stream(min_chunk_size=BLOCK_BYTES):
                yield bytes(block)
        except (OSError, BaseError, ValueError) as error:
            raise _told(f"{self._url}/{path}", error) from None

    def put(self, path: str, data: bytes) -> None:
        """See :class:`Origin`."""
        try:
            obstore.put(self._store, path, data)
        except (OSError, BaseError, ValueError, NotImplementedError) as error:
            raise _told(f"{self._url}/{path}", error) from None


def open_origin(
    source: str, *, store_options: Mapping[str, str], client_options: Mapping[str, str]
) -> Origin:
    """The place that a source names.

    Args:
        source: A folder, ``hf://org/name[@revision]``, or an object store's URL.
        store_options: By obstore's names; credentials come from the environment.
        client_options: Likewise, of the HTTP client.

    Raises:
        CtlError: It is not understood, or not there.
    """
    scheme = urlsplit(source).scheme
    if scheme == "file":
        return FolderOrigin(Path(urlsplit(source).path))
    if "://" not in source:
        return FolderOrigin(Path(source))
    if scheme == "hf":
        from control_plane.reelctl.sources.hub import HubOrigin

        return HubOrigin(source)
    url = source.rstrip("/")
    store = open_store(url, store_options=store_options, client_options=client_options)
    return StoreOrigin(url, store, lists=scheme not in ("http", "https"))


def open_store(
    url: str,
    *,
    store_options: Mapping[str, str] | None = None,
    client_options: Mapping[str, Any] | None = None,
) -> Any:
    """The object store at a URL.

    Raises:
        UsageError: The URL or an option is not understood.
    """
    # The client would else end each request, the reading of its body included, after 30 s.
    ours = {"timeout": "86400s", "read_timeout": _SILENCE}
    options: dict[str, Any] = {
        "client_options": {**ours, **(client_options or {})},
        "retry_config": {"max_retries": _RETRIES},
    }
    if store_options:
        options["config"] = dict(store_options)
    try:
        return from_url(url, **options)
    except (BaseError, ValueError, TypeError) as error:
        raise UsageError(f"{url}: {_first_line(error)}") from None


def _told(what: str, error: BaseException) -> CtlError:
    if isinstance(error, FileNotFoundError):
        return CtlError(f"{what}: is not there")
    return CtlError(
        f"{what}: {_first_line(error)}",
        hint="credentials are read from the environment, such as AWS_ACCESS_KEY_ID; "
        "the endpoint from --store-option endpoint=…",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
