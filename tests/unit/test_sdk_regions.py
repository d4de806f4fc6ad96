from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import fleet_service_pb2

from wan_t2v_sdk.errors import ConnectionLostError
from wan_t2v_sdk.regions import Measurement, rank, region_records

STATES = ("serving", "unknown", "draining", "not_serving")


def measured(address, region, state="serving", round_trip_s=0.01, **more):
    return Measurement(
        address=address, region=region, state=state, round_trip_s=round_trip_s, **more
    )


def test_the_nearest_that_serves_comes_first():
    near_but_idle = measured("a", "ap", "not_serving", 0.001)
    far = measured("b", "us", round_trip_s=0.2)
    near = measured("c", "eu", round_trip_s=0.02)
    gone = measured("d", "sa", round_trip_s=None)
    ranked = rank([near_but_idle, far, near, gone], region="auto")
    assert [each.address for each in ranked] == ["c", "b", "a"]


def test_a_named_region_leaves_the_others_out():
    ranked = rank([measured("a", "ap"), measured("b", "eu")], region="eu")
    assert [each.address for each in ranked] == ["b"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(STATES),
            st.one_of(st.none(), st.floats(0, 10)),
            st.sampled_from(["ap", "eu", None]),
        ),
        max_size=8,
    )
)
def test_no_gateway_that_did_not_answer_is_ranked_and_none_is_lost(rows):
    measurements = [
        measured(str(n), region, state, round_trip_s)
        for n, (state, round_trip_s, region) in enumerate(rows)
    ]
    ranked = rank(measurements, region="auto")
    assert {each.address for each in ranked} == {
        each.address for each in measurements if each.round_trip_s is not None
    }
    serving = [each.round_trip_s for each in ranked if each.state == "serving"]
    assert serving == sorted(serving)
    assert [each.state for each in ranked[: len(serving)]] == ["serving"] * len(serving)


def test_regions_are_told_once_each_with_what_is_known():
    told = fleet_service_pb2.Region(
        name="us", state=fleet_service_pb2.REGION_STATE_DRAINING, predicted_wait_s=3
    )
    records = region_records(
        [
            measured("a", "ap", round_trip_s=0.2),
            measured("b", "ap", round_trip_s=0.1, known=(told,)),
            measured("c", "eu", round_trip_s=None, error=ConnectionLostError("refused")),
        ]
    )
    assert [(each.name, each.state, each.endpoint) for each in records] == [
        ("ap", "serving", "b"),
        ("us", "draining", None),
        ("eu", "unknown", "c"),
    ]
    assert records[2].error == "refused"
