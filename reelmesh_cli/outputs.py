"""Where results go, tried before anything is asked of a mesh: no video is drawn and then lost."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reelmesh_cli.errors import UsageError


def check_file(option: str, path: Path) -> None:
    """Returns if a file can be written at ``path``.

    Raises:
        UsageError: Names the option and what is in the way.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(
            f"{option} {path}: is a folder", hint=f"name a file in it, such as {path / 'video.mp4'}"
        )
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path}: is no regular file")
    if not folder.is_dir():
        raise UsageError(
            f"{option} {path}: the folder {path.parent} does not exist",
            hint=f"mkdir -p {path.parent}",
        )
    with naming(option, path):
        _try_to_write(folder)


def make_folder(option: str, path: Path) -> None:
    """Makes the folder if need be, and returns if files can be written into it.

    Raises:
        UsageError: Names the option and what is in the way.
    """
    with naming(option, path):
        path.mkdir(parents=True, exist_ok=True)
        _try_to_write(path)


@contextlib.contextmanager
def naming(option: str, path: Path) -> Iterator[None]:
    """A block whose OSError is the fault of what ``option`` names.

    Raises:
        UsageError: In its place, with the option and the reason.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"{option} {path}: there is a file in the place of a folder", hint="name another folder"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{option} {path}: cannot be written: {error.strerror or error}",
            hint="name another folder, or make this one writable",
        ) from None


def _try_to_write(folder: Path) -> None:
    # What the permissions say is not the whole truth: disks are read-only, /proc holds no files.
    with tempfile.TemporaryFile(dir=folder):
        pass
