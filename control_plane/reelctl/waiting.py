"""Doing something again and again: until it is so, or until the person has seen enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from control_plane.reelctl.errors import CtlError, NoAnswerError

T = TypeVar("T")

POLL_S = 0.5


class Clock(Protocol):
    """Time for a program that does one thing after the other."""

    def monotonic(self) -> float:
        """Seconds that only rise."""
        ...

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def sleep(self, delay_s: float, /) -> None:
        """Returns after so many seconds."""
        ...


# The time module is such a clock.
SYSTEM_CLOCK: Clock = time


def wait_until(
    look: Callable[[], tuple[bool, str]],
    *,
    timeout_s: float,
    on_news: Callable[[str], None],
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Looks until it is so; a control plane that is away for a moment is asked again.

    Args:
        look: Says whether it is so, and how things are in a few words.
        timeout_s: Seconds to wait, at most.
        on_news: Told how things are, when that changes.
        clock: For tests.

    Raises:
        CtlError: It is not so yet.
    """
    deadline_s = clock.monotonic() + timeout_s
    said = ""
    while True:
        try:
            done, news = look()
        except NoAnswerError as error:
            done, news = False, error.message
        if done:
            return
        if news != said:
            on_news(news)
            said = news
        if clock.monotonic() >= deadline_s:
            raise CtlError(
                f"not after {timeout_s:g} s: {said}", hint="it goes on without this command"
            )
        clock.sleep(POLL_S)
