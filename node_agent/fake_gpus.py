"""GPUs made up, beside the port they stand in for; steered by tests."""

from __future__ import annotations

import threading
from dataclasses import replace

from node_agent.device_figures import GpuError, GpuFigures

_FIGURES = GpuFigures(
    memory_used_bytes=2**30, memory_total_bytes=80 * 2**30, temperature_c=40.0, ecc_errors=0
)


class FakeGpus:
    """:class:`~node_agent.device_figures.Gpus` of some number of devices."""

    def __init__(self, count: int = 1) -> None:
        self._figures = [_FIGURES] * count
        self._lost: set[int] = set()
        self._asked: dict[int, str] = {}
        self._xids: list[tuple[int, int]] = []
        self.answering = threading.Event()
        """Cleared: the driver hangs until it is set again."""
        self.answering.set()

    # --- the port ---

    def figures(self, device: str, uuid: str) -> GpuFigures:
        """See the protocol."""
        self.answering.wait()
        index = self._index(device, uuid)
        if not 0 <= index < len(self._figures):
            raise GpuError("no such device")
        self._asked[index] = device
        if index in self._lost:
            raise GpuError("the device is lost", lost=True)
        return self._figures[index]

    def new_xids(self) -> list[tuple[str, int]]:
        """See the protocol."""
        self.answering.wait()
        raised, self._xids = self._xids, []
        return [(self._asked[index], code) for index, code in raised if index in self._asked]

    @staticmethod
    def _index(device: str, uuid: str) -> int:
        return int(uuid.removeprefix("GPU-") if uuid else device.partition(":")[2] or 0)

    # --- what tests steer ---

    def uuid(self, index: int) -> str:
        """The id of a device."""
        return f"GPU-{index}"

    def set(self, index: int, *, temperature_c: float | None, ecc_errors: int | None) -> None:
        """Changes what a device says; None: it has no such figure."""
        self._figures[index] = replace(
            self._figures[index], temperature_c=temperature_c, ecc_errors=ecc_errors
        )

    def raise_xid(self, index: int, code: int) -> None:
        """An error of a device."""
        if index in self._asked:
            self._xids.append((index, code))

    def lose(self, index: int) -> None:
        """A device falls off the bus."""
        self._lost.add(index)
