"""What operators read: words, ages, tables."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from reelmesh.v1 import node_pb2, region_pb2
from reelmesh.v1 import operator_service_pb2 as op
from rich.console import Console

from control_plane.reelctl import tables
from control_plane.reelctl.errors import CtlError, NoAnswerError
from control_plane.reelctl.waiting import wait_until
from control_plane.reelctl.words import age, plain, span, state_word

NOW_S = 1_700_000_000


def shown(table, width=200):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def at(seconds_ago):
    return Timestamp(seconds=NOW_S - seconds_ago)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (119, "119 s"), (120, "2 m"), (7199, "119 m"), (7200, "2 h"),
     (172_799, "47 h"), (172_800, "2 d"), (9e6, "104 d")],
)  # fmt: skip
def test_a_span_is_told_in_its_largest_unit(seconds, text):
    assert span(seconds) == text


def test_an_age_that_is_not_known_or_lies_ahead():
    assert age(Timestamp(), NOW_S) == "-"
    assert age(at(-30), NOW_S) == "0 s"


@pytest.mark.parametrize("state", node_pb2.NodeState.values())
def test_every_state_has_a_word_of_its_own(state):
    word = state_word(state)
    assert word == word.lower()
    assert "_" not in word
    assert state_word(99) == "state 99"


def node(**fields):
    defaults = {"node_id": "n0", "region": "ap", "state": node_pb2.NODE_STATE_READY}
    return op.NodeView(**{**defaults, "state_since": at(200), "worker_count": 2, **fields})


def test_a_node_is_a_line():
    status = node_pb2.NodeStatus(
        executions=[node_pb2.Execution(job_id="j")],
        remaining_work_s=94.2,
        workers=[
            node_pb2.WorkerStatus(state=node_pb2.WORKER_STATE_BUSY),
            node_pb2.WorkerStatus(state=node_pb2.WORKER_STATE_DEAD),
        ],
        devices=[
            node_pb2.DeviceStatus(device="cpu"),
            node_pb2.DeviceStatus(
                device="cuda:0",
                memory_used_bytes=3 << 30,
                memory_total_bytes=80 << 30,
                temperature_c=61.4,
                xid_errors=[79],
            ),
        ],
    )
    models = [node_pb2.ModelVersion(name="wan", version="1")]
    lines = shown(tables.nodes_table([node(status=status, models=models)], now_s=NOW_S))
    heads = "NODE REGION STATE AGE RUNS WORK WORKERS MODEL DEVICES REASON"
    assert " ".join(lines[0].split()) == heads
    assert lines[1].split("  ")[0] == "n0"
    for part in ("ready", "3 m", " 1 ", "94 s", "1/2", "wan@1", "3.0/80.0 GiB 61 °C XID 79"):
        assert part in lines[1]
    narrow = shown(tables.nodes_table([node(status=status)], now_s=NOW_S, wide=False))
    assert "DEVICES" not in narrow[0]


def test_a_node_that_did_not_answer_shows_what_its_record_has():
    lines = shown(tables.nodes_table([node(reason="[no] markup")], now_s=NOW_S))
    assert lines[1].split() == ["n0", "ap", "ready", "3", "m", "-", "-", "2", "-", "[no]", "markup"]


def test_a_wish_that_is_not_fulfilled_yet_is_seen():
    (_, line) = shown(tables.nodes_table([node(draining=True)], now_s=NOW_S))
    assert "ready → draining" in line
    there = node(cordoned=True, state=node_pb2.NODE_STATE_CORDONED)
    assert "→" not in shown(tables.nodes_table([there], now_s=NOW_S))[1]


def test_a_narrow_terminal_folds_the_reason_and_keeps_the_rest():
    lines = shown(tables.nodes_table([node(reason="word " * 30)], now_s=NOW_S), width=90)
    assert "n0" in lines[1]
    assert "ready" in lines[1]
    assert len(lines) > 3
    assert all(len(line) <= 90 for line in lines)


def test_events_tell_how_long_each_state_lasted():
    first = op.NodeEventRecord(at=at(600), to=node_pb2.NODE_STATE_STARTING)
    second = op.NodeEventRecord(at=at(590), to=node_pb2.NODE_STATE_READY)
    setattr(second, "from", node_pb2.NODE_STATE_STARTING)
    lines = shown(tables.events_table([first, second], now_s=NOW_S))
    assert [line.split() for line in lines[1:]] == [
        ["10", "m", "-", "starting", "10", "s"],
        ["9", "m", "starting", "ready", "9", "m"],
    ]


def region(**fields):
    return region_pb2.RegionView(region="ap", **fields)


def test_a_region_has_one_word():
    policy = region_pb2.RegionPolicy(draining=True, changed_at=at(60), changed_by="ann", reason="x")
    serving = region_pb2.RegionSummary(ready_nodes=1, known_nodes=2)
    assert tables.region_state(region()) == "unknown"
    assert tables.region_state(region(summary=serving)) == "serving"
    assert tables.region_state(region(summary=region_pb2.RegionSummary())) == "not serving"
    assert tables.region_state(region(summary=serving, policy=policy)) == "draining"
    line = shown(tables.regions_table([region(summary=serving, policy=policy)], now_s=NOW_S))[1]
    assert "1/2" in line
    assert "drained by ann 60 s ago: x" in line


def test_json_has_the_protos_names_and_states_as_words():
    value = plain(node(state=node_pb2.NODE_STATE_UNSPECIFIED))
    assert value["state"] == "unknown"
    assert value["worker_count"] == 2
    assert value["cordoned"] is False


class FakeTime:
    def __init__(self):
        self.now_s = 0.0

    def monotonic(self):
        return self.now_s

    def time(self):
        return self.now_s

    def sleep(self, delay_s):
        self.now_s += delay_s


def test_waiting_tells_news_once_and_outlasts_an_outage():
    looks = iter([(False, "a"), (False, "a"), NoAnswerError("away"), (False, "b"), (True, "c")])

    def look():
        answer = next(looks)
        if isinstance(answer, Exception):
            raise answer
        return answer

    said = []
    wait_until(look, timeout_s=60, on_news=said.append, clock=FakeTime())
    assert said == ["a", "away", "b"]


def test_waiting_ends_in_time_and_says_how_things_are():
    with pytest.raises(CtlError, match="not after 3 s: it is so-so"):
        wait_until(
            lambda: (False, "it is so-so"), timeout_s=3, on_news=lambda _: None, clock=FakeTime()
        )
