"""What the node's devices say of themselves: figures, faults and their report.

Figures are read in a thread with a deadline, since a driver that hangs, hangs its callers:
the agent then says that it does not know, and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from reelmesh.v1.node_pb2 import DeviceStatus

from reelkit.clock import Clock
from reelkit.threads import in_daemon_thread

_log = structlog.get_logger("node_agent.devices")

# XIDs after which a device computes no more, or wrongly, until it is reset: 48 double-bit
# ECC, 62 its micro-controller halted, 64 a row could not be remapped, 74 NVLink, 79 fallen
# off the bus, 95 uncontained ECC, 119 and 120 its system processor, 140 unrecovered ECC.
# Others end an application and leave the device well, such as 13, 31, 63 (a row will be
# remapped at the next reset) and 94 (an ECC error contained to one application); see
# NVIDIA's "Xid catalog", docs.nvidia.com/deploy/xid-errors.
FATAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})

# How far below the limit a device must cool before it is no longer called hot.
_COOL_BY_C = 3.0
# A change of memory below this share of the device's is not worth a message to everybody.
_MEMORY_SHARE = 0.02


@dataclass(frozen=True)
class Wanted:
    """A device whose figures are asked for."""

    device: str
    """As it is configured: "cpu", "cuda:0"."""
    uuid: str = ""
    """As its worker knows it, "GPU-..."; "" before a worker has told."""
    pids: tuple[int, ...] = ()
    """The processes that use it."""


class DeviceReader(Protocol):
    """Reads figures; blocks, and is called from one thread at a time."""

    def read(self, wanted: Sequence[Wanted]) -> list[DeviceStatus]:
        """One status for each, in order; what cannot be known is unset. Never raises."""
        ...


@dataclass(frozen=True)
class DeviceLimits:
    """Times and bounds; see the settings of the same names."""

    every_s: float = 5.0
    timeout_s: float = 5.0
    hot_c: float = 90.0


def fault_of(status: DeviceStatus) -> str:
    """Why nothing new may be given to the device, or ""."""
    fatal = sorted(set(status.xid_errors) & FATAL_XIDS)
    if not fatal:
        return ""
    codes = ", ".join(map(str, fatal))
    return f"{status.device}: XID error {codes}; the device needs a reset"


def is_hot(status: DeviceStatus, *, was_hot: bool, hot_c: float) -> bool:
    """Whether it is reported as hot: from the limit on, until it has cooled a little below."""
    if not status.HasField("temperature_c"):
        return False
    return status.temperature_c >= (hot_c - _COOL_BY_C if was_hot else hot_c)


@dataclass
class DeviceReport:
    """What is known now."""

    statuses: list[DeviceStatus] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    """By device; a device with a fault is given nothing new."""
    notes: list[str] = field(default_factory=list)
    """What people should know, though nothing follows from it here."""

    def tells_news(self, before: DeviceReport) -> bool:
        """Whether the difference is worth a message to everybody who watches."""
        if (self.faults, self.notes) != (before.faults, before.notes):
            return True
        if len(self.statuses) != len(before.statuses):
            return True
        return any(
            _differs(new, old) for new, old in zip(self.statuses, before.statuses, strict=True)
        )


def _differs(new: DeviceStatus, old: DeviceStatus) -> bool:
    moved_bytes = abs(new.memory_used_bytes - old.memory_used_bytes)
    return (
        moved_bytes > _MEMORY_SHARE * new.memory_total_bytes
        or new.memory_total_bytes != old.memory_total_bytes
        or new.HasField("temperature_c") != old.HasField("temperature_c")
        or abs(new.temperature_c - old.temperature_c) >= _COOL_BY_C
        or new.ecc_errors != old.ecc_errors
        or list(new.xid_errors) != list(old.xid_errors)
    )


class DeviceWatch:
    """Keeps the report; one task of the agent runs it.

    Args:
        reader: Where figures come from.
        wanted: What to ask for, anew each time.
        on_news: Called when the report says something new.
    """

    def __init__(
        self,
        *,
        reader: DeviceReader,
        wanted: Callable[[], Sequence[Wanted]],
        limits: DeviceLimits,
        clock: Clock,
        on_news: Callable[[], None],
    ) -> None:
        self.report = DeviceReport()
        self._reader = reader
        self._wanted = wanted
        self._limits = limits
        self._clock = clock
        self._on_news = on_news
        self._hot: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Reads until cancelled."""
        while True:
            await self._look()
            await self._clock.sleep(self._limits.every_s)

    async def _look(self) -> None:
        wanted = list(self._wanted())
        reading = in_daemon_thread(lambda: self._reader.read(wanted), name="devices")
        try:
            await asyncio.wait([reading], timeout=self._limits.timeout_s)
            if not reading.done():
                self._publish(self._unknown(wanted))
                # Another call would hang behind it: wait for the driver, however long.
                await asyncio.wait([reading])
        finally:
            reading.cancel()
        self._publish(self._judge(reading.result()))

    def _unknown(self, wanted: Sequence[Wanted]) -> DeviceReport:
        """Faults stay: a device is not well for being mute."""
        return DeviceReport(
            statuses=[DeviceStatus(device=each.device) for each in wanted],
            faults=self.report.faults,
            notes=[f"the devices' driver has not answered for {self._limits.timeout_s:g} s"],
        )

    def _judge(self, statuses: list[DeviceStatus]) -> DeviceReport:
        faults = {status.device: fault_of(status) for status in statuses}
        self._hot = frozenset(
            status.device
            for status in statuses
            if is_hot(status, was_hot=status.device in self._hot, hot_c=self._limits.hot_c)
        )
        return DeviceReport(
            statuses=statuses,
            faults={device: fault for device, fault in faults.items() if fault},
            notes=[
                f"{device} is at {self._limits.hot_c:g} °C or above" for device in sorted(self._hot)
            ],
        )

    def _publish(self, report: DeviceReport) -> None:
        before, self.report = self.report, report
        for device, fault in report.faults.items():
            if before.faults.get(device) != fault:
                _log.error("device fault", device=device, fault=fault)
        for note in report.notes:
            if note not in before.notes:
                _log.warning("device", note=note)
        if report.tells_news(before):
            self._on_news()
