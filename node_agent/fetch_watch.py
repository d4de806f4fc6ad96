"""What a fetch tells about itself: bytes as they come, a silence, errors without secrets."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator

Progress = Callable[[int, int], None]

# Looks per limit: a silence is noticed within a tenth of it.
_LOOKS = 10

_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(?<=\S)\?[^\s'\"]*=[^\s'\"]*")


class StallWatch:
    """Raises the alarm when a peer that is waited for sends nothing for a while.

    Looks are counted, not read from a clock: a machine that slept, or a process that was
    held, has not been waiting for its peer meanwhile.

    Args:
        limit_s: The silence that is borne.
        on_stall: Called from a thread with the sentence for the operator; what hangs
            cannot be interrupted from there, so in production it ends the process.
    """

    def __init__(self, limit_s: float, on_stall: Callable[[str], None]) -> None:
        self.limit_s = limit_s
        self._on_stall = on_stall
        self._looks_without = 0

    def beat(self) -> None:
        """Something came."""
        self._looks_without = 0

    @contextlib.contextmanager
    def waiting(self, where: str, poll: Callable[[], None] | None = None) -> Iterator[None]:
        """Watches while the block runs; outside of such blocks silence means nothing.

        Args:
            where: Whom the alarm names.
            poll: Called at each look, for bytes that announce themselves in no other way.
        """
        left = threading.Event()

        def look() -> None:
            while not left.wait(self.limit_s / _LOOKS):
                self._looks_without += 1
                if poll is not None:
                    poll()
                if self._looks_without >= _LOOKS:
                    self._on_stall(
                        f"{where}: sent nothing for {self.limit_s:g} s (model.fetch_stall_s); is "
                        "it up, and the network between? What has come is kept for the next try"
                    )
                    return

        self.beat()
        thread = threading.Thread(target=look, name="stall-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()


def awaited(blocks: Iterable[bytes], watch: StallWatch, where: str) -> Iterator[bytes]:
    """The same blocks; only the time that is waited for the next one counts as silence.

    What whoever reads does in between, such as waiting for its share of the bandwidth, is its own.
    """
    waiting = True

    def poll() -> None:
        if not waiting:
            watch.beat()

    with watch.waiting(where, poll):
        for block in blocks:
            waiting = False
            yield block
            watch.beat()
            waiting = True


class Meter:
    """Counts bytes over all threads and tells about every hundredth."""

    def __init__(self, total_bytes: int, on_progress: Progress) -> None:
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._done_bytes = self._told_bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Adds bytes that came; negative for those that proved useless."""
        with self._lock:
            self._done_bytes += count
            news_bytes = abs(self._done_bytes - self._told_bytes)
            if news_bytes * 100 >= self._total_bytes or self._done_bytes == self._total_bytes:
                self._told_bytes = self._done_bytes
                self._on_progress(self._done_bytes, self._total_bytes)


def public_url(url: str) -> str:
    """The URL as it may be shown: without user, password and query."""
    return _QUERY.sub("", _USERINFO.sub("", url))


def first_line(error: BaseException) -> str:
    """What an error says, in one line and without the secrets that URLs may hold.

    Obstore and the Hub append pages of debugging to their messages.
    """
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
    return public_url(said)
