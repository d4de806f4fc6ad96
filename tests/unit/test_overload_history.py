"""What counts as a broken promise to the clients of an overloaded region."""

import pytest

from benchmarks.support.overload_history import (
    Ask,
    Standing,
    Told,
    by_second,
    goodput,
    late,
    violations,
)

DONE = Standing("completed", ended_s=5.0)


def told(number=0, **fields):
    ask = Ask(
        number=number, way="grpc", tenant="acme", gateway=0, deadline_s=fields.pop("due", None)
    )
    return Told(ask, **fields)


@pytest.mark.parametrize(
    "sound",
    [
        told(video_ids=["a"]),
        told(video_ids=["a", "a"]),
        told(video_ids=["a"], outcome="completed"),
        told(refused="429 x", retry_after_s=1.0),
    ],
    ids=str,
)
def test_what_is_as_promised(sound):
    assert violations([sound], {"a": DONE}) == []


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (told(refused="429 x"), "no delay"),
        (told(refused="429 x", retry_after_s=0.0), "no delay"),
        (told(broken="UNAVAILABLE: connection reset"), "by nobody"),
        (told(video_ids=["a", "b"]), "one key made"),
        (told(video_ids=["lost"]), "is lost"),
        (told(video_ids=["stuck"]), "is queued"),
        (told(video_ids=["a"], outcome="failed"), "ended as failed to its client"),
    ],
    ids=str,
)
def test_what_is_not(broken, why):
    standings = {"a": DONE, "b": DONE, "stuck": Standing("queued")}
    assert why in " ".join(violations([broken], standings))


def test_a_video_belongs_to_one_request():
    found = violations([told(1, video_ids=["a"]), told(2, video_ids=["a"])], {"a": DONE})
    assert found == ["#2: got a, which is another's"]


def test_goodput_counts_what_was_completed_in_time():
    standings = {
        **{f"{n}": Standing("completed", ended_s=10.0 + n) for n in range(20)},
        "early": Standing("completed", ended_s=9.9),
        "failed": Standing("failed", ended_s=12.0),
    }
    assert goodput(standings, from_s=10.0, to_s=20.0, capacity_per_s=1.0) == 1.0
    assert goodput(standings, from_s=10.0, to_s=20.0, capacity_per_s=2.0) == 0.5
    assert by_second(standings, from_s=10.0, to_s=13.0) == [1, 1, 1]


def test_late_ones_are_those_with_a_deadline_that_failed():
    history = [
        told(1, video_ids=["a"], due=2.0),
        told(2, video_ids=["f"], due=2.0),
        told(3, due=1.0),
    ]
    assert late(history, {"a": DONE, "f": Standing("failed")}) == (1, 2)
