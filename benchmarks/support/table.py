"""Medians, spreads and tables of a benchmark's figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The middle of many samples and how far they lie apart."""

    median: float
    p10: float
    p90: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarises two samples or more."""
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), tenths[0], tenths[-1], len(samples))

    def text(self, *, scale: float = 1.0, digits: int = 2) -> str:
        """``median [p10 … p90]``, each times ``scale``."""
        return (
            f"{self.median * scale:.{digits}f} "
            f"[{self.p10 * scale:.{digits}f} … {self.p90 * scale:.{digits}f}]"
        )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints aligned columns: the first to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells))
