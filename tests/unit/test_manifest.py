import copy
import json
from typing import Any

import pytest
from pydantic import ValidationError
from reelmesh.v1.video_pb2 import ResolvedSpec

from node_agent.manifest import FrameRule, Manifest, SpecRefusedError

SMALL = {"width_px": 128, "height_px": 96}
TALL = {"width_px": 96, "height_px": 160}

FIELDS: dict[str, Any] = {
    "name": "wan-demo",
    "version": "v1",
    "description": "for tests",
    "files": [{"path": "vae/config.json", "sha256": "0" * 64, "size_bytes": 3}],
    "sizes": [SMALL, TALL],
    "size_aliases": {"480p": SMALL, "720x1280": TALL},
    "frames": {"min": 5, "max": 49, "step": 4},
    "fps": 8.0,
    "seconds": {"min_s": 0.5, "max_s": 12.0},
    "steps": {"min": 1, "max": 50},
    "guidance_scale": {"min": 1.0, "max": 10.0},
    "flow_shift": {"min": 1.0, "max": 12.0},
    "defaults": {
        "size": SMALL,
        "num_frames": 17,
        "steps": 8,
        "guidance_scale": 3.0,
        "flow_shift": 5.0,
        "negative_prompt": "blurred",
    },
    "max_sequence_length": 64,
    "vram_gb": 0.5,
    "golden_probes": [
        {"name": "red-ball", "prompt": "a red ball", "seed": 7, "expect": {"color": "red"}}
    ],
}


def build(**changes: Any) -> Manifest:
    """A manifest with dotted fields changed, by the way a file takes."""
    fields = copy.deepcopy(FIELDS)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = fields
        for parent in parents:
            node = node[parent]
        node[last] = value
    return Manifest.model_validate_json(json.dumps(fields))


def spec(**changes: Any) -> ResolvedSpec:
    fields: dict[str, Any] = {
        "prompt": "a red ball",
        "model": "wan-demo",
        "model_version": "v1",
        "width": 128,
        "height": 96,
        "num_frames": 17,
        "fps": 8.0,
        "steps": 8,
        "guidance_scale": 3.0,
        "flow_shift": 5.0,
        "seed": 1,
    }
    return ResolvedSpec(**{**fields, **changes})


def test_model_info_says_what_the_manifest_says():
    info = build().to_model_info(manifest_sha256="ab" * 32)

    assert (info.name, info.version, info.manifest_sha256) == ("wan-demo", "v1", "ab" * 32)
    assert [(s.width_px, s.height_px) for s in info.sizes] == [(128, 96), (96, 160)]
    assert {a.alias: (a.size.width_px, a.size.height_px) for a in info.size_aliases} == {
        "480p": (128, 96),
        "720x1280": (96, 160),
    }
    assert (info.frames.min, info.frames.max, info.frames.step) == (5, 49, 4)
    assert (info.fps, info.seconds.min_s, info.seconds.max_s) == (8.0, 0.5, 12.0)
    assert (info.steps.min, info.steps.max) == (1, 50)
    assert (info.guidance_scale.min, info.guidance_scale.max) == (1.0, 10.0)
    assert (info.flow_shift.min, info.flow_shift.max) == (1.0, 12.0)
    assert (info.defaults.size.width_px, info.defaults.num_frames) == (128, 17)
    assert (info.defaults.steps, info.defaults.negative_prompt) == (8, "blurred")
    assert (info.vram_gb, info.max_prompt_chars) == (0.5, 2000)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": 2}, "format"),
        ({"fps": "8"}, "fps"),
        ({"steps__min": 1.5}, "steps.min"),
        ({"vram_gb": float("nan")}, "vram_gb"),
        ({"name": "../up"}, "name"),
        ({"pipeline_class": "os.system"}, "pipeline_class"),
        ({"files": []}, "files"),
        ({"files": [FIELDS["files"][0]] * 2}, "listed twice"),
        ({"sizes": [{"width_px": 100, "height_px": 96}]}, "multiple of 32"),
        ({"size_aliases": {"480p": {"width_px": 64, "height_px": 64}}}, "not in sizes"),
        ({"size_aliases": {"a b": SMALL}}, "no short plain name"),
        ({"frames__min": 6}, "4k \\+ 1"),
        ({"frames__step": 2}, "4k \\+ 1"),
        ({"frames__max": 50}, "whole number of steps"),
        ({"seconds__max_s": 0.1}, "min_s"),
        ({"flow_shift__min": 0.0}, "flow_shift.min"),
        ({"defaults__num_frames": 16}, "defaults: num_frames: 16.*nearest is 17"),
        ({"defaults__steps": 51}, "defaults: steps: 51"),
        ({"defaults__size": {"width_px": 64, "height_px": 64}}, "none of the model's sizes"),
        ({"golden_probes": [{"name": "x", "prompt": "", "seed": 1}]}, "golden_probes"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        build(**changes)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd.json",
        "../other/model.safetensors",
        "vae/../../x.json",
        "./vae/config.json",
        "vae\\config.json",
        "vae//config.json",
        "weights.bin",
        "weights.pt",
        "modeling.py",
        "pytorch_model.ckpt",
        "README",
        "manifest.json",
        "",
    ],
)
def test_paths_that_leave_the_folder_or_may_run_code_are_refused(path):
    with pytest.raises(ValidationError, match="files"):
        build(files=[{"path": path, "sha256": "0" * 64, "size_bytes": 1}])


def test_a_request_within_the_rules_passes():
    build().check_spec(spec())
    build().check_spec(spec(width=96, height=160, num_frames=49, steps=50, seed=2**64 - 1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt: at most 2000"),
        ({"negative_prompt": "x" * 2001}, "negative_prompt"),
        ({"model": "other"}, "model: other@v1"),
        ({"model_version": "v2"}, "wan-demo@v2"),
        ({"width": 100}, "multiples of 32"),
        ({"width": 0}, "multiples of 32"),
        ({"width": 96}, "96x96 is none"),
        ({"num_frames": 16}, "nearest is 17"),
        ({"num_frames": 121}, "nearest is 49"),
        ({"fps": 24.0}, "fps: 24"),
        ({"steps": 0}, "steps: 0"),
        ({"steps": 1_000_000_000}, "steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale: nan"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"flow_shift": 13.0}, "flow_shift"),
    ],
)
def test_a_request_outside_the_rules_is_refused_with_the_field(changes, said):
    with pytest.raises(SpecRefusedError, match=said):
        build().check_spec(spec(**changes))


@pytest.mark.parametrize(
    ("wish", "nearest"), [(-3, 5), (5, 5), (7, 5), (7.1, 9), (17, 17), (18.9, 17), (97, 49)]
)
def test_nearest_allowed_frame_count(wish, nearest):
    assert FrameRule(min=5, max=49).nearest(wish) == nearest
