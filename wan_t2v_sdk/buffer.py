"""The bytes of a video as they arrive: in memory while small, in a nameless file after."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from wan_t2v_sdk.errors import IntegrityError, ServerError
from wan_t2v_sdk.saving import save_whole

MEMORY_LIMIT_BYTES = 16 * 1024 * 1024
SIZE_LIMIT_BYTES = 4 * 1024**3
_COPY_BYTES = 1024 * 1024


class VideoBuffer:
    """Bytes without gaps, with their running sha256.

    At most ``memory_limit_bytes`` are held in memory; beyond that they lie in a
    temporary file that has no name and vanishes with the buffer.
    """

    def __init__(
        self,
        *,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        size_limit_bytes: int = SIZE_LIMIT_BYTES,
    ) -> None:
        self._size_limit_bytes = size_limit_bytes
        # Closed in close(); the object outlives this method on purpose.
        self._file = tempfile.SpooledTemporaryFile(max_size=memory_limit_bytes)  # noqa: SIM115
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """How many bytes have arrived."""
        return self._size_bytes

    @property
    def sha256(self) -> str:
        """sha256 (hex) of the bytes so far."""
        return self._sha256.hexdigest()

    def append(self, offset: int, data: bytes) -> None:
        """Adds the bytes at ``offset``; what it already holds of them is skipped.

        Raises:
            ServerError: The bytes leave a gap, or the video passes the size limit.
        """
        if offset > self._size_bytes:
            raise ServerError(
                f"the video's bytes leave a gap: {self._size_bytes} were received and the "
                f"next start at {offset}",
                code="gap_in_stream",
                retryable=True,
            )
        fresh = data[self._size_bytes - offset :]
        if self._size_bytes + len(fresh) > self._size_limit_bytes:
            raise ServerError(
                f"the video is larger than {self._size_limit_bytes} bytes", code="video_too_large"
            )
        self._file.seek(0, os.SEEK_END)
        self._file.write(fresh)
        self._sha256.update(fresh)
        self._size_bytes += len(fresh)

    def reset(self) -> None:
        """Throws every byte away."""
        self._file.seek(0)
        self._file.truncate()
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0

    def verify(self, *, sha256: str, size_bytes: int) -> None:
        """Checks the bytes against what the node says it made.

        Raises:
            IntegrityError: Size or digest differ.
        """
        if size_bytes != self._size_bytes or sha256 != self.sha256:
            raise IntegrityError(
                f"the video's bytes are damaged: {self._size_bytes} bytes with sha256 "
                f"{self.sha256[:12]}… arrived, {size_bytes} with {sha256[:12]}… were made"
            )

    def read(self) -> bytes:
        """All bytes, in memory."""
        self._file.seek(0)
        return self._file.read()

    def open(self) -> IO[bytes]:
        """The bytes as a seekable file at its start; closing is the buffer's business."""
        self._file.seek(0)
        return self._file

    def save(self, path: Path) -> None:
        """Writes the bytes to ``path``, whole or not at all.

        Raises:
            OSError: The folder is missing or full; an older file is left as it was.
        """
        save_whole(path, lambda target: shutil.copyfileobj(self.open(), target, _COPY_BYTES))

    def close(self) -> None:
        """Frees memory and file; idempotent."""
        self._file.close()
