"""Files of a folder that become artifacts by getting a name. The calls block."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from gateway.output.spool_file import NO_SUCH_THING, SpoolFile


def put_local(folder: Path, key: str, data: bytes | SpoolFile) -> bool:
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


def link_local(folder: Path, source: str, key: str, *, size: int, sha256: str) -> None:
    """Gives a file a second name, if it is the right one."""
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(folder / source, path)
    except OSError as error:
        if error.errno not in NO_SUCH_THING:
            raise
        # A file system without links: nobody knows the key yet, so it need not be whole at once.
        shutil.copyfile(folder / source, path)
    # By the new name: the other one may be gone by now.
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if (os.fstat(file.fileno()).st_size, found) == (size, sha256):
            return
    path.unlink()
    raise OSError(f"{source} is not the video that was stored there")
