"""Tenants' limits as people write and read them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from reelmesh.v1 import model_pb2, tenant_pb2

from control_plane.reelctl.errors import UsageError

PRIORITIES: Final[Mapping[str, int]] = {
    "interactive": tenant_pb2.PRIORITY_INTERACTIVE,
    "batch": tenant_pb2.PRIORITY_BATCH,
}
SHARINGS: Final[Mapping[str, int]] = {
    "tenant": tenant_pb2.CACHE_SHARING_TENANT,
    "shared": tenant_pb2.CACHE_SHARING_SHARED,
    "off": tenant_pb2.CACHE_SHARING_OFF,
}
FIELDS: Final = (
    "requests_per_second",
    "burst",
    "concurrent_jobs",
    "queued_jobs",
    "gpu_seconds_per_day",
    "max_size",
    "max_steps",
    "max_frames",
    "models",
    "priority",
    "weight",
    "min_steps_percent",
    "cache_sharing",
)
"""In the order in which they are shown."""

_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def parse_size(text: str) -> model_pb2.VideoSize:
    """A size of ``1280x704``.

    Raises:
        UsageError: It is none.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"--max-size: {text!r} is no size", hint="write WIDTHxHEIGHT: 1280x704")
    return model_pb2.VideoSize(width_px=int(found[1]), height_px=int(found[2]))


def clear_fields(names: Sequence[str]) -> list[str]:
    """Fields of names such as ``queued-jobs``.

    Raises:
        UsageError: One is none.
    """
    fields = []
    for name in names:
        field = name.strip().removeprefix("--").replace("-", "_")
        field = {"model": "models"}.get(field, field)
        if field not in FIELDS:
            known = ", ".join(each.replace("_", "-") for each in FIELDS)
            raise UsageError(f"--clear: there is no limit {name!r}", hint=f"known are: {known}")
        fields.append(field)
    return fields


def changed(
    policy: tenant_pb2.TenantPolicy, given: Mapping[str, Any], cleared: Sequence[str]
) -> tenant_pb2.TenantPolicy:
    """The policy with what was given in place of what stood, and without what was cleared."""
    made = tenant_pb2.TenantPolicy()
    made.CopyFrom(policy)
    for field in cleared:
        made.ClearField(field)  # type: ignore[arg-type]  # one of FIELDS
    for field, value in given.items():
        if field == "models":
            made.ClearField("models")
            made.models.extend(value)
        elif field == "max_size":
            made.max_size.CopyFrom(value)
        else:
            setattr(made, field, value)
    return made


def plain_policy(policy: tenant_pb2.TenantPolicy) -> dict[str, Any]:
    """A policy for programs; what is not limited is not there."""
    told: dict[str, Any] = {"tenant": policy.tenant}
    told |= {name: value for name, value in limits_of(policy).items() if value is not None}
    told["revision"] = policy.revision
    document = MessageToDict(policy, preserving_proto_field_name=True)
    told |= {key: document[key] for key in ("updated_by", "updated_at") if key in document}
    return told


def limits_of(policy: tenant_pb2.TenantPolicy) -> dict[str, Any]:
    """Each limit's value by its name, None where there is none."""
    told: dict[str, Any] = {}
    for field in FIELDS:
        value: Any = getattr(policy, field)
        if field == "models":
            told[field] = list(value) or None
        elif field in ("priority", "cache_sharing"):
            names = PRIORITIES if field == "priority" else SHARINGS
            told[field] = next((name for name, number in names.items() if number == value), None)
        elif not policy.HasField(field):  # type: ignore[arg-type]  # one of FIELDS
            told[field] = None
        elif field == "max_size":
            told[field] = f"{value.width_px}x{value.height_px}"
        else:
            told[field] = value
    return told


def limit_words(value: Any) -> str:
    """A limit's value for a table."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
