"""Identities: exactly spiffe://reelmesh/<region>/<role>/<id>, one in a certificate."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reelkit.mtls.identity import (
    Identity,
    IdentityError,
    Role,
    identity_of,
    parse_identity,
    server_name,
)

regions = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
ids = st.from_regex(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True)
identities = st.builds(Identity, regions, st.sampled_from(Role), ids)
# Texts that are near the truth: its own characters, and what decoders and case folders mistake.
odd = st.text(st.sampled_from("abz019-._/:%?#@ \n\tAZ\0\u212a\uff0fspiffe"), min_size=1, max_size=6)


@given(identities)
def test_an_identity_is_what_its_uri_says(identity):
    assert parse_identity(identity.uri) == identity
    assert identity_of([identity.uri]) == identity


@given(identities, odd, st.data())
def test_a_uri_with_anything_more_or_else_is_parsed_as_what_it_then_says(identity, extra, data):
    place = data.draw(st.integers(0, len(identity.uri)))
    changed = identity.uri[:place] + extra + identity.uri[place:]
    try:
        found = parse_identity(changed)
    except IdentityError:
        return
    # No two texts are one identity.
    assert found.uri == changed


@given(st.text(max_size=60))
def test_no_other_text_is_an_identity(text):
    assume(not text.startswith("spiffe://reelmesh/"))
    with pytest.raises(IdentityError):
        parse_identity(text)


@given(st.lists(identities, max_size=4))
def test_a_certificate_with_several_or_no_uris_names_nobody(named):
    assume(len(named) != 1)
    with pytest.raises(IdentityError, match="exactly one"):
        identity_of([each.uri for each in named])


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://reelmesh/ap/gateway",
        "spiffe://reelmesh/ap/gateway/",
        "spiffe://reelmesh/ap/gateway/g1/",
        "spiffe://reelmesh/ap/gateway/g1/x",
        "spiffe://reelmesh/ap/Gateway/g1",
        "spiffe://reelmesh/AP/gateway/g1",
        "spiffe://reelmesh/ap/admin/g1",
        "spiffe://reelmesh/ap/gateway/g1\n",
        "spiffe://reelmesh/ap/gateway/..",
        "spiffe://reelmesh/ap/gateway/g%31",
        "spiffe://reelmesh//gateway/g1",
        "spiffe://reelmesh:1/ap/gateway/g1",
        "spiffe://u@reelmesh/ap/gateway/g1",
        "spiffe://reelmesh.evil/ap/gateway/g1",
        "https://reelmesh/ap/gateway/g1",
        "spiffe://reelmesh/ap/gateway/g1?x=1",
        "spiffe://reelmesh/ap/gateway/" + "g" * 64,
    ],
)
def test_near_misses_are_refused(uri):
    with pytest.raises(IdentityError):
        parse_identity(uri)


@given(identities, identities)
def test_names_that_clients_demand_tell_roles_and_regions_apart(one, other):
    demanded = server_name(one.role, region=one.region)
    assert (demanded in other.server_names) == (
        (one.role, one.region) == (other.role, other.region)
    )


@given(st.text(max_size=70), st.text(max_size=70))
def test_no_identity_is_made_that_no_certificate_can_name(region, id_):
    try:
        made = Identity(region, Role.NODE, id_)
    except IdentityError:
        return
    assert parse_identity(made.uri) == made
    assert all(re.fullmatch(r"[a-z0-9._-]{1,253}", name) for name in made.server_names)
