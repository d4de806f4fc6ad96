"""A file without a name, for bytes that must not outlive the process unless they are kept."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

Piece = bytes | memoryview

_PIECE_BYTES: Final = 1024 * 1024
# What a file system without nameless files, or without links between folders, answers.
NO_SUCH_THING: Final = frozenset(
    (errno.EXDEV, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EPERM, errno.EINVAL)
)


class SpoolFile:
    """Written at its end, read anywhere, gone when closed. Its calls block.

    On Linux it can be given a name when it is whole (:meth:`keep_as`), which costs
    nothing however large it is.
    """

    def __init__(self, directory: Path, *, descriptor: int | None = None, size: int = 0) -> None:
        self._directory = directory
        self._descriptor = _open_nameless(directory) if descriptor is None else descriptor
        self.size = size

    def duplicate(self) -> Self:
        """The same file, closed for itself."""
        return type(self)(self._directory, descriptor=os.dup(self._descriptor), size=self.size)

    def write(self, piece: Piece) -> None:
        """Appends all of it.

        Raises:
            OSError: The disk is full or broken.
        """
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.size += len(piece)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes.

        Raises:
            OSError: The file ends before, or cannot be read.
        """
        parts = []
        while length > 0:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                raise OSError(f"the spool file ends at byte {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> Iterator[bytes]:
        """All of it, 1 MiB at a time."""
        for offset in range(0, self.size, _PIECE_BYTES):
            yield self.read(offset, min(_PIECE_BYTES, self.size - offset))

    def keep_as(self, path: Path) -> bool:
        """Gives the file a name, whole; False where this file system cannot.

        Raises:
            OSError: It could, and yet it failed.
        """
        os.fchmod(self._descriptor, 0o644)
        try:
            # linkat(2) on /proc needs no privilege. Python calls it only where a folder's
            # descriptor is given; link(2) would take the symbolic link for the file.
            source = f"/proc/self/fd/{self._descriptor}"
            os.link(source, path, src_dir_fd=self._descriptor, follow_symlinks=True)
        except OSError as error:
            if error.errno in NO_SUCH_THING:
                return False
            raise
        return True

    def close(self) -> None:
        """Lets go; without a name and another opener the bytes are gone."""
        os.close(self._descriptor)


def _open_nameless(directory: Path) -> int:
    flags = getattr(os, "O_TMPFILE", None)
    if flags is not None:
        try:
            return os.open(directory, flags | os.O_RDWR, 0o600)
        except OSError as error:
            if error.errno not in NO_SUCH_THING:
                raise
    descriptor, name = tempfile.mkstemp(dir=directory)
    Path(name).unlink()
    return descriptor
