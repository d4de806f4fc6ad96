"""The folder that a local mesh lives in, held by one mesh at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from reelmesh_cli.errors import StateDirInUseError
from reelmesh_cli.outputs import naming

MESH_FILE = "mesh.json"


@contextlib.contextmanager
def hold_state_dir(path: Path) -> Iterator[Path]:
    """Makes the folder, holds it for the block, and yields its absolute path.

    The lock is the kernel's: it is gone with the process, however that ends. A
    ``mesh.json`` of a mesh that was killed is removed.

    Raises:
        StateDirInUseError: Another live mesh holds it; the message names its pid.
        UsageError: It cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        with naming("--state-dir", path):
            folder = path.expanduser().resolve()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("config", "logs", "run", "artifacts", "gateways"):
                (folder / name).mkdir(exist_ok=True)
            lock = stack.enter_context((folder / "lock").open("a+", encoding="ascii"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise StateDirInUseError(
                f"{folder} is in use by a mesh that is up (pid {pid})",
                hint=f"stop that one (kill {pid}), or name another folder with --state-dir",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        (folder / MESH_FILE).unlink(missing_ok=True)
        yield folder
