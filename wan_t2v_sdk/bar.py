"""A progress bar in the manner of tqdm, in a terminal or a notebook."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from types import TracebackType
from typing import Any, Protocol, Self

from wan_t2v_sdk.events import VideoEvent

MAX_COLUMNS = 100


class ProgressBar(Protocol):
    """What shows a person how far a video is."""

    def update(self, event: VideoEvent) -> None:
        """Shows what the event says; called from the thread that called ``generate``."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def make_bar(progress: bool | None) -> ProgressBar:
    """The bar to use: None means one where somebody is there to see it.

    Raises:
        TypeError: A function was passed where other libraries take a callback.
    """
    if callable(progress):
        raise TypeError(
            "progress is True, False or None, for a bar; pass a function that is called with "
            "each event as on_progress="
        )
    notebook = _in_notebook()
    if progress is None:
        progress = notebook or sys.stderr.isatty()
    return StepBar(notebook=notebook) if progress else NoBar()


class NoBar:
    """Shows nothing."""

    def update(self, event: VideoEvent) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class StepBar:
    """Denoising steps as they finish on the device, with the stage and the region."""

    def __init__(self, *, notebook: bool) -> None:
        self._bar: Any = _tqdm_class(notebook)(
            total=None,
            desc="connecting",
            unit="step",
            leave=True,
            # A terminal that does not know its width (a container's) counts as 80 wide.
            ncols=None if notebook else min(shutil.get_terminal_size().columns, MAX_COLUMNS),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps "
            "[{elapsed}<{remaining}{postfix}]",
        )
        self._size_bytes = 0

    def update(self, event: VideoEvent) -> None:
        """Moves the bar."""
        match event.kind:
            case "queued":
                ahead = f", {event.position} ahead" if event.position else ""
                self._bar.set_description_str(f"queued{ahead}")
            case "started":
                self._bar.set_description_str("started")
                self._bar.set_postfix_str(event.region)
            case "progress":
                self._step(event)
            case "restarted" | "reconnecting":
                self._bar.set_description_str(event.kind)
            case "completed":
                if self._bar.total is not None:
                    self._bar.n = self._bar.total
                self._bar.set_description_str("done")
            case "failed" | "cancelled":
                self._bar.set_description_str(event.kind)

    def _step(self, event: VideoEvent) -> None:
        if event.total_steps and self._bar.total != event.total_steps:
            self._bar.total = event.total_steps
        self._bar.n = event.step
        self._bar.set_description_str(event.stage.replace("_", " ") or "running")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    shell = ipython.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def _tqdm_class(notebook: bool) -> Any:
    if notebook and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_tqdm

        return notebook_tqdm
    from tqdm.std import tqdm as terminal_tqdm

    return terminal_tqdm
