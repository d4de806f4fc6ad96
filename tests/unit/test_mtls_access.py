"""Who may call what: deny by default, and a claim is one's own."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import control_plane_service_pb2 as cp

from reelkit.mtls.access import COMMON, Rule, false_claim, refusal
from reelkit.mtls.identity import Identity, Role

roles = st.sampled_from(Role)
names = st.sampled_from(["ap", "eu", "us"])
callers = st.builds(Identity, names, roles, st.sampled_from(["a", "b"]))
rules = st.builds(Rule, st.frozensets(roles), st.booleans())


@given(rules, callers, names)
def test_a_caller_passes_exactly_with_a_listed_role_and_region(rule, caller, region):
    allowed = caller.role in rule.roles and (rule.any_region or caller.region == region)
    assert (refusal(rule, caller, region=region) is None) == allowed


def test_a_refusal_says_what_is_needed():
    rule = Rule(frozenset({Role.GATEWAY, Role.CONTROL_PLANE}))
    node = Identity("ap", Role.NODE, "n1")
    assert refusal(rule, node, region="ap") == (
        "needs a certificate of role control-plane or gateway"
    )
    gateway = Identity("eu", Role.GATEWAY, "g1")
    assert refusal(rule, gateway, region="ap") == "needs a certificate of region ap"


@given(callers, st.sampled_from(["a", "b", "", "c"]))
def test_a_claim_must_be_the_callers_own_id(caller, claimed):
    rule = Rule(frozenset(Role), claim="hello.node_id")
    request = cp.AttachRequest(hello=cp.NodeHello(node_id=claimed))
    assert (false_claim(rule, caller, request) is None) == (claimed == caller.id)


def test_a_message_without_the_claim_claims_nothing():
    rule = Rule(frozenset(Role), claim="hello.node_id")
    caller = Identity("ap", Role.NODE, "n1")
    assert false_claim(rule, caller, cp.AttachRequest()) is None
    assert false_claim(Rule(frozenset(Role)), caller, cp.AttachRequest()) is None


def test_what_every_listener_serves_is_for_the_mesh_alone():
    for method, rule in COMMON.items():
        assert rule.roles
        if "Reflection" in method:
            assert rule == Rule(frozenset({Role.OPERATOR}))
