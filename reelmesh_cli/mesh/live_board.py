"""The mesh as a person sees it: a live table in a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from reelmesh_cli.mesh.topology import ProcessPlan

_COLOURS = {
    "ready": "green",
    "stopped": "dim",
    "stopping": "yellow",
    "exit": "red",
    "killed": "red",
    "unhealthy": "red",
}


class LiveBoard:
    """Shows what each process is doing. Enter it to show, leave it to stop showing."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._states: dict[str, str] = {}
        self._live: Live | None = None

    def expect(self, plans: Sequence[ProcessPlan]) -> None:
        """Lists these before they are started."""
        for plan in plans:
            self._states.setdefault(plan.id, "planned")
        self._refresh()

    def say(self, plan: ProcessPlan, state: str) -> None:
        """Shows a change."""
        if self._states.get(plan.id) == state:
            return
        self._states[plan.id] = state
        if self._live is not None:
            self._refresh()
        elif not self._quiet:
            self._console.print(f"{plan.id:<16} {escape(state)}")

    def warn(self, text: str) -> None:
        """Prints it above the table."""
        if not self._quiet:
            self._console.print(f"[yellow]{escape(text)}[/]")

    def hide(self) -> None:
        """Takes the table away, leaving the terminal as it was; idempotent."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(
                self._table(), console=self._console, refresh_per_second=8, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hide()

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def _table(self) -> Table:
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="ellipsis", no_wrap=True)
        for name, state in self._states.items():
            colour = next((c for word, c in _COLOURS.items() if state.startswith(word)), "cyan")
            table.add_row(name, f"[{colour}]{escape(state)}[/]")
        return table
