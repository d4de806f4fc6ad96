"""Where the figures come from: the processes' memory on a CPU, NVML on NVIDIA's devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reelmesh.v1.node_pb2 import DeviceStatus

from node_agent.devices import Wanted

# What a device that is off the bus is known by, whether or not its event came through.
XID_OFF_THE_BUS = 79

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class GpuError(Exception):
    """A GPU's figures cannot be read.

    Args:
        lost: The driver says that the device is no longer there.
    """

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


@dataclass(frozen=True)
class GpuFigures:
    """Bytes, degrees and counts; None where a device does not tell."""

    memory_used_bytes: int
    memory_total_bytes: int
    temperature_c: float | None
    ecc_errors: int | None
    """Uncorrected, since the driver started."""


class Gpus(Protocol):
    """The driver of a machine's GPUs; its calls block, and may do so for ever."""

    def figures(self, device: str, uuid: str) -> GpuFigures:
        """Those of a device by its id, or by the number in its name where that is "".

        Raises:
            GpuError: There is no such device, or no driver.
        """
        ...

    def new_xids(self) -> list[tuple[str, int]]:
        """(device, XID) of the errors since the last call, of devices asked for before."""
        ...


class Figures:
    """A :class:`~node_agent.devices.DeviceReader` of both kinds."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._xids: dict[str, set[int]] = {}

    def read(self, wanted: Sequence[Wanted]) -> list[DeviceStatus]:
        """See the protocol."""
        statuses = [
            self._gpu(each) if each.device.startswith("cuda") else _cpu(each) for each in wanted
        ]
        for device, code in self._gpus.new_xids():
            self._xids.setdefault(device, set()).add(code)
        for status in statuses:
            status.xid_errors.extend(sorted(self._xids.get(status.device, ())))
        return statuses

    def _gpu(self, wanted: Wanted) -> DeviceStatus:
        status = DeviceStatus(device=wanted.device)
        try:
            figures = self._gpus.figures(wanted.device, wanted.uuid)
        except GpuError as error:
            if error.lost:
                self._xids.setdefault(wanted.device, set()).add(XID_OFF_THE_BUS)
            return status
        status.memory_used_bytes = figures.memory_used_bytes
        status.memory_total_bytes = figures.memory_total_bytes
        if figures.temperature_c is not None:
            status.temperature_c = figures.temperature_c
        if figures.ecc_errors is not None:
            status.ecc_errors = figures.ecc_errors
        return status


def _cpu(wanted: Wanted) -> DeviceStatus:
    """Resident memory of its processes (pages they share count for each) of the machine's."""
    return DeviceStatus(
        device=wanted.device,
        memory_used_bytes=sum(map(_resident_bytes, wanted.pids)),
        memory_total_bytes=os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES,
    )


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        # It has just ended, or this is no Linux.
        return 0
