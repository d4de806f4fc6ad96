"""The demo model's ``manifest.json``: its rules, defaults and golden probes."""

from pathlib import Path
from typing import Any, Final

from node_agent.model_folder import ModelFolder, write_manifest
from tools.demo_model.pipeline import DEFAULT_GUIDANCE, DEFAULT_STEPS, FLOW_SHIFT
from tools.demo_model.tokenizer import MAX_TOKENS
from tools.demo_model.world import FRAME_COUNT, FRAME_RATE, HEIGHT_PX, WIDTH_PX, Scene

NAME: Final = "wan-demo"
VERSION: Final = "v1"

# A sentence each that a sound copy of the weights cannot get wrong, in both languages.
PROBES: Final = (
    (
        "red-ball-left",
        "a big red ball moving left on a white background",
        Scene("red", "circle", "left", "big", "white"),
    ),
    (
        "blue-square-still",
        "a big blue square standing still on a black background",
        Scene("blue", "square", "still", "big", "black"),
    ),
    (
        "green-triangle-up",
        "一个大的绿色三角形在灰色背景上向上移动",
        Scene("green", "triangle", "up", "big", "grey"),
    ),
)


def manifest_fields(*, version: str = VERSION) -> dict[str, Any]:
    """Return the manifest without the list of files."""
    size = {"width_px": WIDTH_PX, "height_px": HEIGHT_PX}
    names = ("480p", "1280x720", "720x1280", "1792x1024", "1024x1792")
    return {
        "name": NAME,
        "version": version,
        "description": "A demo model trained for Reelmesh. It draws one flat shape that moves on "
        "a flat background, from a small grammar of colours, shapes, motions and sizes in English "
        "and Chinese, and nothing else.",
        "sizes": [size],
        "size_aliases": dict.fromkeys(names, size),
        "frames": {"min": FRAME_COUNT, "max": FRAME_COUNT, "step": 4},
        "fps": float(FRAME_RATE),
        "seconds": {"min_s": 0.5, "max_s": 12.0},
        "steps": {"min": 1, "max": 50},
        "guidance_scale": {"min": 1.0, "max": 10.0},
        "flow_shift": {"min": 1.0, "max": 12.0},
        "defaults": {
            "size": size,
            "num_frames": FRAME_COUNT,
            "steps": DEFAULT_STEPS,
            "guidance_scale": DEFAULT_GUIDANCE,
            "flow_shift": FLOW_SHIFT,
            "negative_prompt": "",
        },
        "max_sequence_length": MAX_TOKENS,
        "dtypes": {"transformer": "float32", "text_encoder": "float32", "vae": "float32"},
        "vram_gb": 0.5,
        "golden_probes": [
            {
                "name": name,
                "prompt": prompt,
                "seed": 1,
                "expect": {
                    "color": scene.color,
                    "shape": scene.shape,
                    "motion": scene.motion,
                    "background": scene.background,
                },
            }
            for name, prompt, scene in PROBES
        ],
    }


def write_demo_manifest(folder: Path, *, version: str = VERSION) -> ModelFolder:
    """Write the manifest beside the weights that lie in ``folder``."""
    return write_manifest(folder, manifest_fields(version=version))
