"""``reelctl``: its commands, and what becomes of their errors."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from control_plane.reelctl.commands import certs, gateway, model, node, region, tenant, token
from control_plane.reelctl.errors import CtlError, StoppedError
from control_plane.reelctl.output import print_error, say
from reelkit.extras import DISTRIBUTION
from reelkit.help_text import flow

HELP = """Look at a mesh and steer it: nodes, gateways, regions, tenants, models.

\b
  reelctl node list --watch
  reelctl node events ap-node-0
  reelctl node drain ap-node-0 --wait
  reelctl region drain eu --reason "power works"
  reelctl tenant set studio-7 --requests-per-second 5 --concurrent-jobs 20
  reelctl model register wan --version v2 --from s3://models/wan-v2 --key model.key
  reelctl token issue --keys ./keys --tenant studio-7 --subject alice
  reelctl certs issue --ca ca --region ap --role node --id gpu-1 --out gpu-1

The control plane is that of --endpoint and --token, else of REELCTL_ENDPOINT and
REELCTL_TOKEN, else the mesh of --mesh, of REELMESH_STATE_DIR, or of mesh-state/mesh.json
below this folder.

Exit codes: 0 done, 1 failed, 2 asked for something impossible, 130 interrupted."""

app = typer.Typer(
    name="reelctl",
    help=flow(HELP),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"reelctl {importlib.metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before a command."""


app.add_typer(node.app, name="node")
app.add_typer(gateway.app, name="gateway")
app.add_typer(region.app, name="region")
app.add_typer(tenant.app, name="tenant")
app.add_typer(token.app, name="token")
app.add_typer(model.app, name="model")
app.add_typer(certs.app, name="certs")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        app(arguments, prog_name="reelctl")
    except SystemExit as leave:
        # How the library ends a command: done, help, or a wrong option, which it told.
        return leave.code if isinstance(leave.code, int) else 0
    except StoppedError as error:
        return error.exit_code
    except CtlError as error:
        print_error(error)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough, such as `head`.
        sys.stderr.close()
    return 0
