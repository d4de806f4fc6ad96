"""Which model a local mesh serves: the one that is named, or else one that is there."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

from reelmesh_cli.errors import MeshStartError, UsageError

MAKE_TIMEOUT_S = 180.0
CHECK_TIMEOUT_S = 60.0
MANIFEST = "manifest.json"
MANIFEST_SUFFIX = ".manifest.json"
# The package is asked for its folder alone and never imported here: it belongs to another
# process, with torch.
_MAKE = (
    "import pathlib, sys; from node_agent.engine.random_model import make_random_model; "
    "make_random_model(pathlib.Path(sys.argv[1]))"
)
_CHECK = """
import pathlib, sys
from node_agent.errors import WeightsError
from node_agent.weights_cache import read_manifest_file
try:
    read_manifest_file(pathlib.Path(sys.argv[1]))
except WeightsError as error:
    sys.exit(str(error))
"""


def shipped_model() -> Path | None:
    """The demo model that lies in the installed package, if there is one."""
    for models in _model_folders():
        folder = models / "demo"
        if (folder / MANIFEST).is_file():
            return folder
    return None


def _model_folders() -> list[Path]:
    spec = importlib.util.find_spec("node_agent")
    locations = (spec.submodule_search_locations or ()) if spec is not None else ()
    return [Path(location) / "models" for location in locations]


def named_model(model: str, *, has_manifest: bool = False) -> str:
    """A node's ``model.source`` for what ``--model`` names.

    Args:
        model: A folder or a URL.
        has_manifest: ``--manifest`` names one, so that the folder needs none.

    Raises:
        UsageError: It is a folder without a manifest, or no folder at all.
    """
    if "://" in model:
        return model
    folder = Path(model).expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(
            f"--model {model}: is no folder",
            hint="name a folder of weights, hf://org/name or an object-store URL",
        )
    if not has_manifest and not (folder / MANIFEST).is_file():
        raise UsageError(
            f"--model {model}: there is no {MANIFEST} in it",
            hint="name one that lies elsewhere with --manifest FILE",
        )
    return str(folder)


def named_manifest(manifest: Path) -> Path:
    """The file that ``--manifest`` names, or the shipped one of that name.

    Raises:
        UsageError: There is neither.
    """
    file = manifest.expanduser().resolve()
    if file.is_file():
        return file
    shipped = {
        found.name.removesuffix(MANIFEST_SUFFIX): found
        for folder in _model_folders()
        for found in folder.glob(f"*{MANIFEST_SUFFIX}")
    }
    if str(manifest) in shipped:
        return shipped[str(manifest)]
    raise UsageError(
        f"--manifest {manifest}: there is no such file, and none of that name is shipped",
        hint=f"shipped: {', '.join(sorted(shipped)) or 'none'}; docs/models.md shows how to write "
        "your own",
    )


async def check_manifest(manifest: Path) -> None:
    """Returns if the manifest keeps every rule; the node agent's own code looks at it.

    Raises:
        UsageError: It breaks a rule; says which.
        MeshStartError: There was no answer in time.
    """
    try:
        code, said = await _run(_CHECK, manifest, timeout_s=CHECK_TIMEOUT_S)
    except TimeoutError:
        raise MeshStartError(f"{manifest} was not read within {CHECK_TIMEOUT_S:g} s") from None
    if code != 0:
        raise UsageError(f"--manifest {said.strip()}", hint="docs/models.md has the rules")


async def make_random_model(folder: Path) -> Path:
    """A small model of random weights in ``folder``, made by another process if need be.

    Raises:
        MeshStartError: It could not be made.
    """
    if (folder / MANIFEST).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        code, said = await _run(_MAKE, folder, timeout_s=MAKE_TIMEOUT_S)
    except TimeoutError:
        raise MeshStartError(f"the random model was not made within {MAKE_TIMEOUT_S:g} s") from None
    if code != 0:
        raise MeshStartError("the random model could not be made", hint=said[-2_000:])
    return folder


async def _run(code: str, argument: Path, *, timeout_s: float) -> tuple[int, str]:
    """The exit code of another Python that runs ``code``, and what it wrote to stderr.

    Raises:
        TimeoutError: It was not done in time, and is gone.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        code,
        str(argument),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            _, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, stderr.decode(errors="replace")
