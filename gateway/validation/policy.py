"""A resolved request against its tenant's policy. Pure.

What a tenant may not do is refused with the nearest thing that it may, never lowered in
silence: a default of the model that passes a limit is refused too, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reelmesh.v1 import model_pb2, tenant_pb2, video_pb2

from gateway.application import ALL_FIT
from gateway.errors import FieldViolation, InvalidRequest
from gateway.validation.fields import model_by_name, nearest_counts, number, size_text
from gateway.validation.request import Catalog, resolve

_NEAREST = 3


def resolve_within(
    policy: tenant_pb2.TenantPolicy,
    spec: video_pb2.VideoSpec,
    catalog: Catalog,
    *,
    drawn_seed: int,
    violations: Sequence[FieldViolation] = (),
    unfit: Mapping[str, int] = ALL_FIT,
) -> video_pb2.ResolvedSpec:
    """As :func:`gateway.validation.request.resolve`, for a tenant with that policy."""
    resolved = resolve(spec, catalog, drawn_seed=drawn_seed, violations=violations, unfit=unfit)
    passed = check_policy(resolved, spec, catalog.models, policy)
    if passed:
        raise InvalidRequest(tuple(passed))
    return resolved


def check_policy(
    resolved: video_pb2.ResolvedSpec,
    spec: video_pb2.VideoSpec,
    models: Sequence[model_pb2.ModelInfo],
    policy: tenant_pb2.TenantPolicy,
) -> list[FieldViolation]:
    """Every limit of the policy that the request passes, with the nearest allowed values.

    Args:
        resolved: What would be drawn.
        spec: What was asked for, whose fields are named.
        models: Those that are served.
        policy: The tenant's.
    """
    found: list[FieldViolation] = []
    if policy.models and not _allows(policy, resolved.model, resolved.model_version):
        rule = f"{resolved.model}@{resolved.model_version} is none of this tenant's models"
        allowed = [f"{m.name}@{m.version}" for m in models if _allows(policy, m.name, m.version)]
        found.append(FieldViolation("model", rule, tuple(allowed[:_NEAREST])))
    info = model_by_name(f"{resolved.model}@{resolved.model_version}", models)
    info = info or model_pb2.ModelInfo()
    if policy.HasField("max_size"):
        found += _size(resolved, spec, info, policy.max_size)
    if policy.HasField("max_frames") and resolved.num_frames > policy.max_frames:
        found.append(_frames(resolved, spec, info, policy.max_frames))
    if policy.HasField("max_steps") and resolved.steps > policy.max_steps:
        at_least = info.steps.min if info.HasField("steps") else 1
        nearest = (number(policy.max_steps),) if policy.max_steps >= at_least else ()
        rule = _over(resolved.steps, spec.HasField("steps"), f"{policy.max_steps} steps")
        found.append(FieldViolation("steps", rule, nearest))
    return found


def _allows(policy: tenant_pb2.TenantPolicy, name: str, version: str) -> bool:
    return name in policy.models or f"{name}@{version}" in policy.models


def _size(
    resolved: video_pb2.ResolvedSpec,
    spec: video_pb2.VideoSpec,
    info: model_pb2.ModelInfo,
    most: model_pb2.VideoSize,
) -> list[FieldViolation]:
    area = resolved.width * resolved.height
    if area <= _area(most):
        return []
    fit = sorted((s for s in info.sizes if _area(s) <= _area(most)), key=_area, reverse=True)
    given = bool(spec.resolution) or spec.HasField("width")
    field = "width" if spec.HasField("width") else "resolution"
    limit = f"the {_area(most)} pixels of {size_text(most)}"
    rule = _over(f"{resolved.width}x{resolved.height}", given, limit)
    return [FieldViolation(field, rule, tuple(size_text(size) for size in fit[:_NEAREST]))]


def _frames(
    resolved: video_pb2.ResolvedSpec,
    spec: video_pb2.VideoSpec,
    info: model_pb2.ModelInfo,
    most: int,
) -> FieldViolation:
    given = spec.HasField("num_frames") or spec.HasField("seconds")
    rule = _over(resolved.num_frames, given, f"{most} frames")
    counts = [most]
    if info.HasField("frames"):
        counts = [count for count in nearest_counts(most, info.frames) if count <= most]
    if not spec.HasField("seconds"):
        return FieldViolation("num_frames", rule, tuple(map(str, counts)))
    rule = f"{number(spec.seconds)} s are {rule}"
    lengths = [number(round((count - 1) / info.fps, 3)) for count in counts if info.fps > 0]
    return FieldViolation("seconds", rule, tuple(lengths))


def _over(value: object, given: bool, limit: str) -> str:
    whose = "" if given else ", the model's default,"
    return f"{value}{whose} is more than {limit} that this tenant may ask for"


def _area(size: model_pb2.VideoSize) -> int:
    return size.width_px * size.height_px
