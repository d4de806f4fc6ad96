"""What caching saves under Zipf's law, through the product's own code.

``python -m benchmarks.cache``
``python -m benchmarks.cache --quick``
``python -m benchmarks.cache --videos 4000 --reads 60000 --workloads 1 --seed 7``

Two simulations of ratios; nothing is timed. benchmarks/support/cache_site.py says what is the
product's and what is played.

other regions' videos
  Three regions with a third of the videos each; readers in each draw from all of them by Zipf's
  law (one order of popularity for all) and download whole. What a region reads of another's goes
  through its copies: real files, digests and fetches. Sizes are lognormal (sigma 0.8) about
  32 KiB, a 64th of a 480p clip's 2 MiB, so that the run is short: a ratio does not depend on it.
  Room: a share of all bytes that live elsewhere. The first third of the reads fill the caches and
  are not counted. Beside it a plain LRU of the same bytes gets the same reads, and one without a
  bound, which is the most that can be saved. Three workloads each, of which the mean is told and
  the least and the most: the sizes of the few videos that are read most weigh heavily.

requests for new videos
  Poisson arrivals in one gateway, prompts by Zipf's law, no seeds; each drawing takes 30 s. The
  index names at most a share of all prompts' bytes. Beside it a plain LRU of the same bytes.

The target: of the bytes that regions read of one another, at least 70% do not cross, at exponent 1
with room for a fifth, on average. The exit code is 1 where that is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.cache_site import (
    Homes,
    PlainLru,
    Reading,
    Region,
    Requests,
    open_region,
    popularity,
    sizes_of,
)
from benchmarks.support.table import print_table

REGIONS = 3
MEAN_BYTES = 32 * 1024
MAX_ENTRIES = 4096
CASES = ((0.8, 0.2), (1.0, 0.2), (1.2, 0.1))
TARGET_CASE = (1.0, 0.2)
TARGET_SAVED = 0.7
DRAWING_S = 30.0
REQUESTS_PER_S = 2.0


@dataclass(frozen=True, slots=True)
class Saved:
    """One condition's figures."""

    hits: float
    saved: float
    lru_hits: float
    lru_saved: float
    most_saved: float


def main() -> int:
    """Prints both tables; 1 where the target is missed."""
    args = _arguments()
    print(
        f"seed {args.seed}; {args.videos} videos, {args.workloads} x {args.reads} reads by "
        f"{REGIONS} regions, {args.requests} requests"
    )
    found = {
        case: [asyncio.run(_regions(args, number, *case)) for number in range(args.workloads)]
        for case in CASES
    }
    print_table(
        "Other regions' videos: what is here, and bytes that need not cross",
        ("Zipf exponent, room", "hits", "LRU", "bytes saved", "LRU", "no bound"),
        [
            (
                f"{exponent:g}, {room:.0%}",
                *(
                    _spread([getattr(each, figure) for each in saved])
                    for figure in ("hits", "lru_hits", "saved", "lru_saved", "most_saved")
                ),
            )
            for (exponent, room), saved in found.items()
        ],
    )
    _print_requests(args)
    if args.quick:
        print("\nnot judged: so few videos say little")
        return 0
    met = statistics.mean(each.saved for each in found[TARGET_CASE]) >= TARGET_SAVED
    print(f"\ntarget: {TARGET_SAVED:.0%} of the bytes saved; {'met' if met else 'MISSED'}")
    return 0 if met else 1


def _spread(figures: Sequence[float]) -> str:
    """The mean, the least and the most."""
    return f"{statistics.mean(figures):.1%} [{min(figures):.1%} … {max(figures):.1%}]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--reads", type=int, default=7_500)
    parser.add_argument("--workloads", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of it, not judged")
    args = parser.parse_args()
    if args.quick:
        args.reads, args.requests, args.videos = 1_500, 2_000, 100
    return args


# --- other regions' videos ---


async def _regions(args: argparse.Namespace, number: int, exponent: float, room: float) -> Saved:
    rng = random.Random(f"{args.seed}/{number}/{exponent}")  # noqa: S311 - a reproducible workload
    sizes = sizes_of(args.videos, MEAN_BYTES, rng)
    homes = Homes(sizes, REGIONS)
    items = rng.choices(range(args.videos), popularity(args.videos, exponent), k=args.reads)
    readings = [Reading(rng.randrange(REGIONS), item) for item in items]
    away = [r for r in readings if homes.home_of(r.item) != r.region]
    # Of what lives elsewhere, as far as one region sees it.
    max_bytes = int(room * sum(sizes) * (REGIONS - 1) / REGIONS)
    warm = len(away) // 3
    lru_hits, lru_saved = _lru(homes, away, warm, max_bytes)
    _, most_saved = _lru(homes, away, warm, sum(sizes))
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as folder:
        async with AsyncExitStack() as stack:
            regions = [
                await stack.enter_async_context(
                    open_region(
                        Path(folder) / str(number),
                        homes,
                        max_bytes=max_bytes,
                        max_entries=MAX_ENTRIES,
                    )
                )
                for number in range(REGIONS)
            ]
            await _read_all(regions, away[:warm], max_bytes)
            for region in regions:
                region.crossed_bytes = region.read_bytes = region.hits = 0
            await _read_all(regions, away[warm:], max_bytes)
    read_bytes = sum(region.read_bytes for region in regions)
    return Saved(
        hits=sum(region.hits for region in regions) / len(away[warm:]),
        saved=1.0 - sum(region.crossed_bytes for region in regions) / read_bytes,
        lru_hits=lru_hits,
        lru_saved=lru_saved,
        most_saved=most_saved,
    )


def _lru(homes: Homes, away: Sequence[Reading], warm: int, max_bytes: int) -> tuple[float, float]:
    """Shares of hits and of bytes, of the reads that count."""
    lru = [PlainLru(max_bytes) for _ in range(REGIONS)]
    sizes = [homes.sizes[r.item] for r in away]
    hits = [lru[r.region].ask(r.item, size) for r, size in zip(away, sizes, strict=True)][warm:]
    hit_bytes = sum(size for size, hit in zip(sizes[warm:], hits, strict=True) if hit)
    return sum(hits) / len(hits), hit_bytes / sum(sizes[warm:])


async def _read_all(regions: Sequence[Region], readings: Sequence[Reading], max_bytes: int) -> None:
    for reading in readings:
        region = regions[reading.region]
        await region.read(reading.item)
        while region.kept.fetching:  # noqa: ASYNC110 - of threads, until its file has its name
            await asyncio.sleep(0)
        assert region.kept.bytes_held <= max_bytes, "more is kept than may be"


# --- requests for new videos ---


def _print_requests(args: argparse.Namespace) -> None:
    rows = []
    for exponent, room in CASES:
        rng = random.Random(f"{args.seed}/requests/{exponent}")  # noqa: S311 - as above
        sizes = sizes_of(args.videos, MEAN_BYTES, rng)
        items = rng.choices(range(args.videos), popularity(args.videos, exponent), k=args.requests)
        gaps = (rng.expovariate(REQUESTS_PER_S) for _ in items)
        arrivals = list(zip(itertools.accumulate(gaps), items, strict=True))
        max_bytes = int(room * sum(sizes))

        def run(*, single_flight: bool) -> tuple[float, float]:
            requests = Requests(
                sizes,  # noqa: B023 - called in this turn
                max_bytes=max_bytes,  # noqa: B023 - likewise
                max_entries=MAX_ENTRIES,
                drawing_s=DRAWING_S,
            )
            found = requests.run(arrivals, single_flight=single_flight)  # noqa: B023 - likewise
            return found.drawn / found.requests, found.hits / found.requests

        alone, _ = run(single_flight=False)
        drawn, hits = run(single_flight=True)
        lru = PlainLru(max_bytes)
        lru_hits = sum(lru.ask(item, sizes[item]) for item in items) / len(items)
        rows.append(
            (
                f"{exponent:g}, {room:.0%}",
                f"{hits:.1%}",
                f"{lru_hits:.1%}",
                f"{alone:.1%}",
                f"{drawn:.1%}",
                f"{1 - drawn / alone:.1%}",
            )
        )
    print_table(
        "Requests: answered by a finished video, and drawn without and with single flight "
        "(LRU: with drawings that take no time)",
        ("Zipf exponent, room", "hits", "LRU", "drawn, apart", "drawn", "single flight saves"),
        rows,
    )


if __name__ == "__main__":
    sys.exit(main())
