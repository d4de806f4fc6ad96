"""How benchmarks/edge.py asks its client, and sums up what it says."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import psutil

from benchmarks.support.edge_calls import Call, http
from benchmarks.support.table import Spread
from benchmarks.support.talk import Child

IN_FLIGHT = 16
FINE = frozenset({"200", "OK"})
# Turns of waiting for the gateway, some 20 ms each.
_ASKED = 3000
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Load:
    """How long and how often something is measured."""

    seconds: float
    """Of one round of one kind of call."""
    rounds: int
    samples: int
    """Single calls, one at a time."""


@dataclass(frozen=True)
class Rate:
    """Calls a second over some rounds, and what they cost."""

    per_s: list[float]
    latencies_s: list[float]
    cpu_ms: float
    """Of the server, for one call."""
    answers: dict[str, int]

    def row(self) -> list[str]:
        """Rate, latencies and cost, as text."""
        return [
            Spread.of(self.per_s).text(digits=0),
            f"{quantile(self.latencies_s, 50) * 1e3:.1f}",
            f"{quantile(self.latencies_s, 99) * 1e3:.1f}",
            f"{self.cpu_ms:.2f}",
        ]

    def figures(self) -> dict[str, Any]:
        """The same as numbers."""
        return {
            "per_s": self.per_s,
            "p50_s": quantile(self.latencies_s, 50),
            "p99_s": quantile(self.latencies_s, 99),
            "cpu_ms": self.cpu_ms,
            "answers": self.answers,
        }


def quantile(samples: Sequence[float], percent: int) -> float:
    """The sample that so many of a hundred do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


async def rates(
    client: Child,
    calls: Mapping[str, Call],
    load: Load,
    *,
    pids: Mapping[str, int],
    expect: Mapping[str, frozenset[str]] | frozenset[str] = FINE,
    settles: Mapping[str, str] = _NONE,
) -> dict[str, Rate]:
    """As many calls as the server answers, IN_FLIGHT at once; the kinds take turns.

    Args:
        client: Sends them.
        calls: By name.
        load: How long and how often.
        pids: The server of each.
        expect: What it must answer, for all or by name.
        settles: Gateways, by the names of calls that leave work behind: its time and its
            cost count too.

    Raises:
        RuntimeError: It answered otherwise.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for _ in range(load.rounds):
        for name, call in calls.items():
            before_s = cpu_s(pids[name])
            told = await client.ask("closed", call=call, in_flight=IN_FLIGHT, seconds=load.seconds)
            if name in settles:
                began_s = time.perf_counter()
                await idle(client, settles[name])
                told["seconds"] += time.perf_counter() - began_s
            told["cpu_s"] = cpu_s(pids[name]) - before_s
            wanted = expect if isinstance(expect, frozenset) else expect[name]
            if not told["answers"].keys() <= wanted:
                raise RuntimeError(f"{name}: answered {told['answers']}, not {sorted(wanted)}")
            found[name].append(told)
    return {name: _rate(rounds) for name, rounds in found.items()}


def _rate(rounds: list[dict[str, Any]]) -> Rate:
    counts = [len(told["latencies_s"]) for told in rounds]
    answers: dict[str, int] = {}
    for told in rounds:
        for name, count in told["answers"].items():
            answers[name] = answers.get(name, 0) + count
    return Rate(
        per_s=[count / told["seconds"] for count, told in zip(counts, rounds, strict=True)],
        latencies_s=[each for told in rounds for each in told["latencies_s"]],
        cpu_ms=sum(told["cpu_s"] for told in rounds) / sum(counts) * 1e3,
        answers=answers,
    )


async def singly(client: Child, calls: Mapping[str, Call], samples: int) -> dict[str, list[float]]:
    """Seconds of single calls, the kinds in turn.

    Raises:
        RuntimeError: One was not answered well.
    """
    told = await client.ask("in_turn", calls=dict(calls), times=samples)
    wrong = {name for name in told["answers"] if name.rpartition(" ")[2] not in FINE}
    if wrong:
        raise RuntimeError(f"answered {sorted(wrong)}")
    latencies: dict[str, list[float]] = told["latencies_s"]
    return latencies


async def video_of(client: Child, call: Call) -> str:
    """Creates a video over HTTP; its id."""
    told = await client.ask("once", call=call)
    body = bytes.fromhex(told["body"])
    if told["answer"] != "200":
        raise RuntimeError(f"a create was answered {told['answer']}: {body[:300]!r}")
    return str(json.loads(body)["id"])


async def idle(client: Child, address: str) -> None:
    """Waits until a gateway holds no job that has not ended."""
    call = http(address, "GET", "/metrics")
    for _ in range(_ASKED):
        told = await client.ask("once", call=call)
        if "\nreelmesh_gateway_jobs_live 0.0\n" in bytes.fromhex(told["body"]).decode():
            return
        await asyncio.sleep(0.02)
    raise RuntimeError("the gateway's jobs did not end")


async def completed(client: Child, address: str, token: str, video_id: str) -> None:
    """Waits for a video to be complete: the end of its events."""
    call = http(address, "GET", f"/v1/videos/{video_id}", token=token)
    for _ in range(_ASKED):
        told = await client.ask("once", call=call)
        status = json.loads(bytes.fromhex(told["body"])).get("status")
        if status == "completed":
            return
        if status == "failed":
            break
        await asyncio.sleep(0.02)
    raise RuntimeError(f"{video_id} is {status}")


def middle(samples: Sequence[float]) -> float:
    """The median."""
    return statistics.median(samples)
