"""What the command line says when it cannot go on.

::

    CommandError            one line for the person, and what to do next; exit code 1
    ├── UsageError          the command was asked for something impossible; exit code 2
    ├── StateDirInUseError  another live mesh uses the folder
    ├── MeshStartError      a process did not come up; names its log
    └── StoppedError        Ctrl-C; says what became of the work; exit code 130
"""

from __future__ import annotations

from typing import ClassVar


class CommandError(Exception):
    """Ends the command with a message, and a hint on what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CommandError):
    """The command was asked for something impossible."""

    exit_code = 2


class StateDirInUseError(CommandError):
    """Another live mesh uses the folder."""


class MeshStartError(CommandError):
    """A process of the mesh did not come up."""


class StoppedError(CommandError):
    """The person pressed Ctrl-C."""

    exit_code = 130
