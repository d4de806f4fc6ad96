"""What a device's own figures say against it. Pure.

Memory is not judged: a device that serves is meant to be full, and one that has too
little fails its runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reelmesh.v1 import node_pb2

from control_plane.health.config import DeviceSettings

# NVIDIA's XID codes after which a device computes no more, or wrongly, until it is reset:
# double-bit ECC, row remapping that failed, NVLink, off the bus, uncontained ECC, GSP.
# Others, such as 13, 31 and 94, end an application and leave the device well.
FATAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})


def device_fault(
    status: node_pb2.DeviceStatus,
    *,
    ecc_before: int | None,
    was_hot: bool,
    rules: DeviceSettings,
) -> str:
    """Why the device is unfit, or "".

    Args:
        status: Its figures now.
        ecc_before: Its uncorrected ECC errors when the agent was first heard of: older
            ones were survived. None: not known then.
        was_hot: Whether it was too hot the last time; it then has to cool first.
        rules: The limits.
    """
    fatal = sorted(set(status.xid_errors) & FATAL_XIDS)
    if fatal:
        return f"XID error {', '.join(map(str, fatal))}: the device needs a reset"
    if status.HasField("ecc_errors") and ecc_before is not None and status.ecc_errors > ecc_before:
        return f"{status.ecc_errors - ecc_before} new uncorrected memory errors (ECC)"
    if is_hot(status, was_hot=was_hot, rules=rules):
        return f"{status.temperature_c:.0f} °C is too hot"
    return ""


def is_hot(status: node_pb2.DeviceStatus, *, was_hot: bool, rules: DeviceSettings) -> bool:
    """Whether it is too hot: from the limit on, until it has cooled well below."""
    if not status.HasField("temperature_c"):
        return False
    limit_c = rules.max_temperature_c - (rules.cool_by_c if was_hot else 0.0)
    return status.temperature_c >= limit_c


def node_fault(faults: Mapping[str, str], devices: Iterable[str]) -> str:
    """Why the node is unfit for its devices' sake: only where none of them is well."""
    known = list(devices)
    if not known or any(not faults.get(device) for device in known):
        return ""
    return "; ".join(f"{device}: {faults[device]}" for device in known)
