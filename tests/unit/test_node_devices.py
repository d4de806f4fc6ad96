"""What of a device's figures is a fault, what is a note, and what a hung driver costs."""

from __future__ import annotations

import asyncio
import os

import pytest
from reelmesh.v1.node_pb2 import DeviceStatus

from node_agent.device_figures import Figures
from node_agent.devices import (
    FATAL_XIDS,
    DeviceLimits,
    DeviceReport,
    DeviceWatch,
    Wanted,
    fault_of,
    is_hot,
)
from node_agent.fake_gpus import FakeGpus
from reelkit.clock import ManualClock
from reelkit.tasks import TaskScope

GPU = Wanted(device="cuda:0")


# --- judgement ---


@pytest.mark.parametrize("code", [48, 79, 95])
def test_an_xid_that_needs_a_reset_is_a_fault(code):
    fault = fault_of(DeviceStatus(device="cuda:0", xid_errors=[13, code]))
    assert fault == f"cuda:0: XID error {code}; the device needs a reset"


@pytest.mark.parametrize("code", [13, 31, 43, 63, 94])
def test_an_xid_of_an_application_is_none(code):
    assert code not in FATAL_XIDS
    assert fault_of(DeviceStatus(device="cuda:0", xid_errors=[code])) == ""


def test_a_hot_device_is_called_hot_until_it_has_cooled_a_little():
    def hot(degrees: float, *, before: bool) -> bool:
        return is_hot(DeviceStatus(temperature_c=degrees), was_hot=before, hot_c=90)

    assert not hot(89.9, before=False)
    assert hot(90, before=False)
    assert hot(87.5, before=True)
    assert not hot(86.9, before=True)
    assert not is_hot(DeviceStatus(), was_hot=True, hot_c=90)


def test_little_moves_are_no_news():
    def report(**figures: float) -> DeviceReport:
        status = DeviceStatus(device="cuda:0", memory_total_bytes=1000, **figures)
        return DeviceReport(statuses=[status])

    before = report(memory_used_bytes=500, temperature_c=50)
    assert not report(memory_used_bytes=515, temperature_c=52).tells_news(before)
    assert report(memory_used_bytes=530, temperature_c=50).tells_news(before)
    assert report(memory_used_bytes=500, temperature_c=54).tells_news(before)
    assert report(memory_used_bytes=500).tells_news(before)
    assert report(memory_used_bytes=500, temperature_c=50, ecc_errors=1).tells_news(before)


# --- figures ---


def test_a_cpu_is_the_memory_of_its_processes():
    (status,) = Figures(FakeGpus()).read([Wanted(device="cpu", pids=(os.getpid(), 2**22 + 1))])
    assert 2**20 < status.memory_used_bytes < status.memory_total_bytes
    assert not status.HasField("temperature_c")
    assert not status.HasField("ecc_errors")


def test_errors_of_a_device_are_kept_and_those_of_a_lost_one_are_made_up():
    gpus = FakeGpus(count=2)
    figures = Figures(gpus)
    wanted = [Wanted(device="cuda:0"), Wanted(device="cuda:1")]
    figures.read(wanted)
    gpus.raise_xid(0, 13)
    gpus.raise_xid(0, 13)
    gpus.raise_xid(0, 94)
    gpus.lose(1)
    first, second = figures.read(wanted)
    assert list(first.xid_errors) == [13, 94]
    assert list(second.xid_errors) == [79]
    assert second.memory_total_bytes == 0
    assert list(figures.read(wanted)[0].xid_errors) == [13, 94]


def test_a_machine_without_such_a_device_says_its_name_and_no_more():
    (status,) = Figures(FakeGpus(count=0)).read([GPU])
    assert status == DeviceStatus(device="cuda:0")


# --- the watch ---


class Watched:
    """A watch over fake GPUs and a clock by hand."""

    def __init__(self) -> None:
        self.gpus = FakeGpus()
        self.clock = ManualClock()
        self.news: asyncio.Queue[DeviceReport] = asyncio.Queue()
        self.watch = DeviceWatch(
            reader=Figures(self.gpus),
            wanted=lambda: [GPU],
            limits=DeviceLimits(every_s=5, timeout_s=0.1, hot_c=90),
            clock=self.clock,
            on_news=lambda: self.news.put_nowait(self.watch.report),
        )

    async def next(self) -> DeviceReport:
        async with asyncio.timeout(5):
            while True:
                if not self.news.empty():
                    return self.news.get_nowait()
                await self.clock.advance(5)
                await asyncio.sleep(0.005)


@pytest.fixture
async def watched():
    watched = Watched()
    async with TaskScope("test") as scope:
        scope.spawn(watched.watch.run(), name="devices")
        yield watched
        watched.gpus.answering.set()
        assert scope.failure is None


async def test_the_first_look_is_news_and_a_fault_is(watched):
    first = await watched.next()
    assert first.statuses[0].temperature_c == 40
    assert first.faults == {}
    watched.gpus.raise_xid(0, 79)
    report = await watched.next()
    assert "XID error 79" in report.faults["cuda:0"]


async def test_heat_is_a_note_and_no_fault(watched):
    await watched.next()
    watched.gpus.set(0, temperature_c=93.0, ecc_errors=0)
    report = await watched.next()
    assert report.notes == ["cuda:0 is at 90 °C or above"]
    assert report.faults == {}


async def test_a_driver_that_hangs_is_said_and_keeps_the_faults_and_is_heard_again(watched):
    await watched.next()
    watched.gpus.raise_xid(0, 79)
    await watched.next()
    watched.gpus.answering.clear()
    report = await watched.next()
    assert report.statuses == [DeviceStatus(device="cuda:0")]
    assert "has not answered for 0.1 s" in report.notes[0]
    assert report.faults
    watched.gpus.answering.set()
    report = await watched.next()
    assert report.statuses[0].memory_total_bytes > 0
    assert report.notes == []
