"""A training run's folder: its checkpoint (written whole or not at all), figures and plot."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from tqdm import tqdm

from tools.demo_model.plot import draw_curves

_SAVE_EVERY_S: Final = 90.0


class Run:
    """One phase's checkpoint, its record of figures, and the plot of them.

    Args:
        folder: where the phase keeps its files; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._saved_s = time.monotonic()
        self._figures: dict[str, list[tuple[int, float]]] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._told_to_stop = False

    def close(self) -> None:
        """Leave SIGTERM to its default again: training is over."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_stop(self, *_: object) -> None:
        self._told_to_stop = True

    @property
    def checkpoint(self) -> Path:
        """The file that a run goes on from."""
        return self.folder / "checkpoint.pt"

    def resume(self, model: nn.Module, average: nn.Module, optimizer: Any) -> int:
        """Load the checkpoint into the three, if there is one; return the steps done.

        From here to ``close`` a SIGTERM is answered by one last checkpoint.
        """
        signal.signal(signal.SIGTERM, self._on_stop)
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        self._figures = {key: [tuple(p) for p in value] for key, value in state["figures"].items()}
        return int(state["step"])

    def steps_done(self) -> int:
        """Return the step of the checkpoint, 0 without one."""
        if not self.checkpoint.exists():
            return 0
        return int(torch.load(self.checkpoint, map_location="cpu", weights_only=True)["step"])

    def record(self, step: int, **values: float) -> None:
        """Note figures of a step; the loss is kept as means of 20 steps."""
        for name, value in values.items():
            if name == "loss":
                total, count = self._sums.get(name, (0.0, 0))
                total, count = total + value, count + 1
                self._sums[name] = (0.0, 0) if count == 20 else (total, count)
                if count < 20:
                    continue
                value = total / count
            self._figures.setdefault(name, []).append((step, value))
            if name != "loss":
                print(f"{self.folder.name} step {step}: {name} {value:.3f}", flush=True)

    def is_due(self, step: int) -> bool:
        """Tell whether it is time for a checkpoint."""
        late = step % 10 == 0 and time.monotonic() - self._saved_s > _SAVE_EVERY_S
        return late or self._told_to_stop

    def save(self, step: int, model: nn.Module, average: nn.Module, optimizer: Any) -> None:
        """Write checkpoint, figures and plot, each by renaming a finished file into place."""
        state = {
            "step": step,
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "figures": self._figures,
        }
        draft = self.checkpoint.with_suffix(".tmp")
        torch.save(state, draft)
        draft.replace(self.checkpoint)
        (self.folder / "figures.json").write_text(json.dumps(self._figures))
        draw_curves(self._figures, self.folder / "curves.png")
        self._saved_s = time.monotonic()
        if self._told_to_stop:
            print(f"{self.folder.name} stopped at step {step}", flush=True)
            raise SystemExit(0)

    def progress(self, name: str, done: int, total: int) -> Any:
        """Return a progress bar; into a file it writes a line a minute."""
        quiet = not sys.stderr.isatty()
        return tqdm(
            desc=name, initial=done, total=total, mininterval=60 if quiet else 0.2, unit="step"
        )
