"""What operators see: one table for each kind of thing. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from reelmesh.v1 import access_pb2, node_pb2, region_pb2
from reelmesh.v1 import operator_service_pb2 as op
from rich.table import Table
from rich.text import Text

from control_plane.reelctl.words import age, gib, span, state_word, styled


def nodes_table(nodes: Sequence[op.NodeView], *, now_s: float, wide: bool = True) -> Table:
    """Nodes with their load; "-" where a node did not answer."""
    table = plain_table("NODE", "REGION", "STATE", "AGE", ">RUNS", ">WORK", "WORKERS", "MODEL")
    devices = wide and any(device_words(node.status) for node in nodes)
    if devices:
        table.add_column("DEVICES", no_wrap=True)
    table.add_column("REASON", overflow="fold")
    for node in nodes:
        status = node.status if node.HasField("status") else None
        table.add_row(
            Text(node.node_id),
            Text(node.region),
            _state(node),
            age(node.state_since, now_s),
            str(len(status.executions)) if status else "-",
            span(status.remaining_work_s) if status else "-",
            _workers(node, status),
            Text(", ".join(f"{model.name}@{model.version}" for model in node.models) or "-"),
            *([Text(device_words(node.status) or "-")] if devices else []),
            Text(node.reason),
        )
    return table


def events_table(events: Sequence[op.NodeEventRecord], *, now_s: float) -> Table:
    """A node's history, the newest last."""
    table = plain_table("AGE", "FROM", "TO", ">LASTED")
    table.add_column("REASON", overflow="fold")
    for index, event in enumerate(events):
        end_s = now_s if index + 1 == len(events) else _seconds(events[index + 1])
        # Before the first event there was nothing.
        before = getattr(event, "from") if index or getattr(event, "from") else None
        table.add_row(
            age(event.at, now_s),
            styled(state_word(before)) if before is not None else "-",
            styled(state_word(event.to)),
            span(max(end_s - _seconds(event), 0.0)),
            Text(event.reason),
        )
    return table


def gateways_table(gateways: Sequence[op.GatewayView]) -> Table:
    """Gateways with their addresses."""
    table = plain_table("GATEWAY", "REGION", "GRPC", "HTTP", "PEER")
    for gateway in gateways:
        table.add_row(
            *(
                Text(text or "-")
                for text in (
                    gateway.gateway_id,
                    gateway.region,
                    gateway.grpc_address,
                    gateway.http_address,
                    gateway.peer_address,
                )
            )
        )
    return table


def regions_table(regions: Sequence[region_pb2.RegionView], *, now_s: float) -> Table:
    """Regions as their last summary and the operators have them."""
    table = plain_table("REGION", "STATE", "AGE", ">READY", ">WORKERS", ">GATEWAYS", "MODELS")
    table.add_column("POLICY", overflow="fold")
    for region in regions:
        known = region.HasField("summary")
        summary = region.summary
        models = sorted({f"{model.name}@{model.version}" for model in summary.models})
        table.add_row(
            Text(region.region),
            styled(region_state(region)),
            age(summary.changed_at, now_s) if known else "-",
            f"{summary.ready_nodes}/{summary.known_nodes}" if known else "-",
            str(summary.ready_workers) if known else "-",
            str(len(summary.gateways)) if known else "-",
            Text(", ".join(models) or "-"),
            Text(_policy(region.policy, now_s)),
        )
    return table


def revocations_table(revocations: Sequence[access_pb2.TokenRevocation], *, now_s: float) -> Table:
    """Tokens that hold no more."""
    table = plain_table("ID", "AGE", "ISSUER", "WHICH", "BY")
    table.add_column("REASON", overflow="fold")
    for each in revocations:
        which = f"jti {each.jti}" if each.jti else f"of {each.subject}"
        table.add_row(
            Text(each.id),
            age(each.revoked_at, now_s),
            Text(each.issuer),
            Text(which),
            Text(each.revoked_by),
            Text(each.reason),
        )
    return table


def region_state(region: region_pb2.RegionView) -> str:
    """One word for a region."""
    if region.policy.draining:
        return "draining"
    if not region.HasField("summary"):
        return "unknown"
    return "serving" if region.summary.ready_nodes else "not serving"


def device_words(status: node_pb2.NodeStatus) -> str:
    """A node's devices, those that say more than their name."""
    return "; ".join(filter(None, (_device(device) for device in status.devices)))


def _device(device: node_pb2.DeviceStatus) -> str:
    parts = []
    if device.memory_total_bytes:
        used, total = gib(device.memory_used_bytes), gib(device.memory_total_bytes)
        parts.append(f"{used}/{total} GiB")
    if device.HasField("temperature_c"):
        parts.append(f"{device.temperature_c:.0f} °C")
    if device.ecc_errors:
        parts.append(f"{device.ecc_errors} ECC")
    if device.xid_errors:
        parts.append("XID " + ",".join(map(str, device.xid_errors)))
    return f"{device.device} {' '.join(parts)}" if parts else ""


def _state(node: op.NodeView) -> Text:
    """The state, and what is wanted where the node is not there yet."""
    word = state_word(node.state)
    wanted = "draining" if node.draining else "cordoned" if node.cordoned else ""
    text = styled(word)
    if wanted and wanted != word:
        text.append(f" → {wanted}", style="yellow")
    return text


def _workers(node: op.NodeView, status: node_pb2.NodeStatus | None) -> str:
    if status is None:
        return str(node.worker_count)
    dead = sum(worker.state == node_pb2.WORKER_STATE_DEAD for worker in status.workers)
    return f"{len(status.workers) - dead}/{len(status.workers)}"


def _policy(policy: region_pb2.RegionPolicy, now_s: float) -> str:
    if not policy.HasField("changed_at"):
        return "-"
    word = "drained" if policy.draining else "activated"
    by = f" by {policy.changed_by}" if policy.changed_by else ""
    reason = f": {policy.reason}" if policy.reason else ""
    return f"{word}{by} {age(policy.changed_at, now_s)} ago{reason}"


def _seconds(event: op.NodeEventRecord) -> float:
    return event.at.ToNanoseconds() / 1e9


def plain_table(*columns: str) -> Table:
    """A table without lines, as other tools of the kind print; ">" aligns to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=True)
    return table
