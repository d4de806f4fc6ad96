"""One run: a mesh, clients, faults, and afterwards what became of everything."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.chaos.faults import hurt, schedule
from tests.chaos.history import TERMINAL, History, Kind, Standing, Wish
from tests.chaos.load import PATIENCE_S, Clients
from tests.chaos.members import hashes
from tests.support.faulty_mesh import FaultyMesh, faulty_mesh

WISHES = tuple(
    Wish(prompt, seed) for prompt in ("a red ball", "a blue square") for seed in (1, 2, 3)
)
CLIENTS = 3
SETTLE_S = 60.0
_KINDS: tuple[Kind, ...] = ("stream", "stream", "durable", "durable", "cancel")

# As in production, but for leases that run out within the run, and answers that come soon.
SETTINGS = {
    "control-plane": {
        "lease_ttl_s": 4.0,
        # Here every node falls again and again, and none is at fault.
        "health": {"flapping": {"times": 1000}},
    },
    "node-agent": {"log": {"format": "json"}},
    "gateway": {"log": {"format": "json"}, "runs": {"client_grace_s": 5.0}},
}


async def run_chaos(
    state_dir: Path,
    *,
    model: Path,
    seed: int,
    lasts_s: float,
    say: Callable[[str], None] = lambda _text: None,
) -> History:
    """The history of a run of about ``lasts_s`` once the mesh is ready.

    Raises:
        AssertionError: Members of an etcd cluster do not hold the same data.
    """
    history = History()
    async with faulty_mesh(
        state_dir,
        model=model,
        regions=("ap", "eu"),
        nodes_per_region=2,
        gateways_per_region=2,
        control_planes_per_region=2,
        etcd="separate",
        etcd_members={"ap": 3},
        settings=SETTINGS,
    ) as mesh:
        clients = Clients(mesh, history, rng=random.Random(seed))
        try:
            for wish in WISHES:
                history.answers[wish] = await clients.answer_of(wish)
            say("the mesh serves")
            await _under_load(mesh, clients, history, seed=seed, lasts_s=lasts_s, say=say)
            say("everything is healed; waiting for the last videos")
            await _note_standings(mesh, clients, history)
        finally:
            await clients.close()
        history.completions = _completions(mesh)
    return history


async def _under_load(
    mesh: FaultyMesh,
    clients: Clients,
    history: History,
    *,
    seed: int,
    lasts_s: float,
    say: Callable[[str], None],
) -> None:
    enough = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(_client(clients, enough, random.Random(f"{seed}/{number}")))
        try:
            await _hurt_in_turn(mesh, history, seed=seed, lasts_s=lasts_s, say=say)
        finally:
            mesh.heal_all()
            enough.set()


async def _client(clients: Clients, enough: asyncio.Event, rng: random.Random) -> None:
    while not enough.is_set():
        await clients.run(rng.choice(_KINDS), rng.choice(WISHES))
        await asyncio.sleep(rng.uniform(0.0, 0.3))


async def _hurt_in_turn(
    mesh: FaultyMesh,
    history: History,
    *,
    seed: int,
    lasts_s: float,
    say: Callable[[str], None],
) -> None:
    rng = random.Random(seed)
    now = asyncio.get_running_loop().time
    start_s = now()
    while True:
        for fault in schedule(mesh, rng=rng):
            if now() - start_s >= lasts_s:
                return
            text = str(fault)
            history.faults.append((now() - start_s, text))
            say(f"{now() - start_s:6.1f} s  {text}")
            await hurt(mesh, fault)
            if fault.name == "kill" and "etcd" in fault.target:
                await _same_data(mesh, fault.target)
            await asyncio.sleep(rng.uniform(0.5, 2.0))


async def _same_data(mesh: FaultyMesh, target: str) -> None:
    region = target.partition("-etcd-")[0]
    urls: Sequence[str] = (
        mesh.plan.regions[region].etcd if region in mesh.plan.regions else mesh.plan.etcd_urls
    )
    found = await hashes(urls, within_s=20.0)
    assert len(set(found)) == 1, f"the members of {region}'s etcd differ: {found}"


async def _note_standings(mesh: FaultyMesh, clients: Clients, history: History) -> None:
    """Asks every gateway of a video's home until each says how it ended, or time is over."""
    deadline_s = asyncio.get_running_loop().time() + SETTLE_S
    ids = {video_id for each in history.operations for video_id in each.video_ids}
    for video_id in sorted(ids):
        region = video_id.rpartition("-")[0]
        while True:
            told = {
                gateway: await clients.standing(gateway, video_id)
                for gateway in mesh.ids("gateway", region)
            }
            history.standings[video_id] = told
            if _agree(told) or asyncio.get_running_loop().time() > deadline_s:
                break
            await asyncio.sleep(0.2)


def _agree(told: dict[str, Standing]) -> bool:
    statuses = {standing.status for standing in told.values()}
    return len(statuses) == 1 and statuses <= set(TERMINAL)


def _completions(mesh: FaultyMesh) -> dict[str, int]:
    """How often each video was drawn to its end, from the nodes' own logs."""
    found: dict[str, int] = {}
    for node in mesh.ids("node-agent"):
        for line in mesh.log_of(node).read_text(errors="replace").splitlines():
            if '"run ended"' not in line:
                continue
            entry = json.loads(line)
            if entry.get("outcome") == "completed":
                found[entry["job_id"]] = found.get(entry["job_id"], 0) + 1
    return found


def report(history: History) -> str:
    """What happened, in a few lines."""
    by_outcome: dict[str, int] = {}
    for operation in history.operations:
        outcome = operation.outcome or ("gave up" if operation.video_ids else "never admitted")
        name = f"{operation.kind} {outcome}"
        by_outcome[name] = by_outcome.get(name, 0) + 1
    twice = sum(count > 1 for count in history.completions.values())
    slowest = max(
        ((each.ended_s or 0.0) - each.started_s for each in history.operations), default=0.0
    )
    lines = [
        f"{len(history.faults)} faults, {len(history.operations)} operations",
        *(f"  {number:4d}  {name}" for name, number in sorted(by_outcome.items())),
        f"drawn to the end more than once: {twice} of {len(history.completions)} videos",
        f"slowest operation: {slowest:.1f} s (a client's patience is {PATIENCE_S:g} s)",
    ]
    return "\n".join(lines)
