"""Fair shares: by weight, whatever the sizes, and idleness earns nothing."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from reelkit.fairness import FairShares, in_turn

FLOWS = "abcd"
WEIGHTS = st.fixed_dictionaries({flow: st.sampled_from([0.5, 1.0, 3.0]) for flow in FLOWS})
SIZES = st.lists(st.floats(0.1, 100), min_size=4, max_size=80)


def serve_all(shares, backlog, weights, pieces):
    """Serves so many pieces, the least tag first; yields (flow, size)."""
    for _ in range(pieces):
        flow = min(backlog, key=lambda each: (shares.tag(each), each))
        size = next(backlog[flow])
        shares.serve(flow, size / weights[flow])
        yield flow, size


@given(weights=WEIGHTS, sizes=SIZES, pieces=st.integers(1, 200))
def test_between_flows_that_always_have_work_shares_differ_by_a_piece_of_each(
    weights, sizes, pieces
):
    backlog = {
        flow: itertools.cycle(sizes[number:] + sizes[:number]) for number, flow in enumerate(FLOWS)
    }
    got = dict.fromkeys(FLOWS, 0.0)
    for flow, size in serve_all(FairShares(), backlog, weights, pieces):
        got[flow] += size / weights[flow]
        for one, other in itertools.combinations(FLOWS, 2):
            bound = max(sizes) / weights[one] + max(sizes) / weights[other]
            assert abs(got[one] - got[other]) <= bound * (1 + 1e-9)


@given(weights=WEIGHTS, sizes=SIZES, before=st.integers(0, 60), after=st.integers(1, 60))
def test_a_flow_that_comes_back_has_no_credit_for_its_idle_time(weights, sizes, before, after):
    shares = FairShares()
    busy = {flow: itertools.cycle(sizes) for flow in FLOWS[:2]}
    for _ in serve_all(shares, busy, weights, before):
        pass
    got = dict.fromkeys(FLOWS, 0.0)
    for flow, size in serve_all(shares, {**busy, "d": itertools.cycle(sizes)}, weights, after):
        got[flow] += size / weights[flow]
    bound = max(sizes) / weights["a"] + max(sizes) / weights["d"]
    assert got["d"] - got["a"] <= bound * (1 + 1e-9)


@given(
    queues=st.dictionaries(st.sampled_from(FLOWS), SIZES, min_size=1),
    weights=WEIGHTS,
)
def test_the_order_told_is_the_order_served(queues, weights):
    numbers = itertools.count()
    flows = {
        flow: [(next(numbers), flow, size) for size in sizes] for flow, sizes in queues.items()
    }
    shares = FairShares()

    def told():
        return list(
            in_turn(
                flows,
                tag=shares.tag,
                cost=lambda piece: piece[2] / weights[piece[1]],
                tie=lambda piece: piece[0],
            )
        )

    expected = told()
    assert sorted(expected) == sorted(piece for row in flows.values() for piece in row)
    served = []
    while any(flows.values()):
        piece = told()[0]
        served.append(piece)
        flows[piece[1]].remove(piece)
        shares.serve(piece[1], piece[2] / weights[piece[1]])
    # Each flow's own order holds, and what was told first came first.
    assert served[0] == expected[0]
    assert [p[1] for p in served] == [p[1] for p in expected]


def test_what_is_remembered_is_bounded_and_those_far_ahead_are_kept():
    shares = FairShares(max_flows=8)
    shares.serve("greedy", 1e9)
    for number in range(1_000):
        shares.serve(number, 1.0)
        assert len(shares) <= 9
    assert shares.lead("greedy") > 1e8


def test_after_all_is_forgotten_all_are_equal():
    shares = FairShares()
    shares.serve("a", 5.0)
    assert shares.lead("a") == 5.0
    assert shares.lead("b") == 0.0
    shares.forget()
    assert shares.tag("a") == shares.tag("b") == 0.0
