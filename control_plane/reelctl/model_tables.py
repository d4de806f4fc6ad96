"""What operators see of registered models. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import registry_pb2 as reg
from rich.table import Table
from rich.text import Text

from control_plane.reelctl.sources.document import File
from control_plane.reelctl.tables import plain_table
from control_plane.reelctl.words import age, plain, size, styled

_BAR_CELLS = 20


def state_word(model: reg.RegisteredModel) -> str:
    """Active or retired."""
    name = reg.RegistrationState.Name(model.state)
    return name.removeprefix("REGISTRATION_STATE_").lower()


def kind_word(model: reg.RegisteredModel) -> str:
    """Model, or adapter and of what."""
    return f"lora of {model.base}" if model.kind == reg.MODEL_KIND_LORA else "model"


def signers(model: reg.RegisteredModel) -> str:
    """Whose signatures it has."""
    return ", ".join(each.key_id for each in model.signatures) or "unsigned"


def models_table(models: Sequence[reg.RegisteredModel], *, now_s: float) -> Table:
    """Every version, a line each."""
    table = plain_table("MODEL", "KIND", "STATE", ">SIZE", ">FILES", "MANIFEST", "SIGNED BY", "AGE")
    table.add_column("BY", overflow="fold")
    for model in models:
        table.add_row(
            Text(f"{model.name}@{model.version}"),
            Text(kind_word(model)),
            styled(state_word(model)),
            size(model.size_bytes),
            str(model.file_count),
            model.manifest_sha256[:12],
            Text(", ".join(each.key_id[:12] for each in model.signatures) or "unsigned"),
            age(model.registered_at, now_s),
            Text(model.registered_by),
        )
    return table


def model_table(model: reg.RegisteredModel, *, now_s: float) -> Table:
    """One version, a fact a line."""
    table = plain_table("FACT", "VALUE")
    rows = [
        ("model", f"{model.name}@{model.version}"),
        ("kind", kind_word(model)),
        ("state", state_word(model) + (f": {model.reason}" if model.reason else "")),
        *(("source", source) for source in model.sources),
        ("size", f"{size(model.size_bytes)} in {model.file_count} files"),
        ("manifest", f"{model.manifest_sha256} ({size(model.manifest_size_bytes)})"),
        ("signed by", signers(model)),
        ("registered", f"{age(model.registered_at, now_s)} ago by {model.registered_by}"),
    ]
    if model.changed_by:
        rows.append(("changed", f"{age(model.changed_at, now_s)} ago by {model.changed_by}"))
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def files_table(files: Sequence[File]) -> Table:
    """The files of a version."""
    table = plain_table("FILE", ">SIZE", "SHA256")
    for file in files:
        table.add_row(Text(file.path), size(file.size_bytes), file.sha256)
    return table


def plain_model(model: reg.RegisteredModel, files: Sequence[File] = ()) -> dict[str, Any]:
    """A version as programs read it; its manifest is shown as the files that it lists."""
    shown = reg.RegisteredModel()
    shown.CopyFrom(model)
    shown.manifest = b""
    told = plain(shown)
    del told["manifest"]
    for field in ("size_bytes", "manifest_size_bytes", "revision"):
        # JSON's 64 bit numbers come as text.
        told[field] = int(told[field])
    if files:
        told["files"] = [
            {"path": each.path, "sha256": each.sha256, "size_bytes": each.size_bytes}
            for each in files
        ]
    return told


Progress = Sequence[tuple[op.NodeView, reg.WeightsStatus]]


def weights_word(status: reg.WeightsStatus) -> str:
    """How far a node is, in a word."""
    if status.state == reg.WEIGHTS_STATE_UNSPECIFIED:
        return "waiting"
    return reg.WeightsState.Name(status.state).removeprefix("WEIGHTS_STATE_").lower()


def prefetch_words(states: Sequence[reg.WeightsStatus]) -> str:
    """How far all of them are, in a line."""
    total = sum(each.total_bytes for each in states)
    done = sum(each.done_bytes for each in states)
    verified = sum(each.state == reg.WEIGHTS_STATE_VERIFIED for each in states)
    said = f"{verified} of {len(states)} nodes have it"
    if total and verified < len(states):
        said += f", {100 * done // total}%"
    reasons = sorted({each.reason for each in states if each.reason})
    return said + (f": {reasons[0]}" if reasons else "")


def prefetch_table(orders: Sequence[tuple[reg.PrefetchOrder, Progress]]) -> Table:
    """Each version on each node that should have it."""
    table = plain_table(
        "MODEL", "REGION", "NODE", "STATE", "PROGRESS", ">DONE", ">SOURCE", ">PEERS"
    )
    table.add_column("REASON", overflow="fold")
    for order, nodes in orders:
        model = f"{order.name}@{order.version}"
        if not nodes:
            table.add_row(Text(model), "-", "no node is attached", *[""] * 6)
        for node, status in nodes:
            table.add_row(
                Text(model),
                Text(node.region),
                Text(node.node_id),
                styled(weights_word(status)),
                _bar(status),
                size(status.done_bytes),
                size(status.origin_bytes),
                size(status.peer_bytes),
                Text(status.reason),
            )
    return table


def _bar(status: reg.WeightsStatus) -> Text:
    share = status.done_bytes / status.total_bytes if status.total_bytes else 0.0
    cells = int(share * _BAR_CELLS)
    return Text("█" * cells + "░" * (_BAR_CELLS - cells) + f" {share:4.0%}")


def plain_order(order: reg.PrefetchOrder, nodes: Progress) -> dict[str, Any]:
    """An order and how far it is, as programs read it."""
    told = plain(order)
    told["nodes"] = [
        {
            "node_id": node.node_id,
            "region": node.region,
            "state": weights_word(status),
            "done_bytes": status.done_bytes,
            "total_bytes": status.total_bytes,
            "origin_bytes": status.origin_bytes,
            "peer_bytes": status.peer_bytes,
            "reason": status.reason,
        }
        for node, status in nodes
    ]
    return told
