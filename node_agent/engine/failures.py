"""What can go wrong in a worker, and what the agent is told of it.

The codes are stable; messages reach clients, so they hold neither stack nor path.

    EngineError
    ├── RunCancelledError      the run was told to stop; ends as CANCELLED
    ├── PoisonedOutputError    NaN or infinity came out of the model
    └── LoadError              the model cannot be served here; the worker leaves
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from node_agent.manifest import SpecRefusedError


class EngineError(Exception):
    """Base of what the engine raises by itself."""


class RunCancelledError(EngineError):
    """The run was told to stop; ``reason`` is who or what said so."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PoisonedOutputError(EngineError):
    """The model's output held NaN or infinity."""


class LoadError(EngineError):
    """The model cannot be loaded or run on this device; ``code`` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Failure:
    """A failed run as the agent hears of it."""

    code: str
    message: str
    retryable: bool
    # The device is in an unknown state: the worker must leave.
    fatal: bool = False


def classify(error: Exception) -> Failure:
    """The failure that an error of a run means."""
    if isinstance(error, SpecRefusedError):
        return Failure("invalid_spec", str(error), retryable=False)
    if isinstance(error, PoisonedOutputError):
        message = "the model produced NaN or infinity; another seed or fewer steps may work"
        return Failure("poisoned_output", message, retryable=False)
    if is_out_of_memory(error):
        message = "the device ran out of memory; a smaller size or fewer frames need less"
        return Failure("out_of_memory", message, retryable=True)
    if isinstance(error, torch.AcceleratorError):
        return Failure("device_failed", "the device reported an error", retryable=True, fatal=True)
    message = f"the engine met an unexpected {type(error).__name__}; the node's log has it"
    return Failure("engine_error", message, retryable=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # torch's CPU allocator has no error class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
