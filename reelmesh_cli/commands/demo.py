"""``reelmesh demo``: a mesh, one video, and the mesh is gone again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reelkit.extras import needs_extra
from reelmesh_cli import console
from reelmesh_cli.commands.generate import Output, check_output, make_video
from reelmesh_cli.commands.up import (
    START_TIMEOUT_S,
    ManifestOption,
    ModelOption,
    NodesOption,
    RegionsOption,
    StartTimeoutOption,
    ThreadsOption,
)
from reelmesh_cli.config import DEFAULT_STATE_DIR
from reelmesh_cli.outputs import make_folder
from wan_t2v_sdk import AsyncTextToVideoGenerator, VideoSettings

if TYPE_CHECKING:
    from reelmesh_cli.mesh.local import LocalMesh
    from reelmesh_cli.mesh.supervisor import Mesh

PROMPT = "a big red ball bouncing"
TIMEOUT_S = 600.0
HELP = """Start a mesh, make one video through it, stop the mesh.

The whole path: client, gateway with its token check, node agent, a real diffusers pipeline in
its own process, H.264, and back as a stream.

\b
  reelmesh demo
  reelmesh demo --prompt "a green triangle spinning" --out out/"""


@needs_extra("local", program="reelmesh demo", parts="the parts of a mesh")
def demo(
    prompt: Annotated[str, typer.Option(help="What the video shows.")] = PROMPT,
    out: Annotated[Path, typer.Option(help="Folder for the video; made if need be.")] = Path("out"),
    regions: RegionsOption = "ap,eu",
    nodes_per_region: NodesOption = 1,
    state_dir: Annotated[
        Path, typer.Option(help="Where everything of the mesh lies.")
    ] = DEFAULT_STATE_DIR / "demo",
    model: ModelOption = None,
    manifest: ManifestOption = None,
    threads: ThreadsOption = 0,
    start_timeout: StartTimeoutOption = START_TIMEOUT_S,
    json_output: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Runs the command; see :data:`HELP`."""
    from reelmesh_cli.mesh.local import LocalMesh

    asked = LocalMesh(
        regions=regions,
        nodes_per_region=nodes_per_region,
        state_dir=state_dir,
        model=model,
        manifest=manifest,
        threads=threads,
        restart=False,
        start_timeout_s=start_timeout,
    )
    make_folder("--out", out)
    output = Output(video=out / "demo.mp4", sheet=out / "demo.png", as_json=json_output)
    check_output(output)
    raise typer.Exit(asyncio.run(_demo(asked, prompt, output)))


async def _demo(asked: LocalMesh, prompt: str, output: Output) -> int:
    from reelmesh_cli.mesh.session import run_session

    async def make(mesh: Mesh) -> int:
        if not output.as_json:
            console.err.print(f"the mesh serves; making {prompt!r}", markup=False)
        async with AsyncTextToVideoGenerator.from_mesh(
            mesh.mesh_file, timeout_s=TIMEOUT_S
        ) as client:
            await make_video(client, prompt, VideoSettings(), output)
        return 0

    return await run_session(asked, make, quiet=output.as_json)
