"""Validation, records, keys and errors of the control plane: pure rules."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import model_pb2, node_pb2

from control_plane import errors
from control_plane.errors import BOUNDARY, ControlPlaneError, InvalidRequestError, to_status
from control_plane.health.config import HealthSettings
from control_plane.health.track import NodeTrack
from control_plane.keys import Keys
from control_plane.records import encode_gateway, node_record, worth_writing
from control_plane.store.etcd.convert import prefix_end
from control_plane.store.etcd.history import History
from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb
from control_plane.validation import (
    check_address,
    check_gateway_hello,
    check_id,
    check_node_hello,
    check_node_status,
)

KEYS = Keys(prefix="/reelmesh", region="ap")


# Addresses and ids


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "10.0.0.7:65535", "[::1]:7070", "node-7.ap.example:7070", "n:80"]
)
def test_addresses_that_gateways_can_reach_are_taken(address):
    check_address("hello.address", address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "host:port"),
        ("node", "host:port"),
        (":7070", "host:port"),
        ("node:", "port"),
        ("node:0", "1 to 65535"),
        ("node:65536", "1 to 65535"),
        ("node:-1", "1 to 65535"),
        ("node:٣", "1 to 65535"),
        ("0.0.0.0:7070", "gateways can reach"),
        ("[::]:7070", "gateways can reach"),
        ("::1:7070", "brackets"),
        ("http://node:7070", "neither a name nor"),
        ("no de:7070", "neither a name nor"),
        ("a" * 300 + ":1", "neither a name nor"),
    ],
)
def test_other_addresses_are_refused_with_the_reason(address, said):
    with pytest.raises(InvalidRequestError, match=said) as caught:
        check_address("hello.address", address)
    assert caught.value.field == "hello.address"
    assert len(str(caught.value)) < 250


@given(st.text(max_size=80))
def test_an_id_that_is_taken_is_one_part_of_a_key(text):
    try:
        check_id("hello.node_id", text)
    except InvalidRequestError:
        return
    assert text.isascii()
    assert "/" not in text
    assert 1 <= len(text) <= 63
    assert KEYS.node(text).removeprefix(KEYS.nodes) == text


# Hellos and reports


def hello(**fields) -> cp.NodeHello:
    defaults = {
        "node_id": "n0",
        "region": "ap",
        "address": "127.0.0.1:7070",
        "incarnation": "life",
    }
    return cp.NodeHello(**{**defaults, **fields})


def info(**fields) -> model_pb2.ModelInfo:
    defaults = {"name": "demo", "version": "v1", "manifest_sha256": "0" * 64}
    return model_pb2.ModelInfo(**{**defaults, **fields})


def test_a_plain_hello_is_taken():
    check_node_hello(hello(), region="ap")
    check_node_hello(hello(models=[info()]), region="ap")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("hello.node_id", {"node_id": "Node 0"}),
        ("hello.region", {"region": ""}),
        ("hello.incarnation", {"incarnation": "x" * 65}),
        ("hello.incarnation", {"incarnation": "\x00"}),
        ("hello.models", {"models": [info(manifest_sha256=f"{n:064x}") for n in range(33)]}),
        ("hello.models[0].name", {"models": [info(name="")]}),
        ("hello.models[0].manifest_sha256", {"models": [info(manifest_sha256="F" * 64)]}),
        ("hello.models[1].manifest_sha256", {"models": [info(), info()]}),
        ("hello.models[0]", {"models": [info(description="x" * 17_000)]}),
        ("hello.status.state", {"status": node_pb2.NodeStatus(state=99)}),
        ("hello.status.incarnation", {"status": node_pb2.NodeStatus(incarnation="other")}),
        (
            "hello.status.units_per_second",
            {"status": node_pb2.NodeStatus(units_per_second=float("inf"))},
        ),
    ],
)
def test_a_hello_is_refused_by_its_first_wrong_field(field, change):
    with pytest.raises(InvalidRequestError) as caught:
        check_node_hello(hello(**change), region="ap")
    assert caught.value.field == field


def test_a_report_has_bounds():
    many = node_pb2.NodeStatus(workers=[node_pb2.WorkerStatus()] * 257)
    with pytest.raises(InvalidRequestError) as caught:
        check_node_status(many, hello=hello())
    assert caught.value.field == "status.workers"


def test_a_gateways_hello_names_two_addresses():
    good = cp.GatewayHello(
        gateway_id="g0",
        region="ap",
        grpc_address="127.0.0.1:1",
        http_address="127.0.0.1:2",
        incarnation="life",
        lease_id=7,
    )
    check_gateway_hello(good, region="ap")
    assert cp.GatewayHello.FromString(encode_gateway(good)).lease_id == 0
    good.http_address = "nowhere"
    with pytest.raises(InvalidRequestError) as caught:
        check_gateway_hello(good, region="ap")
    assert caught.value.field == "hello.http_address"


# Records


def record(**fields) -> cp.NodeRecord:
    return cp.NodeRecord(**{"node_id": "n0", "state": 4, "units_per_second": 10.0, **fields})


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (record(), False),
        (record(units_per_second=11.0), False),
        (record(units_per_second=20.0), True),
        (record(units_per_second=0.0), True),
        (record(state=5), True),
        (record(reason="why"), True),
        (record(worker_count=2), True),
        (record(models=[node_pb2.ModelVersion(name="m")]), True),
    ],
)
def test_what_the_store_should_hear_of(new, expected):
    assert worth_writing(record(), new) is expected
    assert worth_writing(new, record()) is expected


def test_a_node_that_says_nothing_is_starting():
    status = node_pb2.NodeStatus()
    track = NodeTrack(rules=HealthSettings(), lease_ttl_s=10, status=status, now_s=0)
    record = node_record(hello(), status, judged=track.now)
    assert record.state == node_pb2.NODE_STATE_STARTING


# Errors


def all_errors(base: type[ControlPlaneError] = ControlPlaneError) -> set[type[ControlPlaneError]]:
    found = {base}
    for sub in base.__subclasses__():
        found |= all_errors(sub)
    return found


def made(cls: type[ControlPlaneError]) -> ControlPlaneError:
    samples = {
        errors.InvalidRequestError: ("field", "rule"),
        errors.CompactedError: (7,),
        errors.LeaseNotFoundError: (7,),
    }
    if cls is errors.RecordTooLargeError:
        return errors.RecordTooLargeError("field", size_bytes=2, limit_bytes=1)
    return cls(*samples.get(cls, ("inside: /etc/passwd",)))


def test_every_error_has_a_place_in_the_table_and_a_code_of_its_own():
    assert set(BOUNDARY) == all_errors()
    codes = [cls.code for cls in all_errors()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("cls", sorted(all_errors(), key=lambda cls: cls.__name__))
def test_a_client_reads_code_and_advice_and_nothing_of_the_inside(cls):
    status = to_status(made(cls))
    assert status.code != grpc.StatusCode.OK.value[0]
    if issubclass(cls, errors.StoreError) or cls is ControlPlaneError:
        assert "/etc" not in status.message
    details = {detail.type_url.rpartition(".")[2]: detail for detail in status.details}
    reason = error_details_pb2.ErrorInfo()
    details["ErrorInfo"].Unpack(reason)
    assert reason.reason == cls.code
    assert ("RetryInfo" in details) is cls.retryable
    assert ("BadRequest" in details) is issubclass(cls, InvalidRequestError)


# etcd's fine print


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"a\xfe", b"a\xff")],
)
def test_the_end_of_a_prefix(prefix, end):
    assert prefix_end(prefix) == end


@given(st.binary(min_size=1, max_size=5), st.binary(max_size=5))
def test_exactly_what_starts_with_the_prefix_lies_before_its_end(prefix, key):
    end = prefix_end(prefix)
    inside = prefix <= key and (end == b"\0" or key < end)
    assert inside is key.startswith(prefix)


def header(cluster_id=1, revision=10, raft_term=2) -> pb.ResponseHeader:
    return pb.ResponseHeader(cluster_id=cluster_id, revision=revision, raft_term=raft_term)


@pytest.mark.parametrize(
    "other", [header(cluster_id=2), header(revision=9), header(raft_term=1, revision=11)]
)
def test_a_history_that_goes_backwards_is_a_restore(other):
    history = History()
    history.check(history.mark, header())
    before = history.mark
    with pytest.raises(errors.StoreRestoredError):
        history.check(before, other)
    assert history.generation == 1
    # From then on the new history is the known one.
    history.check(history.mark, other)
    assert history.generation == 1


def test_answers_that_overtake_one_another_are_no_restore():
    history = History()
    slow = history.mark
    history.check(history.mark, header(revision=20))
    history.check(slow, header(revision=10))
    assert history.mark.revision == 20


def test_a_call_that_was_under_way_during_a_restore_is_told():
    history = History()
    history.check(history.mark, header(revision=20))
    under_way = history.mark
    with pytest.raises(errors.StoreRestoredError):
        history.check(history.mark, header(revision=5))
    with pytest.raises(errors.StoreRestoredError):
        history.check(under_way, header(revision=21))
