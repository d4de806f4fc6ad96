"""A gateway's links to nodes as a process of its own, which tests stop, block and watch.

    python tests/support/link_watcher.py ADDRESS...

Prints a line of JSON for each change of a link: its node and whether it is connected.
Told ``block SECONDS`` on stdin it blocks its own event loop for so long.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time

from reelmesh.v1 import control_plane_service_pb2

from gateway.fleet.node_link import NodeLink, NodeLinks
from reelkit.clock import SystemClock
from reelkit.logs import setup_logging
from reelkit.tasks import TaskScope


async def main() -> None:
    told: dict[str, bool] = {}

    def tell(link: NodeLink) -> None:
        if told.get(link.node_id) != link.connected:
            told[link.node_id] = link.connected
            say({"node": link.node_id, "connected": link.connected})

    links = NodeLinks(clock=SystemClock())
    links.on_change = tell
    loop = asyncio.get_running_loop()
    async with TaskScope("links") as scope:
        links.spawn_in(scope)
        for number, address in enumerate(sys.argv[1:]):
            record = control_plane_service_pb2.NodeRecord(node_id=f"n{number}", address=address)
            links.open(record)
        threading.Thread(target=obey, args=(loop,), daemon=True).start()
        await asyncio.Event().wait()


def obey(loop: asyncio.AbstractEventLoop) -> None:
    for line in sys.stdin:
        seconds = float(line.split()[1])
        loop.call_soon_threadsafe(block, seconds)


def block(seconds: float) -> None:
    time.sleep(seconds)
    say({"blocked": seconds})


def say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # To stderr: stdout is for what tests read.
    setup_logging(level="error", fmt="console", process="link-watcher")
    asyncio.run(main())
