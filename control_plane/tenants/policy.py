"""What a tenant's policy may say. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

from reelmesh.v1 import tenant_pb2

from control_plane.errors import InvalidRequestError

EVERYBODY: Final = "*"
"""The policy of tenants that have none of their own."""
MAX_NAME_CHARS: Final = 128
MAX_MODELS: Final = 32
MAX_MODEL_CHARS: Final = 128
MAX_SIDE_PX: Final = 16_384
MAX_WEIGHT: Final = 1_000.0
MIN_WEIGHT: Final = 0.001
# Slower than this nobody could tell it from nothing.
MIN_RATE: Final = 0.001
MAX_RATE: Final = 1_000_000.0
MAX_COUNT: Final = 1_000_000
MAX_GPU_SECONDS: Final = 1e9

_MODEL: Final = re.compile(r"[^\s@,/]+(@[^\s@,/]+)?")


def check_policy(policy: tenant_pb2.TenantPolicy) -> None:
    """Makes sure that every field of a policy means something.

    Raises:
        InvalidRequestError: Names the field, the rule and the nearest valid value.
    """
    check_name("tenant", policy.tenant)
    _check_numbers(policy)
    if policy.HasField("burst") and not policy.HasField("requests_per_second"):
        raise InvalidRequestError(
            "burst", "means nothing without requests_per_second; give both, or clear it"
        )
    if policy.HasField("max_size"):
        for side in ("width_px", "height_px"):
            value = getattr(policy.max_size, side)
            _check_range(f"max_size.{side}", value, 1, MAX_SIDE_PX)
    if len(policy.models) > MAX_MODELS:
        raise InvalidRequestError("models", f"must be at most {MAX_MODELS}")
    for model in policy.models:
        if len(model) > MAX_MODEL_CHARS or not _MODEL.fullmatch(model):
            raise InvalidRequestError(
                "models", f"{model[:MAX_MODEL_CHARS]!r} is neither name nor name@version"
            )
    _check_known("priority", policy.priority, tenant_pb2.Priority.values())
    _check_known("cache_sharing", policy.cache_sharing, tenant_pb2.CacheSharing.values())


def check_name(field: str, tenant: str) -> None:
    """Makes sure that a tenant's name is one that a token may carry.

    Raises:
        InvalidRequestError: It is empty, too long or not printable.
    """
    if not 1 <= len(tenant) <= MAX_NAME_CHARS or not tenant.isprintable():
        raise InvalidRequestError(field, f"must have 1 to {MAX_NAME_CHARS} printable characters")


def _check_numbers(policy: tenant_pb2.TenantPolicy) -> None:
    for name, low, high in (
        ("requests_per_second", MIN_RATE, MAX_RATE),
        ("burst", 1, MAX_COUNT),
        # Nothing at all is a limit too: it shuts a tenant out, or lets none of its videos wait.
        ("concurrent_jobs", 0, MAX_COUNT),
        ("queued_jobs", 0, MAX_COUNT),
        ("gpu_seconds_per_day", 0.0, MAX_GPU_SECONDS),
        ("max_steps", 1, MAX_COUNT),
        ("max_frames", 1, MAX_COUNT),
        ("weight", MIN_WEIGHT, MAX_WEIGHT),
        ("min_steps_percent", 1, 100),
    ):
        if policy.HasField(name):  # type: ignore[arg-type]  # any of its fields
            _check_range(name, getattr(policy, name), low, high)


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value):
        raise InvalidRequestError(field, f"must be {low:g} to {high:g}, not {value}")
    if not low <= value <= high:
        nearest = low if value < low else high
        raise InvalidRequestError(
            field, f"must be {low:g} to {high:g}, not {value:g}; the nearest is {nearest:g}"
        )


def _check_known(field: str, value: int, known: object) -> None:
    if value not in known:  # type: ignore[operator]  # a list of numbers
        raise InvalidRequestError(field, f"{value} means nothing to this control plane")
