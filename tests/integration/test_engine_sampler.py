import pytest
import torch

from node_agent.engine.sampler import StepFence


class FakeEvent:
    """A CUDA event as far as the fence uses one; says what was waited for."""

    log: list[str]

    def __init__(self) -> None:
        self._name = ""

    def record(self) -> None:
        self._name = f"event {len([entry for entry in self.log if 'record' in entry]) + 1}"
        self.log.append(f"record {self._name}")

    def synchronize(self) -> None:
        self.log.append(f"wait for {self._name}")


@pytest.fixture
def log(monkeypatch):
    log: list[str] = []
    monkeypatch.setattr(FakeEvent, "log", log, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return log


def test_on_cuda_one_step_is_issued_ahead_and_only_finished_ones_are_told(log):
    fence = StepFence(torch.device("cuda"))

    assert [fence.passed(step) for step in (1, 2, 3)] == [0, 1, 2]
    fence.drain()
    fence.drain()

    assert log == [
        "record event 1",
        "record event 2",
        "wait for event 1",
        "record event 3",
        "wait for event 2",
        "wait for event 3",
    ]


def test_on_a_cpu_a_step_is_finished_when_it_returns(log):
    fence = StepFence(torch.device("cpu"))

    assert [fence.passed(step) for step in (1, 2, 3)] == [1, 2, 3]
    fence.drain()
    assert log == []
