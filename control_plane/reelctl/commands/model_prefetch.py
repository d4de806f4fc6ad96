"""``reelctl model prefetch``: weights on nodes' disks before anything asks for them."""

from __future__ import annotations

from typing import Annotated

import typer
from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import registry_pb2 as reg

from control_plane.reelctl.bars import is_drawn, share_bar
from control_plane.reelctl.errors import CtlError, UsageError
from control_plane.reelctl.model_tables import plain_order, prefetch_table, prefetch_words
from control_plane.reelctl.options import (
    Client,
    OutputOption,
    WaitOption,
    WaitTimeoutOption,
    connected,
)
from control_plane.reelctl.output import Format, note, print_record, print_table, say
from control_plane.reelctl.pinned import split_pin
from control_plane.reelctl.waiting import wait_until
from reelkit.help_text import flow

HELP = """Have nodes fetch a version while they serve another, and keep it.

Nodes fetch from one another first; one of a region at a time goes to the source. The order stands
for nodes that come later too, until --stop. Without a version: what was ordered, and how far it is.

\b
  reelctl model prefetch wan@v2
  reelctl model prefetch wan@v2 --region eu --region ap --wait
  reelctl model prefetch wan@v2 --node ap-node-0 --wait
  reelctl model prefetch
  reelctl model prefetch wan@v2 --stop"""
WAIT_S = 4 * 3_600.0


def add_to(app: typer.Typer) -> None:
    """Puts the command beside the others of ``reelctl model``."""
    app.command("prefetch", help=flow(HELP))(prefetch)


@connected
def prefetch(
    client: Client,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[NAME@VERSION]", help="The version.", show_default=False),
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option("--region", help="Only there; again for each.", show_default=False),
    ] = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option("--node", help="Only this one; again for each.", show_default=False),
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Take the order back: nodes may drop the version.")
    ] = False,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = WAIT_S,
    output: OutputOption = Format.TABLE,
) -> None:
    """Orders a prefetch, ends it, or shows what was ordered."""
    if model is None:
        if stop or wait or regions or nodes:
            raise UsageError("name the version", hint="NAME@VERSION")
        _print(client, client.prefetches(), output)
        return
    name, version = split_pin(model)
    if stop:
        client.unset_prefetch(name, version)
        say(f"{model} is not prefetched any more")
        return
    order = client.set_prefetch(
        reg.PrefetchOrder(name=name, version=version, regions=regions or (), node_ids=nodes or ())
    )
    if wait:
        _wait_for(client, order, timeout_s=wait_timeout)
    _print(client, [order], output)


def _wait_for(client: Client, order: reg.PrefetchOrder, *, timeout_s: float) -> None:
    with share_bar(f"{order.name}@{order.version}") as show:

        def look() -> tuple[bool, str]:
            nodes = _asked(order, client.nodes(with_status=True))
            if not nodes:
                raise CtlError("no node is asked: none of them is attached")
            states = [status_of(node, order) for node in nodes]
            words = prefetch_words(states)
            done = sum(each.done_bytes for each in states)
            show(done, sum(each.total_bytes for each in states), words)
            return all(each.state == reg.WEIGHTS_STATE_VERIFIED for each in states), words

        # Where a bar shows it, lines would only tear it apart.
        wait_until(look, timeout_s=timeout_s, on_news=(lambda _: None) if is_drawn() else note)


def _asked(order: reg.PrefetchOrder, nodes: list[op.NodeView]) -> list[op.NodeView]:
    """The nodes that an order is for."""
    return [
        node
        for node in nodes
        if (not order.regions or node.region in order.regions)
        and (not order.node_ids or node.node_id in order.node_ids)
    ]


def status_of(node: op.NodeView, order: reg.PrefetchOrder) -> reg.WeightsStatus:
    """How far a node is."""
    for each in node.status.weights:
        if (each.name, each.version) == (order.name, order.version):
            return each
    return reg.WeightsStatus()


def _print(client: Client, orders: list[reg.PrefetchOrder], output: Format) -> None:
    nodes = client.nodes(with_status=True, on_missing=note) if orders else []
    told = [
        (order, [(node, status_of(node, order)) for node in _asked(order, nodes)])
        for order in orders
    ]
    if output is not Format.TABLE:
        print_record([plain_order(order, found) for order, found in told], output)
    elif told:
        print_table(prefetch_table(told))
    else:
        note("No version is prefetched.")
