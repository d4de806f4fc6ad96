"""``reelmesh up``: a whole mesh on this machine, in the foreground."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from reelkit.extras import needs_extra
from reelmesh_cli import console
from reelmesh_cli.config import DEFAULT_STATE_DIR

if TYPE_CHECKING:
    from reelmesh_cli.mesh.local import LocalMesh
    from reelmesh_cli.mesh.supervisor import Mesh

START_TIMEOUT_S = 900.0
HELP = """Start a mesh on this machine and stay in front.

An etcd and, per region, control planes, gateways and node agents, as processes. When all
serve, STATE_DIR/mesh.json is written, which the other commands and the SDK read. Ctrl-C stops
everything; twice kills it.

\b
  reelmesh up
  reelmesh up --regions ap,eu --nodes-per-region 1 --state-dir /tmp/mesh
  reelmesh up --model /models/wan2.2-ti2v-5b --regions home
  reelmesh up --model hf://org/name --manifest my.manifest.json
  reelmesh up --gateways-per-region 2 --control-planes-per-region 2 --nodes-per-region 2
  reelmesh up --etcd separate --etcd-members global=3
  reelmesh up --tls            everything encrypted, by a private CA
  reelmesh up --restart        start a process again that died"""

RegionsOption = Annotated[str, typer.Option(help="Comma list of regions.")]
NodesOption = Annotated[int, typer.Option(help="Node agents in each region.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of weights with a manifest.json, hf://org/name or an object-store URL; "
        "by default the small demo model.",
        show_default=False,
    ),
]
ManifestOption = Annotated[
    Path | None,
    typer.Option(
        help="The model's manifest, where --model holds none, such as a repository of the Hub: a "
        "file, or the name of a shipped one, such as wan2.2-ti2v-5b.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option(min=0, help="torch's CPU threads in each worker; 0: a fair share of the cores."),
]
StartTimeoutOption = Annotated[
    float, typer.Option(min=1, help="Seconds until the mesh must serve, loading included.")
]


@needs_extra("local", program="reelmesh up", parts="the parts of a mesh")
def up(
    regions: RegionsOption = "ap,eu",
    nodes_per_region: NodesOption = 1,
    state_dir: Annotated[
        Path, typer.Option(help="Where everything of the mesh lies.")
    ] = DEFAULT_STATE_DIR,
    model: ModelOption = None,
    manifest: ManifestOption = None,
    threads: ThreadsOption = 0,
    gateways_per_region: Annotated[int, typer.Option(help="Gateways in each region.")] = 1,
    control_planes_per_region: Annotated[
        int, typer.Option(help="Replicas of each region's control plane.")
    ] = 1,
    etcd: Annotated[
        str, typer.Option(help="shared: one etcd; separate: one a region and a global one.")
    ] = "shared",
    etcd_members: Annotated[
        str,
        typer.Option(
            help="Members of each etcd cluster, 1, 3 or 5, such as 3 or global=3,ap=1.",
            show_default=False,
        ),
    ] = "",
    tls: Annotated[
        bool,
        typer.Option(
            "--tls",
            help="Encrypt everything, etcd included, with certificates of a private CA below "
            "STATE_DIR/certs; clients find it in mesh.json.",
        ),
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Restart what dies.")] = False,
    start_timeout: StartTimeoutOption = START_TIMEOUT_S,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print mesh.json's path and endpoints as JSON.")
    ] = False,
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
        restart=restart,
        start_timeout_s=start_timeout,
        gateways_per_region=gateways_per_region,
        control_planes_per_region=control_planes_per_region,
        etcd=etcd,
        etcd_members=etcd_members,
        tls=tls,
    )
    raise typer.Exit(asyncio.run(_up(asked, as_json=json_output)))


async def _up(asked: LocalMesh, *, as_json: bool) -> int:
    from reelmesh_cli.mesh.session import run_session

    served = False

    async def serve(mesh: Mesh) -> int:
        nonlocal served
        served = True
        if as_json:
            console.print_json(_summary(mesh))
        else:
            _print_summary(mesh)
        await asyncio.Event().wait()
        return 0

    code = await run_session(asked, serve, quiet=as_json)
    # A mesh that served until it was asked to stop has done its work.
    return 0 if served and code > 128 else code


def _summary(mesh: Mesh) -> dict[str, object]:
    regions = mesh.plan.regions
    return {
        "mesh": str(mesh.mesh_file),
        "endpoints": {name: each.grpc for name, each in regions.items()},
        "http": {name: each.http for name, each in regions.items()},
        "ca": None if mesh.plan.ca is None else str(mesh.plan.ca),
    }


def _print_summary(mesh: Mesh) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("region", "gRPC", "HTTP"):
        table.add_column(name)
    for name, each in mesh.plan.regions.items():
        for gateway in each.gateways:
            table.add_row(name, gateway["grpc"], gateway["http"])
    endpoints = ",".join(
        f"{name}={gateway['grpc']}"
        for name, each in mesh.plan.regions.items()
        for gateway in each.gateways
    )
    http = next(iter(mesh.plan.regions.values())).http
    file = mesh.mesh_file
    console.out.print(table)
    console.out.print(
        f"\n[green]the mesh serves[/]; {escape(str(file))} describes it. Ctrl-C stops it."
    )
    console.out.print("In another terminal:\n", markup=False)
    token = f'$(python3 -c \'import json; print(json.load(open("{file}"))["tokens"]["user"])\')'
    ca = mesh.plan.ca
    trust = "" if ca is None else "--cacert $REELMESH_CA "
    lines = [
        f"  export REELMESH_ENDPOINTS={endpoints}",
        f"  export REELMESH_TOKEN={token}",
        *([] if ca is None else [f"  export REELMESH_CA={ca}"]),
        '  reelmesh generate "a big red ball bouncing" -o ball.mp4',
        f'  curl {trust}-H "Authorization: Bearer $REELMESH_TOKEN" {http}/v1/models',
    ]
    for line in lines:
        console.out.print(line, markup=False)
