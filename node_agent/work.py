"""How much work a run is, and how fast this node does it."""

from __future__ import annotations

import statistics
from collections import deque

from reelmesh.v1.video_pb2 import STAGE_DECODE, STAGE_DENOISE, ProgressEvent, ResolvedSpec

# Share of a run's time that lies before decoding; its error only shifts the estimate
# of the run that is being decoded.
_DENOISE_SHARE = 0.9

# Newest run's weight in the average once there is history: about the last nine count.
_MIN_WEIGHT = 0.2

_STEPS_KEPT = 101


def work_units(spec: ResolvedSpec) -> float:
    """Work units of a run: width * height * num_frames * steps / 1e6."""
    return spec.width * spec.height * spec.num_frames * spec.steps / 1e6


def progress_fraction(event: ProgressEvent) -> float:
    """Share of the run that is done, 0 to 1, as a progress event tells it."""
    done = event.step / event.total_steps if event.total_steps else 0.0
    if event.stage == STAGE_DENOISE:
        return _DENOISE_SHARE * done
    if event.stage == STAGE_DECODE:
        return _DENOISE_SHARE + (1 - _DENOISE_SHARE) * done
    return 0.0


class Speed:
    """Work units that one worker of this node does in a second, measured.

    Begins with the worker's warm-up figure, which a small generation makes
    pessimistic, and moves to an exponentially weighted average of finished runs.
    """

    def __init__(self) -> None:
        self.units_per_second = 0.0
        self._observed = 0
        self._steps_s: deque[float] = deque(maxlen=_STEPS_KEPT)

    def seed(self, units_per_second: float) -> None:
        """Takes a warm-up figure; ignored once real runs were seen."""
        if self._observed == 0:
            self.units_per_second = units_per_second

    def observe(self, units: float, device_s: float) -> None:
        """Takes a finished run of ``units`` that held the device for ``device_s``."""
        if units <= 0 or device_s <= 0:
            return
        self._observed += 1
        weight = max(_MIN_WEIGHT, 1 / (self._observed + 1)) if self.units_per_second else 1.0
        self.units_per_second += weight * (units / device_s - self.units_per_second)

    def seconds(self, units: float) -> float:
        """How long ``units`` take one worker; 0 while the speed is unknown."""
        return units / self.units_per_second if self.units_per_second > 0 else 0.0

    def observe_step(self, step_s: float) -> None:
        """Takes the time between two finished denoising steps."""
        self._steps_s.append(step_s)

    def median_step_s(self) -> float:
        """Median time of the latest denoising steps; 0 where none were seen."""
        return statistics.median(self._steps_s) if self._steps_s else 0.0
