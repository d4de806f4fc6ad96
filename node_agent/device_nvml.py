"""NVIDIA's devices through NVML (the optional package nvidia-ml-py)."""

from __future__ import annotations

import ctypes
from typing import Any

from node_agent.device_figures import GpuError, GpuFigures

# More events than this in one look are left to the next.
_MAX_EVENTS = 100


class NvmlGpus:
    """:class:`~node_agent.device_figures.Gpus` by the driver's own library.

    Opened at the first use, and tried again while there is no driver: one that is loaded
    later is found.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._events: Any = None
        self._handles: dict[tuple[str, str], Any] = {}
        self._devices: dict[int | None, str] = {}

    def figures(self, device: str, uuid: str) -> GpuFigures:
        """See the protocol."""
        nvml = self._open()
        try:
            handle = self._handle(device, uuid)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            lost = error.value == nvml.NVML_ERROR_GPU_IS_LOST
            raise GpuError(str(error), lost=lost) from None
        return GpuFigures(
            memory_used_bytes=memory.used,
            memory_total_bytes=memory.total,
            temperature_c=self._if_told(
                nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
            ),
            ecc_errors=self._if_told(
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
            ),
        )

    def new_xids(self) -> list[tuple[str, int]]:
        """See the protocol."""
        nvml = self._nvml
        found: list[tuple[str, int]] = []
        while nvml is not None and len(found) < _MAX_EVENTS:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                # Its way to say that there is none; and a lost device tells no more.
                break
            device = self._devices.get(_address(event.device))
            if device is not None:
                found.append((device, int(event.eventData)))
        return found

    def _open(self) -> Any:
        if self._nvml is None:
            try:
                import pynvml
            except ImportError:
                raise GpuError("nvidia-ml-py is not installed") from None
            try:
                pynvml.nvmlInit()
                self._events = pynvml.nvmlEventSetCreate()
            except pynvml.NVMLError as error:
                raise GpuError(str(error)) from None
            self._nvml = pynvml
        return self._nvml

    def _handle(self, device: str, uuid: str) -> Any:
        """The driver's name for the device; errors of the device are listened for from then."""
        handle = self._handles.get((device, uuid))
        if handle is None:
            nvml = self._nvml
            if uuid:
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            else:
                number = device.partition(":")[2]
                handle = nvml.nvmlDeviceGetHandleByIndex(int(number or 0))
            self._handles[device, uuid] = handle
            self._devices[_address(handle)] = device
            # Slices of a device (MIG) have no events of their own.
            self._if_told(
                nvml.nvmlDeviceRegisterEvents,
                handle,
                nvml.nvmlEventTypeXidCriticalError,
                self._events,
            )
        return handle

    def _if_told(self, call: Any, *arguments: Any) -> Any:
        """What the driver answers, or None where this device has no such thing."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError:
            return None


def _address(handle: Any) -> int | None:
    """What tells handles apart: the library's pointer is the same for the same device."""
    return ctypes.cast(handle, ctypes.c_void_p).value
