"""Which gateways there are and where the others were last."""

from reelmesh.v1 import control_plane_service_pb2 as cp

from gateway.peers import gateways as module
from gateway.peers.gateways import Gateways


def hello(name, life="1", address=None):
    address = f"{name}:{life}" if address is None else address
    return cp.GatewayHello(gateway_id=name, incarnation=life, peer_address=address)


def snapshot(*hellos):
    return cp.WatchFleetResponse(snapshot=cp.FleetSnapshot(gateways=hellos))


def delta(*hellos, removed=()):
    return cp.WatchFleetResponse(
        delta=cp.FleetDelta(upserted_gateways=hellos, removed_gateway_ids=removed)
    )


def test_nothing_is_known_before_a_control_plane_spoke():
    gateways = Gateways()
    assert not gateways.heard
    assert gateways.address_of("a", "1") is None
    gateways.take(cp.WatchFleetResponse(heartbeat=cp.FleetHeartbeat()))
    assert not gateways.heard
    gateways.take(snapshot())
    assert gateways.heard


def test_one_is_asked_in_the_life_that_owns():
    gateways = Gateways()
    gateways.take(snapshot(hello("a"), hello("b")))
    assert gateways.address_of("a", "1") == "a:1"
    assert gateways.address_of("a", "0") is None
    gateways.take(delta(hello("a", "2")))
    assert gateways.address_of("a", "2") == "a:2"
    # That life is over: nobody answers for it.
    assert gateways.address_of("a", "1") is None


def test_one_whose_lease_ran_out_is_asked_where_it_was_last():
    gateways = Gateways()
    gateways.take(snapshot(hello("a"), hello("b"), hello("c")))
    gateways.take(delta(removed=["a"]))
    gateways.take(snapshot(hello("c")))
    for name in ("a", "b"):
        assert gateways.address_of(name, "1") == f"{name}:1"
    gateways.take(delta(hello("a", "2")))
    assert gateways.address_of("a", "1") is None
    gateways.take(delta(removed=["nobody"]))


def test_one_without_an_address_cannot_be_asked():
    gateways = Gateways()
    gateways.take(snapshot(hello("a", address="")))
    assert gateways.address_of("a", "1") is None


def test_those_that_are_gone_are_remembered_up_to_a_bound():
    gateways = Gateways()
    names = [f"g{number}" for number in range(module._REMEMBERED + 1)]
    gateways.take(snapshot(*map(hello, names)))
    for name in names:
        gateways.take(delta(removed=[name]))
    assert gateways.address_of(names[0], "1") is None
    assert gateways.address_of(names[1], "1") == f"{names[1]}:1"
    assert len(gateways._gone) == module._REMEMBERED
