"""The facts of a finished video, as a table for people and a mapping for programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from wan_t2v_sdk import GenerationResult


def facts_table(result: GenerationResult, path: Path, *, sheet: Path | None) -> Table:
    """What was made, where it lies and where it was made."""
    facts = result.facts
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")

    def row(name: str, value: object) -> None:
        table.add_row(name, escape(str(value)))

    row("video", path)
    if sheet is not None:
        row("contact sheet", sheet)
    asked = f" (asked for as {facts.requested_resolution})" if facts.requested_resolution else ""
    row("size", f"{facts.width}x{facts.height} px{asked}")
    wished = f" (asked for {facts.requested_seconds:g} s)" if facts.requested_seconds else ""
    row(
        "length",
        f"{facts.num_frames} frames at {facts.fps:g} fps, {facts.duration_s:.2f} s{wished}",
    )
    cut = f" ({facts.unloaded_steps} without load)" if facts.unloaded_steps else ""
    row(
        "model",
        f"{facts.model} {facts.model_version}, {facts.steps} steps{cut}, seed {facts.seed}",
    )
    row("made in", f"{facts.region}, {facts.node or 'unknown node'}, attempts: {facts.attempts}")
    row("took", f"{facts.timings['client_s']:.2f} s ({_stages(facts.timings)})")
    row("bytes", f"{facts.size_bytes} (sha256 {facts.sha256[:16]}…)")
    row("id", facts.id)
    return table


def facts_json(result: GenerationResult, path: Path, *, sheet: Path | None) -> dict[str, Any]:
    """The same for programs."""
    return {
        "path": str(path),
        "contact_sheet": str(sheet) if sheet is not None else None,
        **asdict(result.facts),
        "duration_s": result.facts.duration_s,
    }


def _stages(timings: dict[str, float]) -> str:
    shown = ("queue_s", "encode_text_s", "denoise_s", "decode_s", "encode_video_s")
    parts = [
        f"{name.removesuffix('_s').replace('_', ' ')} {timings[name]:.2f}"
        for name in shown
        if timings.get(name, 0.0) >= 0.005
    ]
    return ", ".join(parts) or "stages unknown"
