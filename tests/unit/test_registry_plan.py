"""Who is told to have which weights, and from whom: what holds of every plan."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import registry_pb2 as reg

from control_plane.registry.plan import MAX_PEERS, plan

DIGEST = "d" * 64
MODEL = reg.RegisteredModel(name="m", version="v1", manifest_sha256=DIGEST)
STATES = [
    None,
    reg.WEIGHTS_STATE_WAITING,
    reg.WEIGHTS_STATE_FETCHING,
    reg.WEIGHTS_STATE_VERIFIED,
    reg.WEIGHTS_STATE_FAILED,
]
HAVE = reg.WEIGHTS_STATE_VERIFIED


def node(number, state):
    record = cp.NodeRecord(node_id=f"n{number}", address=f"10.0.0.{number}:1")
    if state is not None:
        record.weights.add(manifest_sha256=DIGEST, state=state)
    return record


fleets = st.lists(st.sampled_from(STATES), max_size=20).map(
    lambda states: [node(number, state) for number, state in enumerate(states)]
)


def state_of(record):
    return record.weights[0].state if record.weights else None


def planned(fleet, *, region="ap", **order):
    wanted = [(reg.PrefetchOrder(name="m", version="v1", **order), MODEL)]
    return plan(wanted, fleet, region=region)


@given(fleets)
def test_everybody_is_told_and_one_of_those_who_lack_it_goes_to_the_source(fleet):
    told = planned(fleet)
    assert told.keys() == {record.node_id for record in fleet}
    lacking = [record for record in fleet if state_of(record) != HAVE]
    going = [record for record in fleet if told[record.node_id][0].may_use_origin]
    assert len(going) == min(1, len(lacking))
    if going and state_of(going[0]) == reg.WEIGHTS_STATE_FAILED:
        assert all(state_of(record) == reg.WEIGHTS_STATE_FAILED for record in lacking)


@given(fleets)
def test_peers_are_others_that_have_it_or_are_getting_it(fleet):
    by_address = {record.address: record for record in fleet}
    for node_id, (entry,) in planned(fleet).items():
        record = next(each for each in fleet if each.node_id == node_id)
        assert record.address not in entry.peers
        assert len(set(entry.peers)) == len(entry.peers) <= MAX_PEERS
        states = [state_of(by_address[address]) for address in entry.peers]
        assert not {None, reg.WEIGHTS_STATE_FAILED} & set(states)
        # Those that have it whole come first.
        assert states == sorted(states, key=lambda state: state != HAVE)
        whole = sum(state_of(each) == HAVE for each in fleet)
        if state_of(record) == HAVE:
            assert not entry.peers
        else:
            assert states.count(HAVE) == min(whole, MAX_PEERS)


@given(fleets)
def test_the_order_of_the_fleet_does_not_matter(fleet):
    assert planned(fleet) == planned(fleet[::-1])


@given(fleets)
def test_turn_by_turn_everybody_gets_it(fleet):
    """Also where nobody can fetch from anybody: the source alone serves all in the end."""
    for _ in range(len(fleet) + 1):
        told = planned(fleet)
        for record in fleet:
            if told[record.node_id][0].may_use_origin:
                del record.weights[:]
                record.weights.add(manifest_sha256=DIGEST, state=HAVE)
    assert all(state_of(record) == HAVE for record in fleet)


@given(fleets, st.sets(st.integers(0, 20)))
def test_an_order_for_some_nodes_is_for_those(fleet, numbers):
    chosen = {f"n{number}" for number in numbers}
    told = planned(fleet, node_ids=sorted(chosen))
    everybody = {record.node_id for record in fleet}
    assert told.keys() == (everybody & chosen if chosen else everybody)


def test_an_order_for_another_region_is_none():
    assert planned([node(0, None)], regions=["eu"]) == {}
    assert planned([node(0, None)], regions=["eu", "ap"]).keys() == {"n0"}


def test_different_versions_go_by_different_nodes_to_their_sources():
    fleet = [node(number, None) for number in range(16)]
    going = set()
    for number in range(32):
        model = reg.RegisteredModel(
            name="m", version=f"v{number}", manifest_sha256=f"{number:064x}"
        )
        told = plan([(reg.PrefetchOrder(), model)], fleet, region="ap")
        going |= {node_id for node_id, (entry,) in told.items() if entry.may_use_origin}
    assert len(going) > 8
