"""At which nodes waiting jobs leave tickets."""

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.placement import IDLE_SHARE, cost_s
from gateway.fleet.tickets import SPREAD, best_nodes, some_of
from tests.unit.test_gateway_placement import MODEL, fleets, view

RNG = random.Random(1)


@given(nodes=fleets(), jobs=st.integers(1, 200), refusals=st.none() | st.integers(1, 5))
def test_tickets_lie_at_able_nodes_alone_and_a_small_fleet_has_all(nodes, jobs, refusals):
    found = best_nodes(nodes, MODEL, units=10.0, jobs=jobs, rng=RNG, refusals=refusals)
    able = [n for n in nodes if n.routable and MODEL in n.models]
    assert len(found) == len(set(found))
    assert set(found) <= {n.node_id for n in able}
    if refusals is None:
        assert set(found) == {n.node_id for n in able}
    elif able:
        costs = {n.node_id: cost_s(n, 10.0, fallback_speed=1.0) for n in able}
        if all(n.units_per_second for n in able):
            limit = min(costs.values()) * (1 + IDLE_SHARE * (2 * refusals - 1))
            assert set(found) == {node for node, cost in costs.items() if cost <= limit}


def test_in_a_large_fleet_they_lie_at_a_few_of_the_best():
    nodes = [view(f"n{number}", remaining_work_s=float(number)) for number in range(1_000)]
    found = best_nodes(nodes, MODEL, units=1.0, jobs=1, rng=RNG)
    assert found == [f"n{number}" for number in range(4 * SPREAD)]
    chosen = some_of(found, frozenset(), rng=random.Random(1))
    assert len(chosen) == SPREAD
    assert chosen <= set(found)


def test_a_node_on_trial_gets_none():
    assert best_nodes([view("suspect", on_trial=True)], MODEL, units=1.0, jobs=1, rng=RNG) == []


@given(
    nodes=st.lists(st.integers(0, 40).map(str), unique=True, max_size=30),
    avoid=st.frozensets(st.integers(0, 40).map(str), max_size=10),
)
def test_nodes_that_failed_the_job_are_passed_over_where_there_are_others(nodes, avoid):
    chosen = some_of(nodes, avoid, rng=random.Random(1))
    assert len(chosen) <= SPREAD
    if set(nodes) - avoid:
        assert chosen <= set(nodes) - avoid
    else:
        assert chosen == set(nodes[:SPREAD]) or len(nodes) > SPREAD
