"""The options that every command has, and the client they make."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from control_plane.reelctl.client import OperatorClient, connect
from control_plane.reelctl.errors import StoppedError
from control_plane.reelctl.output import Format
from control_plane.reelctl.target import DEFAULT_TIMEOUT_S, find_target

_PANEL = "Whom to ask"

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "endpoint": (
        Annotated[
            str | None,
            typer.Option(
                metavar="HOST:PORT",
                help="operator.listen of a control plane; several as region=host:port,region=… "
                "(env: REELCTL_ENDPOINT)",
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "token": (
        Annotated[
            str | None,
            typer.Option(
                help="An operator's token; others on this host can read it here, and not in "
                "the environment. (env: REELCTL_TOKEN)",
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "mesh": (
        Annotated[
            Path | None,
            typer.Option(
                help="mesh.json of `reelmesh up`, or its folder. (env: REELMESH_STATE_DIR)",
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "ca": (
        Annotated[
            Path | None,
            typer.Option(
                help="PEM file of the authority that signed the endpoint's certificate; the "
                "system's by default. (env: REELCTL_CA)",
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "cert": (
        Annotated[
            Path | None,
            typer.Option(
                help="PEM file of an operator's certificate, where the listener wants one "
                "(operator.client_ca_file). (env: REELCTL_CERT)",
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "cert_key": (
        Annotated[
            Path | None,
            typer.Option(
                help="PEM file of its key. (env: REELCTL_CERT_KEY)",
                show_default=False,
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "timeout": (
        Annotated[
            float,
            typer.Option(min=0.1, help="Seconds a call may take.", rich_help_panel=_PANEL),
        ],
        DEFAULT_TIMEOUT_S,
    ),
}

OutputOption = Annotated[Format, typer.Option("-o", "--output", help="How to write the answer.")]
OnlyRegionOption = Annotated[
    str | None, typer.Option("--region", help="Only this region.", show_default=False)
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Return when it is so.")]
WaitTimeoutOption = Annotated[
    float, typer.Option("--wait-timeout", min=0.1, help="Seconds to wait for it, at most.")
]


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a client, with the options that make one instead.

    A parameter ``region`` of the command chooses among the target's regions too.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    own = list(inspect.signature(command).parameters.values())[1:]
    kept = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        target = find_target(
            timeout_s=given.pop("timeout"),
            region=given.get("region"),
            **{name: given.pop(name) for name in _OPTIONS if name != "timeout"},
        )
        try:
            with connect(target) as client:
                command(client, **given)
        except KeyboardInterrupt:
            raise StoppedError("interrupted") from None

    parameters = [*kept, *added]
    vars(wrapper)["__signature__"] = inspect.Signature(
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapper


Client = OperatorClient
