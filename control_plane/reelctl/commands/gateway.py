"""``reelctl gateway``."""

from __future__ import annotations

import typer

from control_plane.reelctl.options import Client, OnlyRegionOption, OutputOption, connected
from control_plane.reelctl.output import Format, note, print_all
from control_plane.reelctl.tables import gateways_table
from reelkit.help_text import flow

LIST_HELP = """List the gateways that are attached.

\b
  reelctl gateway list
  reelctl gateway list -o json | jq -r '.[].grpc_address'"""

app = typer.Typer(help="The gateways of the regions.", no_args_is_help=True)


@app.command("list", help=flow(LIST_HELP))
@connected
def list_gateways(
    client: Client, output: OutputOption = Format.TABLE, region: OnlyRegionOption = None
) -> None:
    """Lists gateways."""
    del region  # Chose the target.
    gateways = client.gateways(on_missing=note if output is Format.TABLE else None)
    print_all(gateways, output, lambda: gateways_table(gateways), empty="No gateway is attached.")
