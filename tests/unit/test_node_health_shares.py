"""How many nodes may fail at once before it is the observer who is doubted."""

from hypothesis import given
from hypothesis import strategies as st

from control_plane.health.shares import believable_losses, too_many

LEASE_S = 10.0
losses = st.dictionaries(st.text("abc", min_size=1, max_size=4), st.floats(0, 100), max_size=30)


def lost(at, present):
    return believable_losses(at, present=present, window_s=LEASE_S, max_share=0.55)


def test_one_may_always_fail():
    assert not too_many(1, 1, max_share=0.55)
    assert too_many(2, 2, max_share=0.55)
    assert not too_many(2, 4, max_share=0.55)
    assert too_many(3, 5, max_share=0.55)


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0.01, 1))
def test_more_failing_is_never_more_believable(failing, total, share):
    if too_many(failing, total, max_share=share):
        assert too_many(failing + 1, total, max_share=share)
    else:
        assert not too_many(failing, total + 1, max_share=share)


@given(losses, st.integers(0, 50))
def test_losses_within_one_lease_are_believed_up_to_the_share(at, present):
    believed = lost(at, present)
    assert believed <= at.keys()
    for start_s in at.values():
        together = {n for n, at_s in at.items() if start_s <= at_s <= start_s + LEASE_S}
        if too_many(len(together), present + len(at), max_share=0.55):
            assert not together & believed


@given(losses)
def test_losses_in_a_large_fleet_are_all_believed(at):
    assert lost(at, 1_000) == at.keys()


def test_a_mass_loss_is_doubted_and_losses_apart_are_not():
    together = {f"n{number}": 50.0 + number for number in range(6)}
    assert lost(together, present=4) == frozenset()
    assert lost(together, present=5) == together.keys()
    apart = {f"n{number}": 50.0 + 11 * number for number in range(6)}
    assert lost(apart, present=4) == apart.keys()
