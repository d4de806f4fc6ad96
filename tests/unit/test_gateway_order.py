"""The line of a model: priorities, fair shares, deadlines, and places that are kept."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.order import Line, Place, Standing

TENANTS = ("acme", "bora", "cato")
STANDINGS = st.builds(
    Standing,
    tenant=st.sampled_from(TENANTS),
    rank=st.integers(0, 1),
    weight=st.just(1.0),
    deadline_at_s=st.sampled_from([math.inf, 10.0, 20.0, 30.0]),
    came_at_s=st.just(0.0),
)
PLACES = st.lists(st.tuples(STANDINGS, st.floats(0.5, 50.0)), max_size=40)


def stand(jobs):
    line, places = Line(), []
    for number, (standing, units) in enumerate(jobs):
        place = Place(standing=standing, units=units, number=number)
        line.add(place)
        places.append(place)
    return line, places


def ahead_of(place, line):
    return list(itertools.takewhile(lambda other: other is not place, line))


@given(jobs=PLACES)
def test_the_order_is_total_stable_and_by_priority(jobs):
    line, places = stand(jobs)
    order = list(line)
    assert order == list(line)
    assert len(order) == len(places) == len(line)
    assert {id(place) for place in order} == {id(place) for place in places}
    assert [place.standing.rank for place in order] == sorted(p.standing.rank for p in places)


@given(jobs=PLACES)
def test_inside_a_tenant_the_earliest_deadline_goes_first_then_who_came(jobs):
    line, _ = stand(jobs)
    for rank, tenant in itertools.product((0, 1), TENANTS):
        own = [p for p in line if (p.standing.rank, p.standing.tenant) == (rank, tenant)]
        keys = [(p.standing.deadline_at_s, p.number) for p in own]
        assert keys == sorted(keys)


@given(jobs=PLACES, data=st.data())
def test_who_comes_back_has_its_place_and_is_charged_once(jobs, data):
    line, _ = stand(jobs)
    served = []
    while len(line):
        if served and data.draw(st.booleans()):
            # BUSY: it stands where it stood, before all that were not placed yet.
            back = served.pop(data.draw(st.integers(0, len(served) - 1)))
            lead = line.lead(back.standing)
            line.add(back)
            ahead = ahead_of(back, line)
            assert all(p.standing.rank <= back.standing.rank for p in ahead)
            assert all(
                p.turn is not None and p.turn < back.turn
                for p in ahead
                if p.standing.rank == back.standing.rank
            )
            line.serve(back)
            if line.jobs(back.standing.rank):
                assert line.lead(back.standing) == lead
            # Gone for good, that this ends.
            continue
        first = next(iter(line))
        line.serve(first)
        assert first not in line
        served.append(first)


@given(
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 4.0]) for _ in TENANTS]),
    sizes=st.lists(st.floats(1.0, 20.0), min_size=1, max_size=5),
)
def test_shares_converge_to_the_weights(weights, sizes):
    jobs = [
        (Standing(tenant=tenant, weight=weight), units)
        for tenant, weight in zip(TENANTS, weights, strict=True)
        for units in sizes * (200 // len(sizes))
    ]
    line, _ = stand(jobs)
    got = dict.fromkeys(TENANTS, 0.0)
    for place in itertools.islice(line, 150):
        got[place.standing.tenant] += place.cost
    bound = 2 * max(sizes) / min(weights)
    assert max(got.values()) - min(got.values()) <= bound * (1 + 1e-9)


def test_nobody_starves_behind_a_tenant_that_floods():
    flood = [(Standing(tenant="acme"), 1.0)] * 900
    line, places = stand([*flood, (Standing(tenant="bora"), 1.0)])
    order = list(line)
    assert order.index(places[-1]) == 1


def test_a_tenant_that_was_idle_gets_no_credit():
    line, _ = stand([(Standing(tenant="acme"), 1.0)] * 20 + [(Standing(tenant="cato"), 1.0)] * 20)
    for _ in range(20):
        line.serve(next(iter(line)))
    for number in range(10):
        line.add(Place(standing=Standing(tenant="bora"), units=1.0, number=100 + number))
    first = [place.standing.tenant for place in itertools.islice(line, 9)]
    assert {tenant: first.count(tenant) for tenant in TENANTS} == dict.fromkeys(TENANTS, 3)


@given(
    jobs=st.lists(STANDINGS, max_size=40),
    mine=STANDINGS,
    units=st.floats(0.5, 50.0),
    served=st.integers(0, 40),
)
def test_what_is_told_to_be_ahead_is_right_where_jobs_are_alike(jobs, mine, units, served):
    line, _ = stand([(standing, 4.0) for standing in jobs])
    for place in list(itertools.islice(line, served)):
        line.serve(place)
    told = line.ahead(mine)
    place = Place(standing=mine, units=units, number=1_000)
    line.add(place)
    before = ahead_of(place, line)
    assert told == (len(before), 4.0 * len(before))


@given(jobs=PLACES, mine=STANDINGS)
def test_what_is_told_to_be_ahead_is_never_more_than_waits(jobs, mine):
    line, _ = stand(jobs)
    told_jobs, told_units = line.ahead(mine)
    assert told_jobs <= len(line)
    assert told_units <= sum(units for _, units in jobs) * (1 + 1e-9)


def test_an_interactive_job_has_no_batch_job_ahead():
    line, _ = stand([(Standing(tenant="acme", rank=1), 10.0)] * 900)
    assert line.ahead(Standing(tenant="acme")) == (0, 0.0)
    jobs, units = line.ahead(Standing(tenant="acme", rank=1))
    assert (jobs, round(units)) == (900, 9000)
    # Another tenant's first batch job waits for one of them.
    assert line.ahead(Standing(tenant="bora", rank=1)) == (1, 10.0)


def test_leaving_twice_is_leaving_once():
    line, [place, other] = stand([(Standing(), 1.0), (Standing(), 2.0)])
    line.remove(place)
    line.remove(place)
    assert list(line) == [other]
    line.serve(other)
    line.serve(other)
    assert len(line) == 0
