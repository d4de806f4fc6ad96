"""Values of a create request become fields of protobuf as they are, or are refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.edge_http.fields import (
    FIELDS,
    Kind,
    OutsideField,
    WrongValue,
    parse_value,
    unknown_field,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ANY_FIELD = st.sampled_from(sorted(FIELDS))


def assign(name, value):
    """Puts a parsed value where it goes; whatever the parser lets through must fit."""
    field = FIELDS[name]
    target = video_service_pb2.CreateOptions() if field.option else video_pb2.VideoSpec()
    setattr(target, field.target, value)
    return getattr(target, field.target)


@given(ANY_FIELD, JSON_VALUES)
def test_any_json_value_fits_unchanged_or_is_refused(name, value):
    try:
        parsed = parse_value(FIELDS[name], value, from_text=False)
    except WrongValue:
        return
    assert assign(name, parsed) == parsed
    if FIELDS[name].choices is not None:
        assert parsed == FIELDS[name].choices[value]
    elif FIELDS[name].kind is not Kind.SECONDS:
        assert parsed == value


@given(ANY_FIELD, st.text() | st.from_regex(r"\A-?[0-9.eE+_xnaif]{0,12}\Z"))
def test_any_form_text_fits_or_is_refused(name, text):
    try:
        parsed = parse_value(FIELDS[name], text, from_text=True)
    except WrongValue:
        return
    assert assign(name, parsed) == parsed
    if FIELDS[name].kind is not Kind.TEXT:
        # What is let through is what Python, too, reads the text as.
        assert parsed == float(text)
        assert math.isfinite(parsed)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_passes_as_json(value):
    assert parse_value(FIELDS["guidance_scale"], value, from_text=False) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", -1),
        ("width", 2**32),
        ("seed", 2**64),
        ("guidance_scale", math.inf),
        ("seconds", -math.inf),
    ],
)
def test_a_number_outside_every_rule_is_handed_on_with_its_value(name, value):
    with pytest.raises(OutsideField) as raised:
        parse_value(FIELDS[name], value, from_text=False)
    assert raised.value.value == value


@given(st.integers(0, 2**64 - 1))
def test_every_seed_passes_both_ways(value):
    assert parse_value(FIELDS["seed"], value, from_text=False) == value
    assert parse_value(FIELDS["seed"], str(value), from_text=True) == value


def test_a_number_with_more_digits_than_are_kept_is_refused_and_not_rounded():
    with pytest.raises(OutsideField, match="the nearest is 9007199254740992"):
        parse_value(FIELDS["deadline_s"], 9007199254740993, from_text=False)


@pytest.mark.parametrize("value", [16.0, 1e9, 9007199254740993.0, -0.0])
def test_a_whole_number_is_written_in_plain_digits(value):
    with pytest.raises(WrongValue, match="plain digits"):
        parse_value(FIELDS["num_frames"], value, from_text=False)


@pytest.mark.parametrize(("text", "value"), [("4", 4.0), ("2.5", 2.5), ("1e1", 10.0)])
def test_seconds_may_be_text_in_json(text, value):
    assert parse_value(FIELDS["seconds"], text, from_text=False) == value


def test_every_field_names_a_field_of_its_message():
    for field in FIELDS.values():
        message = video_service_pb2.CreateOptions if field.option else video_pb2.VideoSpec
        assert field.target in message.DESCRIPTOR.fields_by_name


def test_every_field_of_a_spec_can_be_sent():
    targets = {field.target for field in FIELDS.values() if not field.option}
    assert targets == set(video_pb2.VideoSpec.DESCRIPTOR.fields_by_name)


@given(st.text(max_size=200))
def test_an_unknown_name_is_told_short_and_printable(name):
    violation = unknown_field(name)
    assert violation.field.isprintable()
    assert len(violation.field) <= 67
    violation.field.encode()


def test_a_name_like_none_other_gets_the_whole_list():
    violation = unknown_field("zzz")
    assert violation.nearest == ()
    assert all(name in violation.message for name in FIELDS)
