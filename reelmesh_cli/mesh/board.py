"""What each process of the mesh is doing, told to whoever looks."""

from __future__ import annotations

from typing import Protocol

from reelmesh_cli.mesh.topology import ProcessPlan


class Board(Protocol):
    """Where the mesh reports to."""

    def say(self, plan: ProcessPlan, state: str) -> None:
        """``plan``'s process is now doing ``state``; called on change."""
        ...

    def warn(self, text: str) -> None:
        """Something happened that a person should know."""
        ...


class SilentBoard:
    """Keeps what was said last; for tests."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.warnings: list[str] = []

    def say(self, plan: ProcessPlan, state: str) -> None:
        """Keeps it."""
        self.states[plan.id] = state

    def warn(self, text: str) -> None:
        """Keeps it."""
        self.warnings.append(text)
