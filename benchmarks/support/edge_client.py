"""The client of benchmarks/edge.py, as a process of its own: sends calls, times the answers.

A call is told as JSON. Over HTTP it is the bytes to send, so that a request costs little
here and the same at every server; over gRPC the method and its message. In both, ``@N@``
stands for a number that no other request has and ``@ADDRESS@`` for an address likewise.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from reelmesh.v1 import video_service_pb2

from benchmarks.support.talk import Answer, answer_questions

CALL_S = 30.0
MAX_OPEN = 128
_READ_BYTES = 1 << 20
# Always as many digits, so that a request's length does not change.
_numbers = itertools.count(10_000_000)


def _filled(text: str) -> bytes:
    number = next(_numbers)
    address = f"100.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return text.replace("@N@", str(number)).replace("@ADDRESS@", address).encode()


class Http:
    """Keep-alive connections to one server."""

    def __init__(self, call: dict[str, Any]) -> None:
        self._call = call
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._varies = "@" in call["request"]
        self._request = _filled(call["request"])

    async def ask(self) -> tuple[str, bytes]:
        """Sends one request; its status and body."""
        connection = self._idle.pop() if self._idle else await self._connect()
        reader, writer = connection
        writer.write(_filled(self._call["request"]) if self._varies else self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _header(head, b"content-length:")
        body = await reader.readexactly(int(length)) if length else b""
        if _header(head, b"connection:").lower() == b"close":
            writer.close()
        else:
            self._idle.append(connection)
        return head[9:12].decode(), body

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self._call["address"].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return reader, writer

    async def close(self) -> None:
        """Closes all that are open."""
        for _, writer in self._idle:
            writer.close()


def _header(head: bytes, name: bytes) -> bytes:
    at = head.lower().find(b"\r\n" + name)
    if at < 0:
        return b""
    return head[at + 2 + len(name) : head.index(b"\r\n", at + 2)].strip()


class Grpc:
    """One channel to one server."""

    def __init__(self, call: dict[str, Any]) -> None:
        self._channel = aio.insecure_channel(call["address"])
        self._method = self._channel.unary_unary(f"/reelmesh.v1.VideoService/{call['method']}")
        self._metadata = [(name, value) for name, value in call["metadata"]]
        self._varies = any("@" in value for _, value in self._metadata)
        self._request = bytes.fromhex(call["message"])
        self._seeded = call["method"] == "CreateVideo"

    async def ask(self) -> tuple[str, bytes]:
        """Sends one request; its status (the reason of an error) and message."""
        request, metadata = self._request, self._metadata
        if self._seeded:
            made = video_service_pb2.CreateVideoRequest.FromString(request)
            made.spec.seed = next(_numbers)
            request = made.SerializeToString()
        if self._varies:
            metadata = [(name, _filled(value).decode()) for name, value in metadata]
        try:
            answer = await self._method(request, metadata=metadata, timeout=CALL_S)
        except aio.AioRpcError as error:
            return _reason(error), b""
        return grpc.StatusCode.OK.name, answer

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def _reason(error: aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
    return info.reason or error.code().name


def _line(call: dict[str, Any]) -> Http | Grpc:
    return Http(call) if call["way"] == "http" else Grpc(call)


class Measured:
    """What a run of calls came to."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.answers: Counter[str] = Counter()
        self.began_s = time.perf_counter()

    async def one(self, ask: Callable[[], Awaitable[tuple[str, bytes]]], from_s: float) -> None:
        """One call, timed from when it was due."""
        try:
            status, _ = await ask()
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            status = type(error).__name__
        self.latencies_s.append(time.perf_counter() - from_s)
        self.answers[status] += 1

    def answer(self) -> Answer:
        """As it is told."""
        return {
            "latencies_s": self.latencies_s,
            "answers": dict(self.answers),
            "seconds": time.perf_counter() - self.began_s,
        }


async def closed(call: dict[str, Any], in_flight: int, seconds: float) -> Answer:
    """So many calls at once, each followed by the next, for so long."""
    line = _line(call)
    warm = Measured()
    await asyncio.gather(*(warm.one(line.ask, warm.began_s) for _ in range(in_flight)))
    measured = Measured()
    ends_s = measured.began_s + seconds

    async def again() -> None:
        while (now_s := time.perf_counter()) < ends_s:
            await measured.one(line.ask, now_s)

    await asyncio.gather(*(again() for _ in range(in_flight)))
    told = measured.answer()
    await line.close()
    return told


async def opened(flows: dict[str, dict[str, Any]], seconds: float) -> Answer:
    """Calls at rates that do not wait for answers, but for at most MAX_OPEN of each.

    Args:
        flows: By name, each a ``call`` and how many of it ``per_s``.
        seconds: For so long.
    """
    async with asyncio.TaskGroup() as group:
        tasks = {
            name: group.create_task(_flow(flow["call"], flow["per_s"], seconds))
            for name, flow in flows.items()
        }
    return {name: task.result() for name, task in tasks.items()}


async def _flow(call: dict[str, Any], per_s: float, seconds: float) -> Answer:
    line = _line(call)
    warm = Measured()
    await asyncio.gather(*(warm.one(line.ask, warm.began_s) for _ in range(4)))
    gate = asyncio.Semaphore(MAX_OPEN)
    measured = Measured()

    async def one(due_s: float) -> None:
        async with gate:
            await measured.one(line.ask, due_s)

    async with asyncio.TaskGroup() as group:
        for number in range(int(per_s * seconds)):
            due_s = measured.began_s + number / per_s
            pause_s = due_s - time.perf_counter()
            # A few that are late are sent at once; a sleep for each would make more late.
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            group.create_task(one(due_s))
    told = measured.answer()
    await line.close()
    return told


async def once(call: dict[str, Any]) -> Answer:
    """One call, and what it says."""
    line = _line(call)
    status, body = await line.ask()
    await line.close()
    return {"answer": status, "body": body.hex()}


async def in_turn(calls: dict[str, dict[str, Any]], times: int) -> Answer:
    """Single calls, each of them in turn, so that all see the same minute."""
    lines = {name: _line(call) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    answers: Counter[str] = Counter()
    for turn in range(-10, times):
        for name, line in lines.items():
            began_s = time.perf_counter()
            status, _ = await line.ask()
            if turn >= 0:
                found[name].append(time.perf_counter() - began_s)
                answers[f"{name} {status}"] += 1
    for line in lines.values():
        await line.close()
    return {"latencies_s": found, "answers": dict(answers)}


async def download(address: str, request: str, connections: int, size: int) -> Answer:
    """Bytes a second of so many downloads at once, each over a connection that is open."""
    host, _, port = address.rpartition(":")

    def one(sock: socket.socket, totals: list[int]) -> None:
        sock.sendall(request.encode())
        buffer = bytearray(_READ_BYTES)
        got = sock.recv_into(buffer)
        head = bytes(buffer[:got]).partition(b"\r\n\r\n")[0]
        total = got - len(head) - 4
        wanted = int(_header(head + b"\r\n", b"content-length:"))
        while total < wanted and (got := sock.recv_into(buffer)):
            total += got
        totals.append(total)

    def all_at_once() -> float:
        sockets = [socket.create_connection((host, int(port))) for _ in range(connections)]
        totals: list[int] = []
        began_s = time.perf_counter()
        threads = [threading.Thread(target=one, args=(sock, totals)) for sock in sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed_s = time.perf_counter() - began_s
        for sock in sockets:
            sock.close()
        if totals != [size] * connections:
            raise RuntimeError(f"{totals} bytes came, {size} were expected of each")
        return connections * size / elapsed_s

    return {"bytes_per_s": await asyncio.to_thread(all_at_once)}


def main() -> None:
    """Starts as a child of benchmarks/edge.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, default=-1, help="the one it runs on")
    args = parser.parse_args()
    if args.core >= 0:
        os.sched_setaffinity(0, {args.core})
    asyncio.run(
        answer_questions(
            {
                "closed": closed,
                "open": opened,
                "once": once,
                "in_turn": in_turn,
                "download": download,
            }
        )
    )


if __name__ == "__main__":
    main()
