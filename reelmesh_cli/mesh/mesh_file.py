"""``mesh.json``: what every tool and test reads to find a local mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reelmesh_cli.mesh.keys import Tokens
from reelmesh_cli.mesh.topology import MeshPlan


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """A worker process of a node agent."""

    id: str
    """The agent's id with a suffix: ``ap-node-0/worker-0``."""
    pid: int


def mesh_document(
    plan: MeshPlan,
    *,
    pids: Mapping[str, int],
    workers: Mapping[str, Sequence[WorkerEntry]],
    tokens: Tokens,
) -> dict[str, Any]:
    """The content of ``mesh.json``: processes that live, each agent's workers after it.

    Args:
        plan: The mesh.
        pids: Process id of each live process, by the plan's id.
        workers: Live workers by their agent's id.
        tokens: For users and operators.
    """
    processes: list[dict[str, Any]] = []
    for each in plan.processes:
        if each.id not in pids or each.role == "fork-server":
            continue
        entry = {
            "role": each.role,
            "region": each.region,
            "id": each.id,
            "address": each.address,
            **each.addresses,
            "pid": pids[each.id],
            "log": each.log,
        }
        processes.append(entry)
        processes += [
            {**entry, "role": "worker", "id": worker.id, "pid": worker.pid}
            for worker in workers.get(each.id, ())
        ]
    return {
        "regions": {name: asdict(addresses) for name, addresses in plan.regions.items()},
        "processes": processes,
        "etcd": list(plan.etcd_urls),
        "tokens": {"user": tokens.user, "operator": tokens.operator},
        "ca": None if plan.ca is None else str(plan.ca),
    }
