"""What ``reelctl`` says when it cannot go on.

::

    CtlError            one line for the person, and what to do next; exit code 1
    ├── UsageError      it was asked for something impossible; exit code 2
    ├── NotFoundError   nothing of that name
    ├── ChangedMeanwhileError  somebody else changed it since it was read
    ├── NoAnswerError   nobody answers at the endpoint
    └── StoppedError    Ctrl-C; exit code 130
"""

from __future__ import annotations

from typing import ClassVar


class CtlError(Exception):
    """Ends the command with a message, and a hint on what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CtlError):
    """It was asked for something impossible."""

    exit_code = 2


class NotFoundError(CtlError):
    """Nothing of that name is known there."""


class ChangedMeanwhileError(CtlError):
    """Somebody else changed it since it was read."""


class NoAnswerError(CtlError):
    """Nobody answers at the endpoint."""


class StoppedError(CtlError):
    """The person pressed Ctrl-C; there is nothing to say."""

    exit_code = 130
