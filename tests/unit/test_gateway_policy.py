"""What a tenant may not ask for is refused with the nearest that it may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import model_pb2, tenant_pb2, video_pb2

from gateway.errors import InvalidRequest
from gateway.validation.policy import check_policy, resolve_within
from gateway.validation.request import Catalog, resolve


def size(width, height):
    return model_pb2.VideoSize(width_px=width, height_px=height)


SIZES = [size(96, 64), size(64, 96), size(192, 128), size(1280, 704)]
MODEL = model_pb2.ModelInfo(
    name="wan",
    version="v1",
    sizes=SIZES,
    frames=model_pb2.FrameRule(min=1, max=121, step=4),
    fps=24,
    seconds=model_pb2.SecondsRule(min_s=0.0, max_s=5.0),
    steps=model_pb2.IntRange(min=1, max=100),
    defaults=model_pb2.GenerationDefaults(size=SIZES[2], num_frames=81, steps=50),
)
OTHER = model_pb2.ModelInfo(name="fast", version="v2", sizes=SIZES, fps=24)
CATALOG = Catalog((MODEL, OTHER), "wan")

limits = st.none() | st.integers(1, 200)
policies = st.builds(
    tenant_pb2.TenantPolicy,
    max_size=st.none() | st.builds(size, st.integers(1, 1500), st.integers(1, 1500)),
    max_steps=limits,
    max_frames=limits,
    models=st.lists(st.sampled_from(["wan", "wan@v1", "wan@v9", "fast", "fast@v2", "x"])),
)
sizes = st.none() | st.sampled_from(SIZES)


@st.composite
def specs(draw):
    spec = video_pb2.VideoSpec(prompt="a red ball", model=draw(st.sampled_from(["", "wan@v1"])))
    chosen = draw(sizes)
    if chosen is not None:
        if draw(st.booleans()):
            spec.width, spec.height = chosen.width_px, chosen.height_px
        else:
            spec.resolution = f"{chosen.width_px}x{chosen.height_px}"
    frames = draw(st.none() | st.integers(0, 30))
    if frames is not None:
        if draw(st.booleans()):
            spec.num_frames = 1 + 4 * frames
        else:
            spec.seconds = 4 * frames / 24
    steps = draw(st.none() | st.integers(1, 100))
    if steps is not None:
        spec.steps = steps
    return spec


def within(resolved, policy):
    area = resolved.width * resolved.height
    names = {resolved.model, f"{resolved.model}@{resolved.model_version}"}
    return (
        (
            not policy.HasField("max_size")
            or area <= policy.max_size.width_px * policy.max_size.height_px
        )
        and (not policy.HasField("max_steps") or resolved.steps <= policy.max_steps)
        and (not policy.HasField("max_frames") or resolved.num_frames <= policy.max_frames)
        and (not policy.models or bool(names & set(policy.models)))
    )


@given(specs(), policies)
def test_what_passes_is_within_every_limit_and_what_is_within_passes(spec, policy):
    resolved = resolve(spec, CATALOG, drawn_seed=1)
    assert (not check_policy(resolved, spec, CATALOG.models, policy)) == within(resolved, policy)


def corrected(spec, violations):
    """The request with the first nearest value of each violation in its field."""
    made = video_pb2.VideoSpec()
    made.CopyFrom(spec)
    for violation in violations:
        if not violation.nearest:
            return None
        best = violation.nearest[0]
        if violation.field in ("width", "resolution"):
            made.ClearField("width")
            made.ClearField("height")
            made.resolution = best
        elif violation.field == "seconds":
            made.seconds = float(best)
        elif violation.field == "model":
            made.model = best
        else:
            setattr(made, violation.field, int(best))
    return made


@given(specs(), policies)
def test_the_nearest_values_are_allowed(spec, policy):
    resolved = resolve(spec, CATALOG, drawn_seed=1)
    violations = check_policy(resolved, spec, CATALOG.models, policy)
    if any(violation.field == "model" for violation in violations):
        # Another model has rules of its own.
        return
    fixed = corrected(spec, violations)
    if fixed is not None:
        assert within(resolve(fixed, CATALOG, drawn_seed=1), policy)


@pytest.mark.parametrize(
    ("spec", "policy", "field", "nearest"),
    [
        ({"steps": 60}, {"max_steps": 40}, "steps", ("40",)),
        ({}, {"max_steps": 40}, "steps", ("40",)),
        ({"num_frames": 81}, {"max_frames": 50}, "num_frames", ("49",)),
        ({"seconds": 5.0}, {"max_frames": 50}, "seconds", ("2",)),
        (
            {"resolution": "1280x704"},
            {"max_size": size(192, 128)},
            "resolution",
            ("192x128", "96x64", "64x96"),
        ),
        (
            {"width": 1280, "height": 704},
            {"max_size": size(200, 200)},
            "width",
            ("192x128", "96x64", "64x96"),
        ),
        ({}, {"max_size": size(10, 10)}, "resolution", ()),
        ({}, {"models": ["fast"]}, "model", ("fast@v2",)),
        ({}, {"models": ["wan@v2"]}, "model", ()),
    ],
)
def test_field_and_nearest_are_named(spec, policy, field, nearest):
    with pytest.raises(InvalidRequest) as raised:
        resolve_within(
            tenant_pb2.TenantPolicy(**policy),
            video_pb2.VideoSpec(prompt="x", **spec),
            CATALOG,
            drawn_seed=1,
        )
    (violation,) = raised.value.violations
    assert (violation.field, violation.nearest) == (field, nearest)
    assert "tenant" in violation.message


def test_a_default_that_passes_a_limit_is_refused_by_name():
    policy = tenant_pb2.TenantPolicy(max_steps=40)
    with pytest.raises(InvalidRequest, match="50, the model's default, is more than 40 steps"):
        resolve_within(policy, video_pb2.VideoSpec(prompt="x"), CATALOG, drawn_seed=1)
