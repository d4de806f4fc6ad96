"""The rules that chaos runs are judged by find what they are there to find."""

import pytest

from tests.chaos.checks import in_order, violations
from tests.chaos.history import History, Operation, Seen, Standing, Watch, Wish

WISH = Wish("a ball", 1)
ID = "ap-01"


def sound() -> History:
    events = [
        Seen(0, "queued"),
        Seen(1 << 32 | 1, "started"),
        Seen(1 << 32 | 2, "chunk", 1, 0, 10),
        Seen(2 << 32, "restarted"),
        Seen(2 << 32 | 2, "chunk", 2, 0, 4),
        Seen(2 << 32 | 4, "chunk", 2, 4, 6),
        Seen(3 << 32, "completed"),
    ]
    operation = Operation(
        number=0,
        kind="durable",
        wish=WISH,
        started_s=0.0,
        ended_s=1.0,
        video_ids=[ID],
        outcome="completed",
        sha256="right",
        watches=[Watch("g0", 0, events)],
    )
    standing = Standing("completed", "right")
    return History(
        operations=[operation],
        answers={WISH: "right"},
        standings={ID: {"g0": standing, "g1": Standing("completed", "right")}},
    )


def test_a_sound_history_breaks_no_rule():
    assert violations(sound()) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda h: setattr(h.operations[0], "sha256", "wrong"), "another video than that of"),
        (lambda h: setattr(h.operations[0], "outcome", "failed"), "failed with"),
        (lambda h: setattr(h.operations[0], "outcome", "cancelled"), "nobody asked for it"),
        (lambda h: setattr(h.operations[0], "outcome", ""), "gave up"),
        (lambda h: setattr(h.standings[ID]["g1"], "status", "failed"), "disagree"),
        (lambda h: setattr(h.standings[ID]["g1"], "status", "running"), "never ended"),
        (lambda h: setattr(h.standings[ID]["g1"], "status", ""), "never ended"),
        (lambda h: setattr(h.standings[ID]["g0"], "sha256", "other"), "than the client holds"),
    ],
)
def test_what_is_wrong_is_found(spoil, said):
    history = sound()
    spoil(history)
    assert any(said in text for text in violations(history)), violations(history)


def test_a_cancel_that_was_asked_for_is_right():
    history = sound()
    history.operations[0].cancelled = True
    history.operations[0].outcome = "cancelled"
    for standing in history.standings[ID].values():
        standing.status = "cancelled"
    assert violations(history) == []


def test_a_video_that_was_never_acknowledged_may_be_given_up():
    history = History(operations=[Operation(0, "stream", WISH, 0.0, 1.0, code="UNAVAILABLE")])
    assert violations(history) == []


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([Seen(5, "started"), Seen(5, "progress")], "seq 5 after 5"),
        ([Seen(5, "chunk", 1, 0, 10), Seen(6, "chunk", 1, 11, 1)], "bytes from 11 where 10"),
        ([Seen(5, "chunk", 1, 3, 10)], "bytes from 3 where 0"),
        ([Seen(5, "completed"), Seen(6, "progress")], "after the end"),
        ([Seen(5, "restarted"), Seen(6, "chunk", 2, 1, 1)], "bytes from 1 where 0"),
    ],
)
def test_a_stream_out_of_order_is_found(events, said):
    assert any(said in text for text in in_order(Watch("g0", 0, events)))


def test_a_stream_that_is_taken_up_again_may_begin_inside_an_attempt():
    watch = Watch("g1", 7, [Seen(8, "chunk", 1, 30, 5), Seen(9, "chunk", 1, 35, 5)])
    assert list(in_order(watch)) == []
    watch.events[0] = Seen(7, "chunk", 1, 30, 5)
    assert any("seq 7 after 7" in text for text in in_order(watch))
