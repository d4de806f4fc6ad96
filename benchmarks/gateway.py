"""What the gateway adds to a node that answers at once, beside nginx and Envoy.

``python -m benchmarks.gateway [--requests 300] [--mib 64]``

One instant node (see benchmarks/support/instant_node.py) is reached directly, through
the gateway with everything on (token, validation, placement, spool, artifact, tracing),
through nginx's grpc_pass and through Envoy with jwt_authn and a local rate limit. The
four ways take turns, request by request, in one run. The client counts bytes and parses
nothing but the kind of each event, so that it costs all ways the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from grpc import aio
from reelmesh.v1 import node_service_pb2, video_pb2, video_service_pb2

from benchmarks.support.site import GatewaySite, start_gateway_site
from benchmarks.support.table import Spread, print_table

SMALL_BYTES = 256 * 1024
WARM_UP = 30
CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Sample:
    """Seconds from the call to what the client saw, and the bytes it saw."""

    first_event_s: float
    last_byte_s: float
    terminal_s: float
    video_bytes: int


class Way:
    """One way to the node: a channel, a method, and how to write a request for it."""

    def __init__(self, name: str, address: str, *, gateway: bool, token: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self._gateway = gateway
        self._channel = aio.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", 4 << 20),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        method = (
            "/reelmesh.v1.VideoService/GenerateVideo" if gateway else "/reelmesh.v1.NodeService/Run"
        )
        self._call = self._channel.unary_stream(method)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._count = 0

    def _request(self, total_bytes: int) -> bytes:
        if self._gateway:
            spec = video_pb2.VideoSpec(prompt=str(total_bytes))
            return video_service_pb2.GenerateVideoRequest(spec=spec).SerializeToString()
        self._count += 1
        return node_service_pb2.RunRequest(
            job_id=f"{self.name}-{self._count}",
            epoch=1,
            attempt=1,
            spec=video_pb2.ResolvedSpec(prompt=str(total_bytes), num_frames=17),
        ).SerializeToString()

    async def run(self, total_bytes: int) -> Sample:
        """One whole video; checks that every byte came."""
        started = time.perf_counter()
        first = last = 0.0
        received = 0
        completed = False
        async for message in self._call(
            self._request(total_bytes), metadata=self._metadata, timeout=CALL_TIMEOUT_S
        ):
            now = time.perf_counter()
            kind, size = self._look(message)
            if kind == "started":
                first = now
            elif kind == "chunk":
                last = now
                received += size
            elif kind == "completed":
                completed = True
            elif kind in {"failed", "cancelled", "busy"}:
                raise RuntimeError(f"{self.name}: the run ended as {kind}")
        ended = time.perf_counter()
        if received != total_bytes or not completed:
            raise RuntimeError(f"{self.name}: {received} of {total_bytes} bytes came")
        return Sample(first - started, last - started, ended - started, received)

    def _look(self, message: bytes) -> tuple[str, int]:
        # Chunks are recognised by their size: parsing them would cost the client more
        # than the proxies cost, and hide what is measured.
        if len(message) > 4096:
            return "chunk", len(message) - self._chunk_frame(message)
        if self._gateway:
            event = video_service_pb2.GenerateVideoResponse.FromString(message).event
            return event.WhichOneof("event") or "", 0
        response = node_service_pb2.RunResponse.FromString(message)
        if response.WhichOneof("result") == "busy":
            return "busy", 0
        return response.event.WhichOneof("event") or "", 0

    def _chunk_frame(self, message: bytes) -> int:
        """Bytes of a chunk message that are not video: exact, from a parse of its head."""
        if not hasattr(self, "_frames"):
            self._frames: dict[int, int] = {}
        known = self._frames.get(len(message))
        if known is None:
            if self._gateway:
                event = video_service_pb2.GenerateVideoResponse.FromString(message).event
                known = len(message) - len(event.chunk.data)
            else:
                node_event = node_service_pb2.RunResponse.FromString(message).event
                known = len(message) - len(node_event.chunk.data)
            self._frames[len(message)] = known
        return known

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


@dataclass
class Result:
    """What one way was measured at."""

    samples: list[Sample] = field(default_factory=list)
    cpu_s: float = 0.0
    rates: dict[int, list[float]] = field(default_factory=dict)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process and its children (nginx's worker is one)."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(t.user + t.system for t in (member.cpu_times() for member in family))


async def measure_latency(ways: list[Way], requests: int) -> dict[str, Result]:
    """Small videos, the ways in turn; CPU is that of the process in the middle."""
    results = {way.name: Result() for way in ways}
    for _ in range(WARM_UP):
        for way in ways:
            await way.run(SMALL_BYTES)
    for _ in range(requests):
        for way in ways:
            before = cpu_seconds(way.pid) if way.pid else 0.0
            results[way.name].samples.append(await way.run(SMALL_BYTES))
            if way.pid:
                results[way.name].cpu_s += cpu_seconds(way.pid) - before
    return results


async def measure_rate(
    ways: list[Way], results: dict[str, Result], *, total_bytes: int, rounds: int
) -> None:
    """Large videos in 256 KiB messages, one stream and four at once, the ways in turn."""
    for streams in (1, 4):
        for _ in range(rounds):
            for way in ways:
                started = time.perf_counter()
                await asyncio.gather(*(way.run(total_bytes) for _ in range(streams)))
                elapsed = time.perf_counter() - started
                rate = streams * total_bytes / elapsed
                results[way.name].rates.setdefault(streams, []).append(rate)


def report(results: dict[str, Result]) -> None:
    """Prints both tables and the ratios against Envoy."""
    direct = results["direct"]
    base_first = Spread.of([s.first_event_s for s in direct.samples]).median
    base_last = Spread.of([s.last_byte_s for s in direct.samples]).median
    rows = []
    for name, result in results.items():
        first = Spread.of([s.first_event_s for s in result.samples])
        last = Spread.of([s.last_byte_s for s in result.samples])
        end = Spread.of([s.terminal_s for s in result.samples])
        rows.append(
            [
                name,
                first.text(scale=1e3),
                f"{(first.median - base_first) * 1e3:+.2f}",
                last.text(scale=1e3),
                f"{(last.median - base_last) * 1e3:+.2f}",
                end.text(scale=1e3),
                f"{result.cpu_s / len(result.samples) * 1e3:.2f}" if result.cpu_s else "-",
            ]
        )
    print_table(
        f"Latency, {len(direct.samples)} requests of 256 KiB each way; "
        "ms: median [p10 … p90], added = median less direct's",
        ["way", "first event", "added", "last byte", "added", "end of stream", "cpu ms/request"],
        rows,
    )
    rate_rows = []
    for name, result in results.items():
        rate_rows.append(
            [name]
            + [Spread.of(rates).text(scale=1e-6, digits=0) for rates in result.rates.values()]
        )
    print_table(
        "Bytes per second at 256 KiB messages; MB/s: median [p10 … p90]",
        ["way", "1 stream", "4 streams"],
        rate_rows,
    )
    if "envoy" in results:
        _ratios(results, base_first, base_last)


def _ratios(results: dict[str, Result], base_first: float, base_last: float) -> None:
    def added(name: str) -> tuple[float, float]:
        samples = results[name].samples
        first = Spread.of([s.first_event_s for s in samples]).median - base_first
        last = Spread.of([s.last_byte_s for s in samples]).median - base_last
        return first, last

    ours, theirs = added("gateway"), added("envoy")
    print(f"\nadded latency, gateway / Envoy: first event {ours[0] / theirs[0]:.2f} x, ", end="")
    print(f"last byte {ours[1] / theirs[1]:.2f} x (aim: at most 2)")
    for streams in (1, 4):
        rate = Spread.of(results["gateway"].rates[streams]).median
        peer = Spread.of(results["envoy"].rates[streams]).median
        print(
            f"bytes per second, gateway / Envoy, {streams} streams: {rate / peer:.2f} x (aim: 0.6)"
        )


@contextlib.asynccontextmanager
async def open_ways(site: GatewaySite) -> AsyncIterator[list[Way]]:
    """The four ways, or fewer where a peer is not installed (and then says so)."""
    ways = [
        Way("direct", site.node, gateway=False, token=site.token, pid=0),
        Way("gateway", site.gateway, gateway=True, token=site.token, pid=site.gateway_pid),
    ]
    for name, (address, pid) in site.peers.items():
        ways.append(Way(name, address, gateway=False, token=site.token, pid=pid))
    try:
        yield ways
    finally:
        for way in ways:
            await way.close()


async def main() -> None:
    """Starts the site, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--mib", type=int, default=64, help="size of the large video")
    parser.add_argument("--rounds", type=int, default=7, help="of the large video, 2 or more")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as folder:
        async with start_gateway_site(Path(folder)) as site, open_ways(site) as ways:
            for missing in site.missing:
                print(f"{missing} is not installed: its row is left out")
            results = await measure_latency(ways, args.requests)
            await measure_rate(ways, results, total_bytes=args.mib << 20, rounds=args.rounds)
    report(results)


if __name__ == "__main__":
    grpc.aio.init_grpc_aio()
    asyncio.run(main())
