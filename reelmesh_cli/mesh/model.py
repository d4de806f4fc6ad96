"""Which model a local mesh serves when none is named."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

from reelmesh_cli.errors import MeshStartError, UsageError

MAKE_TIMEOUT_S = 180.0
MANIFEST = "manifest.json"
# The package is asked for its folder alone and never imported here: it belongs to another
# process, with torch.
_MAKE = (
    "import pathlib, sys; from node_agent.engine.random_model import make_random_model; "
    "make_random_model(pathlib.Path(sys.argv[1]))"
)


def shipped_model() -> Path | None:
    """The demo model that lies in the installed package, if there is one."""
    spec = importlib.util.find_spec("node_agent")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(location) / "models" / "demo"
        if (folder / MANIFEST).is_file():
            return folder
    return None


def named_model(model: str) -> str:
    """A node's ``model.source`` for what ``--model`` names.

    Raises:
        UsageError: It is a folder without a manifest, or no folder at all.
    """
    if "://" in model:
        return model
    folder = Path(model).expanduser().resolve()
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"--model {model}: there is no {MANIFEST} in it",
            hint="name a folder of weights with its manifest, hf://org/name or an object-store URL",
        )
    return str(folder)


async def make_random_model(folder: Path) -> Path:
    """A small model of random weights in ``folder``, made by another process if need be.

    Raises:
        MeshStartError: It could not be made.
    """
    if (folder / MANIFEST).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _MAKE,
        str(folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(MAKE_TIMEOUT_S):
            _, stderr = await process.communicate()
    except TimeoutError:
        raise MeshStartError(f"the random model was not made within {MAKE_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise MeshStartError(
            "the random model could not be made",
            hint=stderr.decode(errors="replace")[-2_000:],
        )
    return folder
