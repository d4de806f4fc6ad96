"""What the agent's port to GPUs does: the fake, and NVML's binding over a library made up.

The library is compiled from C and has the driver's own symbols, so that the binding, its
structures and its errors are the real ones where there is no GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from node_agent.device_figures import GpuError, Gpus
from node_agent.device_nvml import NvmlGpus
from node_agent.fake_gpus import FakeGpus

SOURCE = Path(__file__).parents[1] / "support" / "nvml" / "stub.c"


class StubDriver:
    """The stub library, steered as the fake is."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.stub_reset()

    def uuid(self, index: int) -> str:
        return f"GPU-{index}"

    def set(self, index: int, *, temperature_c: float | None, ecc_errors: int | None) -> None:
        temperature = -1 if temperature_c is None else int(temperature_c)
        ecc = ctypes.c_longlong(-1 if ecc_errors is None else ecc_errors)
        self._library.stub_set(index, temperature, ecc)

    def raise_xid(self, index: int, code: int) -> None:
        self._library.stub_xid(index, ctypes.c_ulonglong(code))

    def lose(self, index: int) -> None:
        self._library.stub_lose(index)


@pytest.fixture(scope="module")
def stub_library(tmp_path_factory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver library with")
    pytest.importorskip("pynvml")
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    name = "-Wl,-soname,libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", name, "-o", path, SOURCE],
        check=True,
    )
    # Loaded before the binding asks for that name, which then finds this one.
    return ctypes.CDLL(str(path))


@pytest.fixture(params=["fake", "nvml"])
def machine(request) -> tuple[Gpus, FakeGpus | StubDriver]:
    """The port, and what steers the devices behind it."""
    if request.param == "fake":
        gpus = FakeGpus(count=2)
        return gpus, gpus
    return NvmlGpus(), StubDriver(request.getfixturevalue("stub_library"))


def test_a_device_tells_its_memory_heat_and_errors(machine):
    gpus, devices = machine
    devices.set(1, temperature_c=71.0, ecc_errors=3)
    figures = gpus.figures("cuda:1", "")
    assert figures.memory_total_bytes == 80 * 2**30
    assert figures.memory_used_bytes == 2**30
    assert (figures.temperature_c, figures.ecc_errors) == (71.0, 3)
    assert gpus.figures("cuda:0", "").ecc_errors == 0


def test_what_a_device_does_not_tell_is_none(machine):
    gpus, devices = machine
    devices.set(0, temperature_c=None, ecc_errors=None)
    figures = gpus.figures("cuda:0", "")
    assert (figures.temperature_c, figures.ecc_errors) == (None, None)


def test_a_device_is_found_by_its_id_whatever_cuda_calls_it(machine):
    gpus, devices = machine
    devices.set(1, temperature_c=55.0, ecc_errors=0)
    assert gpus.figures("cuda:0", devices.uuid(1)).temperature_c == 55.0
    devices.raise_xid(1, 31)
    assert gpus.new_xids() == [("cuda:0", 31)]


@pytest.mark.parametrize(("device", "uuid"), [("cuda:7", ""), ("cuda:0", "GPU-7")])
def test_a_device_that_is_not_there_is_an_error(machine, device, uuid):
    gpus, _ = machine
    with pytest.raises(GpuError) as raised:
        gpus.figures(device, uuid)
    assert not raised.value.lost


def test_xids_are_told_once_and_by_device(machine):
    gpus, devices = machine
    for device in ("cuda:0", "cuda:1"):
        gpus.figures(device, "")
    assert gpus.new_xids() == []
    devices.raise_xid(1, 79)
    devices.raise_xid(0, 13)
    assert sorted(gpus.new_xids()) == [("cuda:0", 13), ("cuda:1", 79)]
    assert gpus.new_xids() == []


def test_a_lost_device_says_so(machine):
    gpus, devices = machine
    gpus.figures("cuda:0", "")
    devices.lose(0)
    with pytest.raises(GpuError) as raised:
        gpus.figures("cuda:0", "")
    assert raised.value.lost


def test_xids_may_be_asked_for_before_anything_else(machine):
    gpus, _ = machine
    assert gpus.new_xids() == []


def test_without_a_driver_it_is_an_error_and_no_more(monkeypatch):
    pynvml = pytest.importorskip("pynvml")

    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    gpus = NvmlGpus()
    with pytest.raises(GpuError):
        gpus.figures("cuda:0", "")
    assert gpus.new_xids() == []
