"""Downloads of a finished video, beside nginx with sendfile on the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.support import edge_calls
from benchmarks.support.edge_figures import Load, completed, middle, video_of
from benchmarks.support.edge_site import EdgeSite
from benchmarks.support.table import Spread, print_table
from benchmarks.support.talk import Child

SIZES = {"64 MiB": 64 << 20, "2 MiB": 2 << 20}
CONNECTIONS = (1, 4)
AIM = 0.8
# A download of 2 MiB takes milliseconds: many of them make one figure.
TURNS = {"64 MiB": 3, "2 MiB": 15}


async def measure(site: EdgeSite, client: Child, load: Load) -> dict[str, Any]:
    """Bytes a second of each, the two in turn."""
    assert site.nginx is not None
    token = site.tokens["busy"]
    found: dict[str, Any] = {}
    for name, size in SIZES.items():
        make = edge_calls.http(
            site.http, "POST", "/v1/videos", token=token, body={"prompt": str(size)}
        )
        video_id = await video_of(client, make)
        await completed(client, site.http, token, video_id)
        file = _file(site.artifacts, size)
        path = file.relative_to(site.artifacts)
        ways = {
            "gateway": edge_calls.http(
                site.http, "GET", f"/v1/videos/{video_id}/content", token=token
            ),
            "nginx": edge_calls.http(site.nginx, "GET", f"/{path}"),
        }
        for connections in CONNECTIONS:
            rounds: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(-1, load.rounds * TURNS[name]):
                for way, call in ways.items():
                    told = await client.ask(
                        "download",
                        address=call["address"],
                        request=call["request"],
                        connections=connections,
                        size=size,
                    )
                    if turn >= 0:
                        rounds[way].append(told["bytes_per_s"])
            found[f"{name}, {connections} at once"] = rounds
    return found


def _file(artifacts: Path, size: int) -> Path:
    return next(
        file for file in artifacts.rglob("*") if file.is_file() and file.stat().st_size == size
    )


def report(result: dict[str, Any]) -> None:
    """Prints the table."""
    rows = []
    for name, rounds in result.items():
        ratio = middle(rounds["gateway"]) / middle(rounds["nginx"])
        cells = [Spread.of(rounds[way]).text(scale=1e-6, digits=0) for way in ("gateway", "nginx")]
        rows.append([name, *cells, f"{ratio:.2f} x", "met" if ratio >= AIM else "missed"])
    print_table(
        f"Content downloads; MB/s: median [p10 … p90]; aim: {AIM} x of nginx with sendfile",
        ["download", "gateway", "nginx", "ratio", "aim"],
        rows,
    )
