"""A job's priority: as asked for, and never above its tenant's."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import tenant_pb2

from gateway.priority import (
    BATCH,
    INTERACTIVE,
    NAMES,
    ORDER,
    UNSET,
    check_priority,
    granted,
    priority_of,
    rank,
)

ANY = st.integers(0, 7)


def policy(priority=UNSET):
    return tenant_pb2.TenantPolicy(priority=priority)


def test_unset_means_the_tenants_and_that_is_interactive_where_nobody_said():
    assert granted(UNSET, policy()) == INTERACTIVE
    assert granted(UNSET, policy(BATCH)) == BATCH
    assert check_priority(UNSET, policy(BATCH)) == []


def test_above_the_tenants_is_refused_by_name():
    [violation] = check_priority(INTERACTIVE, policy(BATCH))
    assert violation.field == "priority"
    assert violation.nearest == ("batch",)
    assert "interactive is above" in violation.message


@given(asked=ANY, allowed=ANY)
def test_what_is_granted_is_never_above_the_tenants(asked, allowed):
    got, of = granted(asked, policy(allowed)), policy(allowed)
    assert got in ORDER
    assert rank(got) >= rank(priority_of(of))
    violations = check_priority(asked, of)
    if not violations:
        assert got == (asked or priority_of(of))
    for violation in violations:
        assert all(name in NAMES.values() for name in violation.nearest)
