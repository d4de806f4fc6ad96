"""Small models of real safetensors files, and keys that sign them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reelkit.signatures import SigningKey, make_keys

FIELDS: dict[str, Any] = {
    "sizes": [{"width_px": 96, "height_px": 64}],
    "frames": {"min": 5, "max": 17, "step": 4},
    "fps": 8.0,
    "seconds": {"min_s": 0.5, "max_s": 2.0},
    "steps": {"min": 1, "max": 50},
    "guidance_scale": {"min": 1.0, "max": 10.0},
    "flow_shift": {"min": 1.0, "max": 12.0},
    "defaults": {
        "size": {"width_px": 96, "height_px": 64},
        "num_frames": 9,
        "steps": 4,
        "guidance_scale": 5.0,
        "flow_shift": 5.0,
    },
    "max_sequence_length": 64,
    "vram_gb": 0.1,
}


def safetensors(size_bytes: int, seed: int) -> bytes:
    """A file of one tensor; the same seed and size are the same bytes."""
    header = {"w": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(size_bytes)


def write_weights(
    folder: Path,
    *,
    files: Mapping[str, int] | None = None,
    size_bytes: int = 300_000,
    name: str = "small",
    version: str = "v1",
    described: bool = True,
) -> Path:
    """A model's folder.

    Args:
        folder: Where to.
        files: Seed of each safetensors file by its path.
        size_bytes: Of each.
        name: In its manifest.
        version: Likewise.
        described: Whether there is a manifest, which lists no files.
    """
    for path, seed in (files or {"vae/model.safetensors": 1, "text/model.safetensors": 2}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(safetensors(size_bytes, seed))
    (folder / "config.json").write_text('{"_class_name": "WanPipeline"}\n')
    if described:
        fields = {**FIELDS, "name": name, "version": version, "files": None}
        (folder / "manifest.json").write_text(json.dumps(fields))
    return folder


def signing_key(folder: Path, name: str = "model.key") -> tuple[SigningKey, Path, Path]:
    """A new key, and its private and public files."""
    private, public = folder / name, folder / f"{name}.pub"
    return make_keys(private, public), private, public
