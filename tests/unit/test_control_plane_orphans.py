from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import job_service_pb2 as pb

from control_plane.jobs.orphans import MAX_TOLD, LiveJobs, heir_of, orphans_of
from control_plane.jobs.records import encode_live
from control_plane.keys import Keys
from control_plane.store.mirror import ChangeKind, MirrorChange
from control_plane.store.port import KeyValue

KEYS = Keys(prefix="/p", region="ap")
IDS = [f"ap-{number:026d}" for number in range(300)]
NAMES = st.sets(st.sampled_from([f"g{number}" for number in range(8)]), min_size=1)


def gateway(name: str, incarnation: str = "1") -> cp.GatewayHello:
    return cp.GatewayHello(gateway_id=name, incarnation=incarnation)


def put(job_id: str, owner: str, incarnation: str = "1", epoch: int = 1) -> KeyValue:
    record = pb.JobRecord(
        tenant="t", owner_gateway=owner, owner_incarnation=incarnation, epoch=epoch
    )
    return KeyValue(KEYS.live_job("t", job_id), encode_live(record), 1, 1, 1, 0)


@pytest.fixture
def live():
    return LiveJobs(on_change=lambda: None)


def apply(live, *upserts, deleted=(), kind=ChangeKind.DELTA):
    live.apply(MirrorChange(kind, 1, upserts, tuple(KEYS.live_job("t", each) for each in deleted)))


def told(live, *gateways):
    return [(orphan.job_id, orphan.owner_gateway) for orphan in orphans_of(live.owners, gateways)]


@given(st.sampled_from(IDS), NAMES)
def test_every_replica_names_the_same_heir(job_id, names):
    assert heir_of(job_id, sorted(names)) == heir_of(job_id, sorted(names, reverse=True))
    assert heir_of(job_id, names) in names


@given(st.sampled_from(IDS), NAMES, st.just("new"))
def test_a_gateway_that_comes_takes_only_what_becomes_its_own(job_id, names, new):
    before, after = heir_of(job_id, names), heir_of(job_id, {*names, new})
    assert after in (before, new)


def test_the_heirs_share_the_work():
    shares = Counter(heir_of(job_id, ["g0", "g1", "g2"]) for job_id in IDS)
    assert min(shares.values()) > len(IDS) / 3 * 0.6
    assert heir_of(IDS[0], []) == ""


def test_jobs_of_a_gateway_that_is_gone_or_was_started_again_are_orphans(live):
    apply(live, put("b", "g0"), put("a", "g0"), put("c", "g1"), kind=ChangeKind.SNAPSHOT)
    assert told(live, gateway("g0"), gateway("g1")) == []
    assert told(live, gateway("g1")) == [("a", "g0"), ("b", "g0")]
    assert told(live, gateway("g0", "2"), gateway("g1")) == [("a", "g0"), ("b", "g0")]
    assert len(told(live)) == 3


def test_a_claim_and_an_end_take_a_job_off_the_list(live):
    apply(live, put("a", "g0"), put("b", "g0"))
    apply(live, put("a", "g1", epoch=2))
    assert told(live, gateway("g1")) == [("b", "g0")]
    apply(live, deleted=["b"])
    assert told(live, gateway("g1")) == []
    assert len(live) == 1
    apply(live, put("z", "g9"), kind=ChangeKind.SNAPSHOT)
    assert told(live) == [("z", "g9")]


def test_the_list_is_bounded_and_begins_with_the_oldest(live):
    apply(live, *(put(job_id, "gone") for job_id in reversed(IDS)))
    found = told(live, gateway("g0"))
    assert [job_id for job_id, _ in found] == IDS[:MAX_TOLD]
