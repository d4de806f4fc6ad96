"""Files that people keep, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def save_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replaces ``path`` by what ``write`` writes; a reader sees the old file or the new.

    The file is as readable as any that the process makes.

    Raises:
        OSError: The folder is missing or full; an older file is left as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as target:
            write(target)
        # mkstemp makes it private, which nobody expects of a video.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    # There is no way to read it without setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
