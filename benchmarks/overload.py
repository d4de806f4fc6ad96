"""A region that is asked for ten times what it can do.

``python -m benchmarks.overload [--minutes 1] [--times 10] [--seed 1] [-o FILE]``

One region of real processes: etcd, a control plane, two gateways, and nodes of which each
run holds a slot for a fixed time (benchmarks/support/slot_node.py), so that the capacity is
known exactly. Clients of four tenants offer gRPC streams, gRPC creates and HTTP creates,
some with deadlines and some with idempotency keys, at a fixed rate that does not wait for
answers. It is checked that

* what comes out is at least 95% of the capacity, second by second shown;
* memory of gateways and control plane is bounded: peak, and slope in the second half;
* every refusal has a delay after which to come back;
* nothing that was acknowledged is lost: each ends by its record, as its client was told;
* and the queues are empty soon after.

Exits with 1 where one of them does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from benchmarks.machine import LoopDelay
from benchmarks.support.edge_site import tokens_of
from benchmarks.support.overload_history import by_second, goodput, late, summary, violations
from benchmarks.support.overload_load import Crowd, Door
from benchmarks.support.site import plan_site, start_node, start_part, until_ready
from benchmarks.support.table import print_table
from reelkit.tasks import TaskScope
from reelmesh_cli.mesh.keys import write_keys
from reelmesh_cli.mesh.ports import free_ports

TENANTS = ("acme", "globex", "initech", "umbrella")
NODES, SLOTS, HOLD_S = 4, 2, 0.5
CAPACITY_PER_S = NODES * SLOTS / HOLD_S
MAX_WAITING = 100
GOODPUT_AIM = 0.95
# Until every slot has its second job, and what was asked before the load began is through.
RAMP_S = 3.0
# What waits, at the nodes' speed, and as much again.
EMPTY_WITHIN_S = 2 * 2 * MAX_WAITING / CAPACITY_PER_S + 10.0
BOUNDS_MIB = {"gateway": 160.0, "control-plane": 140.0}
MAX_LISTED = 20

SETTINGS = {
    "gateway": {"runs": {"max_waiting": MAX_WAITING}},
    # These nodes answer no probes.
    "control-plane": {"health": {"probe": {"enabled": False}, "canary": {"enabled": False}}},
}


@dataclass
class Memory:
    """Resident MiB of processes, once a second."""

    pids: dict[str, int]
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    async def watch(self) -> None:
        """Reads them until it is cancelled."""
        while True:
            for name, pid in self.pids.items():
                rss = psutil.Process(pid).memory_info().rss / 2**20
                self.samples.setdefault(name, []).append((time.monotonic(), rss))
            await asyncio.sleep(1.0)

    def peak(self, name: str) -> float:
        """The most."""
        return max(rss for _, rss in self.samples[name])

    def slope_per_minute(self, name: str) -> float:
        """By how much it grew in the second half."""
        half = self.samples[name][len(self.samples[name]) // 2 :]
        if len(half) < 2:
            return 0.0
        times, values = zip(*half, strict=True)
        return statistics.linear_regression(times, values).slope * 60


@dataclass(frozen=True)
class Region:
    """The processes that are loaded."""

    doors: list[Door]
    pids: dict[str, int]
    tokens: dict[str, str]

    async def live_jobs(self) -> float:
        """Jobs that the gateways hold."""
        total = 0.0
        async with aiohttp.ClientSession() as session:
            for door in self.doors:
                async with session.get(f"{door.http}/metrics") as answer:
                    lines = (await answer.text()).splitlines()
                total += sum(
                    float(line.split()[1])
                    for line in lines
                    if line.startswith(("reelmesh_gateway_jobs_live ",))
                )
        return total


@contextlib.asynccontextmanager
async def region(folder: Path):  # noqa: ANN201 - an async generator of Region
    """Starts everything; stops it when the block is left."""
    async with contextlib.AsyncExitStack() as stack:
        with free_ports() as ports:
            plan = plan_site(folder, ports, gateways=2, settings=SETTINGS)
        write_keys(folder / "keys", now=dt.datetime.now(dt.UTC))
        pids = {}
        for part in plan.of_role("etcd", "control-plane", "gateway"):
            pids[part.id] = (await start_part(stack, part, folder)).pid
        where = plan.regions["bench"]
        for number in range(NODES):
            name = f"slots-{number}"
            args = (f"--name={name}", f"--slots={SLOTS}", f"--hold-s={HOLD_S}")
            await start_node(
                stack,
                folder,
                "benchmarks.support.slot_node",
                *args,
                control_plane=where.control_plane,
                name=name,
            )
        doors = [Door(each["http"], each["grpc"]) for each in where.gateways]
        for door in doors:
            await until_ready(door.http)
        yield Region(doors, pids, tokens_of(folder / "keys", TENANTS))


async def run(args: argparse.Namespace, folder: Path) -> bool:
    """Loads the region and reports; whether everything held."""
    for_s = args.minutes * 60
    async with (
        region(folder) as site,
        TaskScope("memory") as scope,
        Crowd(site.doors, site.tokens, rng=random.Random(args.seed)) as crowd,  # noqa: S311
    ):
        memory = Memory(site.pids)
        scope.spawn(memory.watch(), name="memory")
        began_s = time.time()
        async with LoopDelay() as delay:
            await crowd.offer(per_s=args.times * CAPACITY_PER_S, for_s=for_s)
        ended_s = time.time()
        answered = await crowd.answered(within_s=EMPTY_WITHIN_S)
        empty_s = await _empty(site, since_s=ended_s)
        standings = await crowd.standings()
        found = violations(crowd.history, standings)
        share = goodput(
            standings, from_s=began_s + RAMP_S, to_s=ended_s, capacity_per_s=CAPACITY_PER_S
        )
        seconds = by_second(standings, from_s=began_s, to_s=ended_s)
    took_s = ended_s - began_s
    print(
        f"\noffered {len(crowd.history)} requests in {took_s:.1f} s "
        f"({len(crowd.history) / took_s / CAPACITY_PER_S:.1f} times the capacity of "
        f"{CAPACITY_PER_S:g}/s); this client's loop was late by p99 "
        f"{delay.delay.p99_s * 1e3:.0f} ms"
    )
    print_table("What became of them", ["way", "end", "count"], summary(crowd.history, standings))
    verdicts = _verdicts(site, memory, share, found, answered, empty_s)
    print_table("Checks", ["what", "measured", "bound", ""], verdicts)
    missed, dated = late(crowd.history, standings)
    print(f"\n{missed} of {dated} videos that were taken with a deadline missed it")
    print("completed in each second:", " ".join(map(str, seconds)))
    for text in found[:MAX_LISTED]:
        print(text)
    if len(found) > MAX_LISTED:
        print(f"... and {len(found) - MAX_LISTED} more")
    if args.output:
        result = {"goodput": share, "by_second": seconds, "violations": found, "checks": verdicts}
        args.output.write_text(json.dumps(result, indent=2))
    return all(row[-1] == "met" for row in verdicts)


async def _empty(site: Region, *, since_s: float) -> float | None:
    """Seconds until no job is left; None: some are."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EMPTY_WITHIN_S):
            while await site.live_jobs():  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(0.1)
            return time.time() - since_s
    return None


def _verdicts(
    site: Region,
    memory: Memory,
    share: float,
    found: list[str],
    answered: bool,
    empty_s: float | None,
) -> list[list[str]]:
    def row(what: str, measured: str, bound: str, *, met: bool) -> list[str]:
        return [what, measured, bound, "met" if met else "missed"]

    emptied = "not" if empty_s is None else f"{empty_s:.1f} s"
    rows = [
        row("goodput of the capacity", f"{share:.1%}", "95%", met=share >= GOODPUT_AIM),
        row("rules broken", str(len(found)), "0", met=not found),
        row("every request was answered", str(answered), "True", met=answered),
        row("queues empty after", emptied, f"{EMPTY_WITHIN_S:.0f} s", met=empty_s is not None),
    ]
    for name in site.pids:
        role = next((role for role in BOUNDS_MIB if role in name or role.split("-")[0] in name), "")
        if not role:
            continue
        peak, slope = memory.peak(name), memory.slope_per_minute(name)
        rows.append(
            row(
                f"peak memory of {name}",
                f"{peak:.0f} MiB ({slope:+.1f} a minute in the second half)",
                f"{BOUNDS_MIB[role]:.0f} MiB",
                met=peak <= BOUNDS_MIB[role],
            )
        )
    return rows


def main() -> None:
    """Starts a region, loads it, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--times", type=float, default=10.0, help="the load, in capacities")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="writes the result as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as folder:
        held = asyncio.run(run(args, Path(folder)))
    if not held:
        sys.exit("a check did not hold")


if __name__ == "__main__":
    main()
