"""Requests against a model's rules. Pure: a spec and what is served in, a choice out.

Everything that breaks a rule is listed at once, each with the field as the client wrote
it, the rule and the nearest valid values. A number that the message cannot hold, such as
-1 frames, is held against the same rules. Explicit width, height and num_frames are
taken as they are or refused; only ``resolution`` and ``seconds`` resolve, and the
resolved spec echoes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reelmesh.v1 import model_pb2, video_pb2

from gateway.application import ALL_FIT
from gateway.errors import FieldViolation, InvalidRequest
from gateway.validation.fields import (
    check_number,
    check_text,
    model_by_name,
    nearest_counts,
    nearest_names,
    nearest_size_names,
    nearest_sizes,
    nearest_widths,
    number,
    quoted,
    size_text,
)

MAX_PROMPT_CHARS = 2_000
# What JSON readers and torch's generators both take.
MAX_SEED = 2**63 - 1
QUALITIES = ("", "auto")

# For a manifest that names no range of its own.
_STEPS = (1, 1_000)
_GUIDANCE = (0.0, 100.0)
_FLOW_SHIFT = (0.01, 100.0)
_ANY_COUNT = (0, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class Catalog:
    """What can be asked for: every known model version and the default model's name."""

    models: tuple[model_pb2.ModelInfo, ...]
    """In order of preference among the versions of one name, best first."""
    default_model: str


@dataclass(slots=True)
class _Check:
    """One request on its way through the rules."""

    spec: video_pb2.VideoSpec
    unfit: Mapping[str, int]
    violations: list[FieldViolation] = field(default_factory=list)

    def asks(self, name: str) -> bool:
        return name in self.unfit or self.spec.HasField(name)  # type: ignore[arg-type] # any field

    def whole(self, name: str) -> int:
        """A whole number that is asked for."""
        value: int = self.unfit[name] if name in self.unfit else getattr(self.spec, name)
        return value

    def refuse(self, name: str, message: str, nearest: Sequence[str] = ()) -> None:
        self.violations.append(FieldViolation(name, message, tuple(nearest)))


def resolve(
    spec: video_pb2.VideoSpec,
    catalog: Catalog,
    *,
    drawn_seed: int,
    violations: Sequence[FieldViolation] = (),
    unfit: Mapping[str, int] = ALL_FIT,
) -> video_pb2.ResolvedSpec:
    """The spec with every choice made.

    Args:
        spec: What the client asks for.
        catalog: What is served.
        drawn_seed: Taken where the spec names no seed.
        violations: Found elsewhere in the same request; told together with those here.
        unfit: By the spec's field, whole numbers that it cannot hold: negative or too large.

    Raises:
        InvalidRequest: Lists every field that breaks a rule.
    """
    check = _Check(spec, unfit, list(violations))
    info = _model(check, catalog)
    limit = min(info.max_prompt_chars or MAX_PROMPT_CHARS, MAX_PROMPT_CHARS)
    check_text(check.refuse, "prompt", spec.prompt, limit=limit, required=True)
    check_text(check.refuse, "negative_prompt", spec.negative_prompt, limit=limit, required=False)
    if spec.quality not in QUALITIES:
        check.refuse("quality", "must be auto, or left out", ("auto",))
    size = _size(check, info)
    num_frames = _num_frames(check, info)
    _fps(check, info)
    _numbers(check, info)
    if check.violations:
        raise InvalidRequest(tuple(check.violations))
    return _resolved(spec, info, size=size, num_frames=num_frames, drawn_seed=drawn_seed)


def _model(check: _Check, catalog: Catalog) -> model_pb2.ModelInfo:
    """The model asked for; an empty one, without rules of its own, where it is unknown."""
    wanted = check.spec.model or catalog.default_model
    info = model_by_name(wanted, catalog.models)
    if info is not None:
        return info
    names = [f"{m.name}@{m.version}" if "@" in wanted else m.name for m in catalog.models]
    check.refuse(
        "model",
        f"{quoted(wanted)} is not served here; write a model's name, or name@version",
        nearest_names(wanted, names),
    )
    return model_pb2.ModelInfo()


def _size(check: _Check, info: model_pb2.ModelInfo) -> model_pb2.VideoSize:
    resolution = check.spec.resolution
    explicit = check.asks("width") or check.asks("height")
    if resolution and explicit:
        check.refuse(
            "resolution", "excludes width and height; give either the name or both numbers"
        )
    elif resolution:
        return _named_size(check, info)
    elif explicit:
        return _explicit_size(check, info)
    return info.defaults.size


def _explicit_size(check: _Check, info: model_pb2.ModelInfo) -> model_pb2.VideoSize:
    given = [name for name in ("width", "height") if check.asks(name)]
    if len(given) == 1:
        _one_side(check, info, given[0])
        return info.defaults.size
    width, height = check.whole("width"), check.whole("height")
    for size in info.sizes:
        if (size.width_px, size.height_px) == (width, height):
            return size
    if info.sizes or check.unfit:
        known_width = any(size.width_px == width for size in info.sizes)
        check.refuse(
            "height" if known_width else "width",
            f"{number(width)}x{number(height)} is not a size of {info.name or 'any model'} "
            "(sizes are never rounded)",
            [size_text(size) for size in nearest_sizes(width, height, info.sizes)],
        )
    return info.defaults.size


def _one_side(check: _Check, info: model_pb2.ModelInfo, given: str) -> None:
    if given in check.unfit:
        sides = [s.width_px if given == "width" else s.height_px for s in info.sizes]
        check.refuse(
            given,
            f"{number(check.unfit[given])} is not the {given} of any size of the model",
            nearest_widths(check.unfit[given], sides),
        )
    missing = "height" if given == "width" else "width"
    check.refuse(missing, f"must be given too, since {given} is; or give neither")


def _named_size(check: _Check, info: model_pb2.ModelInfo) -> model_pb2.VideoSize:
    wanted = check.spec.resolution
    for alias in info.size_aliases:
        if alias.alias == wanted:
            return alias.size
    for size in info.sizes:
        if size_text(size) == wanted:
            return size
    if info.sizes:
        check.refuse(
            "resolution",
            f"{quoted(wanted)} is neither a size of {info.name} nor one of its named sizes",
            nearest_size_names(wanted, info),
        )
    return info.defaults.size


def _num_frames(check: _Check, info: model_pb2.ModelInfo) -> int:
    spec, rule = check.spec, info.frames
    if spec.HasField("seconds"):
        if check.asks("num_frames"):
            check.refuse("seconds", "excludes num_frames; give one of the two")
            return info.defaults.num_frames
        return _frames_of_seconds(check, info)
    if not check.asks("num_frames"):
        return info.defaults.num_frames
    count, step = check.whole("num_frames"), max(rule.step, 1)
    if not info.HasField("frames"):
        check_number(check.refuse, "num_frames", count, *_ANY_COUNT)
    elif not (rule.min <= count <= rule.max and (count - rule.min) % step == 0):
        check.refuse(
            "num_frames",
            f"{number(count)} is not allowed: it must be "
            + (
                f"{rule.min}"
                if rule.min == rule.max
                else f"{rule.min} to {rule.max} in steps of {step}"
            ),
            [str(near) for near in nearest_counts(count, rule)],
        )
    return count


def _frames_of_seconds(check: _Check, info: model_pb2.ModelInfo) -> int:
    wanted, rule = check.spec.seconds, info.seconds
    if not info.HasField("seconds") or not info.HasField("frames") or info.fps <= 0:
        if info.name:
            check.refuse("seconds", "the model has no rule for seconds; give num_frames instead")
        elif not math.isfinite(wanted):
            check.refuse("seconds", "must be a finite number")
        return info.defaults.num_frames
    if not check_number(check.refuse, "seconds", wanted, rule.min_s, rule.max_s):
        return info.defaults.num_frames
    return nearest_counts(wanted * info.fps + 1, info.frames)[0]


def _fps(check: _Check, info: model_pb2.ModelInfo) -> None:
    spec = check.spec
    if not spec.HasField("fps"):
        return
    if info.name and not math.isclose(spec.fps, info.fps, rel_tol=0, abs_tol=1e-6):
        check.refuse(
            "fps", f"{number(spec.fps)} is not the rate of {info.name}", [number(info.fps)]
        )
    elif not math.isfinite(spec.fps):
        check.refuse("fps", "must be a finite number")


def _numbers(check: _Check, info: model_pb2.ModelInfo) -> None:
    spec = check.spec
    if check.asks("steps"):
        low, high = (info.steps.min, info.steps.max) if info.HasField("steps") else _STEPS
        check_number(check.refuse, "steps", check.whole("steps"), low, high)
    if spec.HasField("guidance_scale"):
        rule = info.guidance_scale
        low_g, high_g = (rule.min, rule.max) if info.HasField("guidance_scale") else _GUIDANCE
        check_number(check.refuse, "guidance_scale", spec.guidance_scale, low_g, high_g)
    if spec.HasField("flow_shift"):
        rule = info.flow_shift
        low_f, high_f = (rule.min, rule.max) if info.HasField("flow_shift") else _FLOW_SHIFT
        check_number(check.refuse, "flow_shift", spec.flow_shift, low_f, high_f)
    if check.asks("seed"):
        check_number(check.refuse, "seed", check.whole("seed"), 0, MAX_SEED)


def _resolved(
    spec: video_pb2.VideoSpec,
    info: model_pb2.ModelInfo,
    *,
    size: model_pb2.VideoSize,
    num_frames: int,
    drawn_seed: int,
) -> video_pb2.ResolvedSpec:
    defaults = info.defaults
    guided, shifted = spec.HasField("guidance_scale"), spec.HasField("flow_shift")
    return video_pb2.ResolvedSpec(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt
        if spec.HasField("negative_prompt")
        else defaults.negative_prompt,
        model=info.name,
        model_version=info.version,
        width=size.width_px,
        height=size.height_px,
        num_frames=num_frames,
        fps=info.fps,
        steps=spec.steps if spec.HasField("steps") else defaults.steps,
        guidance_scale=spec.guidance_scale if guided else defaults.guidance_scale,
        flow_shift=spec.flow_shift if shifted else defaults.flow_shift,
        seed=spec.seed if spec.HasField("seed") else drawn_seed,
        requested_resolution=spec.resolution,
        requested_seconds=spec.seconds if spec.HasField("seconds") else None,
        quality=spec.quality,
    )
