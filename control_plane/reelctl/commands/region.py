"""``reelctl region``."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.reelctl.options import Client, OutputOption, connected
from control_plane.reelctl.output import Format, print_all, say
from control_plane.reelctl.tables import regions_table
from control_plane.reelctl.waiting import SYSTEM_CLOCK
from reelkit.help_text import flow

LIST_HELP = """List every region of the mesh.

Unknown is a region of which there is no recent word: its control planes or the way to
them are away, which does not mean that it serves nobody.

\b
  reelctl region list
  reelctl region list -o yaml"""
DRAIN_HELP = """Send new work elsewhere; what runs in the region goes on.

\b
  reelctl region drain eu --reason "power works until 14:00"
  reelctl region activate eu"""
ACTIVATE_HELP = """Take new work in the region again; it comes back by and by.

\b
  reelctl region activate eu"""

app = typer.Typer(help="The regions of the mesh.", no_args_is_help=True)

RegionArgument = Annotated[
    str, typer.Argument(metavar="REGION", help="The region's name.", show_default=False)
]
ReasonOption = Annotated[str, typer.Option(help="For whoever looks later.", show_default=False)]


@app.command("list", help=flow(LIST_HELP))
@connected
def list_regions(client: Client, output: OutputOption = Format.TABLE) -> None:
    """Lists regions."""
    regions = client.regions()
    print_all(
        regions,
        output,
        lambda: regions_table(regions, now_s=SYSTEM_CLOCK.time()),
        empty="No region has told of itself yet.",
    )


@app.command("drain", help=flow(DRAIN_HELP))
@connected
def drain(client: Client, name: RegionArgument, reason: ReasonOption = "") -> None:
    """Drains a region."""
    client.set_region_policy(name, draining=True, reason=reason)
    say(f"region {name} drains: new work goes to other regions")


@app.command("activate", help=flow(ACTIVATE_HELP))
@connected
def activate(client: Client, name: RegionArgument, reason: ReasonOption = "") -> None:
    """Ends a drain."""
    client.set_region_policy(name, draining=False, reason=reason)
    say(f"region {name} takes new work")
