"""``reelctl node``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from reelmesh.v1 import node_pb2
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.reelctl.options import (
    Client,
    OnlyRegionOption,
    OutputOption,
    WaitOption,
    WaitTimeoutOption,
    connected,
)
from control_plane.reelctl.output import Format, is_wide, note, print_all, say
from control_plane.reelctl.tables import events_table, nodes_table
from control_plane.reelctl.waiting import SYSTEM_CLOCK, wait_until
from control_plane.reelctl.watching import watch
from control_plane.reelctl.words import state_word
from reelkit.help_text import flow

LIST_HELP = """List the nodes, with what they do now.

RUNS are the videos a node holds, WORK is the time until its first worker is free. Nodes
whose lease ran out are lost and stay listed for a day. Wide terminals show devices too.

\b
  reelctl node list
  reelctl node list --watch
  reelctl node list -o json | jq -r '.[] | select(.state=="lost") | .node_id'"""
EVENTS_HELP = """Show how a node's state changed, and why; the newest last.

\b
  reelctl node events ap-node-0
  reelctl node events ap-node-0 -o yaml"""
CORDON_HELP = """Give a node no new work; what it holds goes on.

It stays so, through restarts too, until `reelctl node uncordon`.

\b
  reelctl node cordon ap-node-0
  reelctl node cordon ap-node-0 --wait"""
UNCORDON_HELP = """Give a node work again: ends a cordon and a drain.

\b
  reelctl node uncordon ap-node-0 --wait"""
DRAIN_HELP = """Empty a node: no new work, and it is free when its last video is done.

It stays so, through restarts too, until `reelctl node uncordon`.

\b
  reelctl node drain ap-node-0 --wait && ssh ap-node-0 sudo reboot"""

app = typer.Typer(help="The nodes of the regions.", no_args_is_help=True)

NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="The node's id.", show_default=False)
]
WAIT_S = 60.0
DRAIN_WAIT_S = 1_800.0

DRAINING = node_pb2.NODE_STATE_DRAINING
CORDONED = node_pb2.NODE_STATE_CORDONED
READY = node_pb2.NODE_STATE_READY
_AWAY = (node_pb2.NODE_STATE_LOST, node_pb2.NODE_STATE_UNSPECIFIED)


@app.command("list", help=flow(LIST_HELP))
@connected
def list_nodes(
    client: Client,
    output: OutputOption = Format.TABLE,
    watch_on: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it anew until Ctrl-C.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    region: OnlyRegionOption = None,
) -> None:
    """Lists nodes."""
    del region  # Chose the target.
    if watch_on:
        watch(
            lambda: client.nodes(with_status=True),
            lambda nodes: nodes_table(nodes, now_s=SYSTEM_CLOCK.time(), wide=is_wide()),
            fmt=output,
            every_s=interval,
        )
        return
    # A script must not take half of the nodes for all of them.
    on_missing = note if output is Format.TABLE else None
    nodes = client.nodes(with_status=True, on_missing=on_missing)
    print_all(
        nodes,
        output,
        lambda: nodes_table(nodes, now_s=SYSTEM_CLOCK.time(), wide=is_wide()),
        empty="No node is attached.",
    )


@app.command("events", help=flow(EVENTS_HELP))
@connected
def events(client: Client, node: NodeArgument, output: OutputOption = Format.TABLE) -> None:
    """Shows a node's history."""
    found = client.node_events(node)
    print_all(
        found,
        output,
        lambda: events_table(found, now_s=SYSTEM_CLOCK.time()),
        empty=f"Nothing has been written of {node} yet.",
    )


@app.command("cordon", help=flow(CORDON_HELP))
@connected
def cordon(
    client: Client,
    node: NodeArgument,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = WAIT_S,
) -> None:
    """Cordons a node."""
    client.set_node_policy(node, cordoned=True, draining=False)
    if wait:
        _wait(client, node, lambda view: view.state == CORDONED, timeout_s=wait_timeout)
    say(f"node {node} is cordoned" if wait else f"node {node} will take no new work")


@app.command("uncordon", help=flow(UNCORDON_HELP))
@connected
def uncordon(
    client: Client,
    node: NodeArgument,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = WAIT_S,
) -> None:
    """Takes a cordon or a drain back."""
    client.set_node_policy(node, cordoned=False, draining=False)
    if wait:
        _wait(client, node, lambda view: view.state == READY, timeout_s=wait_timeout)
    say(f"node {node} is ready" if wait else f"node {node} may take work again")


@app.command("drain", help=flow(DRAIN_HELP))
@connected
def drain(
    client: Client,
    node: NodeArgument,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = DRAIN_WAIT_S,
) -> None:
    """Drains a node."""
    client.set_node_policy(node, cordoned=False, draining=True)
    if wait:
        _wait(client, node, _is_empty, timeout_s=wait_timeout)
    say(f"node {node} is empty" if wait else f"node {node} is being emptied")


def _is_empty(view: op.NodeView) -> bool:
    """Whether it is known to hold nothing: it drains and says so, or it is gone."""
    if view.state in _AWAY:
        return True
    return view.state == DRAINING and view.HasField("status") and not view.status.executions


def _wait(
    client: Client, node: str, so: Callable[[op.NodeView], bool], *, timeout_s: float
) -> None:
    def look() -> tuple[bool, str]:
        view = next((v for v in client.nodes(with_status=True) if v.node_id == node), None)
        if view is None:
            # It said goodbye: there is nothing left to drain or cordon.
            return so(op.NodeView(state=node_pb2.NODE_STATE_LOST)), f"{node} has left"
        return so(view), f"{node} is {state_word(view.state)}{_runs(view)}"

    wait_until(look, timeout_s=timeout_s, on_news=note)


def _runs(view: op.NodeView) -> str:
    count = len(view.status.executions)
    if not view.HasField("status") or not count:
        return ""
    return f" and holds {count} video{'s' if count > 1 else ''}"
