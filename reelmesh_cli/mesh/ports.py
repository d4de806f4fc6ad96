"""Free TCP ports of this machine."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

# Below the range that Linux draws the ports of outgoing connections from: a process
# that is started again finds its port still free.
FIRST_PORT, LAST_PORT = 20_000, 32_000


@contextlib.contextmanager
def free_ports() -> Iterator[Iterator[int]]:
    """An iterator of ports of the loopback that are free when the block is left.

    Each stays bound inside the block, so that none is handed out twice. Between the end
    of the block and the bind of whoever is meant, another program may take one: the
    process then fails to start and says so.
    """
    candidates = list(range(FIRST_PORT, LAST_PORT))
    random.shuffle(candidates)
    with contextlib.ExitStack() as stack:

        def draw() -> Iterator[int]:
            for port in candidates:
                holder = socket.socket()
                try:
                    holder.bind(("127.0.0.1", port))
                except OSError:
                    holder.close()
                    continue
                stack.callback(holder.close)
                yield port

        yield draw()
