"""Which mesh a command speaks to; the one module of the command line that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from reelmesh_cli.errors import UsageError
from wan_t2v_sdk import AsyncTextToVideoGenerator, ConfigurationError
from wan_t2v_sdk.config import ENDPOINTS_VARIABLE

DEFAULT_STATE_DIR = Path("mesh-state")


def mesh_file_of(mesh: Path | None, *, environ: Mapping[str, str] | None = None) -> Path | None:
    """The mesh.json to read, or None where the environment names the mesh.

    ``--mesh`` wins, then the environment, then ``mesh-state/mesh.json`` below the
    current folder.

    Raises:
        UsageError: None of them names a mesh.
    """
    env = os.environ if environ is None else environ
    if mesh is not None:
        return mesh / "mesh.json" if mesh.is_dir() else mesh
    if env.get(ENDPOINTS_VARIABLE, "").strip():
        return None
    default = DEFAULT_STATE_DIR / "mesh.json"
    if default.exists():
        return default
    raise UsageError(
        f"no mesh is known: {default} is not there and {ENDPOINTS_VARIABLE} is not set",
        hint="start one with `reelmesh up`, or name one with --mesh DIR/mesh.json",
    )


def open_client(mesh: Path | None, *, region: str, timeout_s: float) -> AsyncTextToVideoGenerator:
    """A client of the mesh that the options and the environment name.

    Raises:
        UsageError: There is none, or what names it cannot be read.
    """
    file = mesh_file_of(mesh)
    try:
        if file is None:
            return AsyncTextToVideoGenerator(region, timeout_s=timeout_s)
        return AsyncTextToVideoGenerator.from_mesh(file, region=region, timeout_s=timeout_s)
    except ConfigurationError as error:
        raise UsageError(error.message) from None
