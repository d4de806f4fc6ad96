"""A canary tells whether a node works, and nothing of how fast it is."""

from tests.support.execution_bench import Bench


def test_a_canary_changes_neither_speed_nor_median_step():
    bench = Bench()
    execution = bench.run(canary=True)
    bench.start(execution)
    for step in (1, 2, 3):
        bench.now_s += 5
        bench.step(execution, step)
    bench.complete(execution)
    assert bench.speed.units_per_second == 1.0
    assert bench.speed.median_step_s() == 0.0
