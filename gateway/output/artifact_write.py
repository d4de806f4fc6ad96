"""A write by a thread that nobody need wait for: given up, it leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable


class RevocableWrite:
    """Writes once; when it was given up meanwhile, what it wrote goes again.

    Args:
        write: Blocks; writes whole or not at all, where nobody else does.
        undo: Blocks; removes what was written. Raises nothing.
    """

    def __init__(self, write: Callable[[], None], undo: Callable[[], None]) -> None:
        self._write = write
        self.undo = undo
        self._lock = threading.Lock()
        self._written = False
        self._given_up = False

    def run(self) -> None:
        """The thread's part; raises what ``write`` does."""
        if self._given_up:
            return
        self._write()
        with self._lock:
            self._written = True
            given_up = self._given_up
        if given_up:
            self.undo()

    def give_up(self) -> bool:
        """It is not wanted any more; whether :attr:`undo` is the caller's to call, in a thread."""
        with self._lock:
            self._given_up = True
            return self._written
