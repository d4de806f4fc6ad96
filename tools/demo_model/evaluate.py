"""Measures the autoencoder's round trips and the whole model's clips, attribute by attribute."""

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from PIL import Image
from tqdm import tqdm

from tools.demo_model.autoencoder import decode_whole, encode_whole
from tools.demo_model.captions import exact_caption
from tools.demo_model.evaluator import Clip, Sight, look_at
from tools.demo_model.pipeline import DEFAULT_GUIDANCE, DEFAULT_STEPS
from tools.demo_model.render import render_clip
from tools.demo_model.tokenizer import MAX_TOKENS
from tools.demo_model.train_autoencoder import to_model_range
from tools.demo_model.world import (
    ANCHORS,
    FRAME_COUNT,
    HEIGHT_PX,
    WIDTH_PX,
    Scene,
    held_out_scenes,
)

# What must be reached: least share right, or least decibels, or (for noise) the most allowed.
AUTOENCODER_GATES: Final = {
    "psnr_mean_db": 30.0,
    "psnr_worst_db": 25.0,
    "color": 0.99,
    "shape": 0.97,
    "motion": 0.97,
}
MODEL_GATES: Final = {"color": 0.97, "shape": 0.90, "motion": 0.90, "background": 0.97}
MODEL_LIMITS: Final = {"background_sigma": 6.0, "object_sigma": 12.0, "stray_share": 0.01}


# Prompts and seeds to clips.
Draw = Callable[[Sequence[str], Sequence[int]], list[Clip]]


@dataclasses.dataclass(frozen=True)
class Score:
    """A set of figures against its gates.

    Attributes:
        figures: shares right (0..1), decibels, and noise figures.
        failures: what missed its gate, in words.
        mistakes: what was asked for and what was seen instead.
    """

    figures: dict[str, float]
    failures: list[str]
    mistakes: list[str]

    def table(self, title: str) -> str:
        """Return the figures as a Markdown table."""
        lines = [f"| {title} | measured | gate |", "|---|---|---|"]
        gates = AUTOENCODER_GATES if "psnr_mean_db" in self.figures else MODEL_GATES
        for name, value in self.figures.items():
            gate = f">= {gates[name]:g}" if name in gates else ""
            limited = name.removesuffix("_worst")
            if limited != name and "psnr_mean_db" not in self.figures:
                gate = f"<= {MODEL_LIMITS[limited]:g}" if limited in MODEL_LIMITS else ""
            lines.append(f"| {name} | {value:.4g} | {gate} |")
        return "\n".join(lines)


def to_pixels(video: torch.Tensor) -> Clip:
    """Turn floats [3, T, H, W] in -1..1 into 8-bit RGB [T, H, W, 3]."""
    levels = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    clip: Clip = levels.permute(1, 2, 3, 0).cpu().numpy()
    return clip


def score_sights(pairs: Sequence[tuple[Scene, Sight]]) -> tuple[dict[str, float], list[str]]:
    """Return shares right and noise (95th percentiles) over clips, and the mistakes."""
    agreements = [sight.agrees(scene) for scene, sight in pairs]
    figures = {name: float(np.mean([a[name] for a in agreements])) for name in agreements[0]}
    for name, limit in MODEL_LIMITS.items():
        values = [getattr(sight, name) for _, sight in pairs]
        figures[name] = float(np.percentile(values, 95))
        # A percentile hides the few clips that draw the object twice: the worst is the gate.
        figures[f"{name}_worst"] = float(max(values))
        figures[f"{name}_clips_over"] = float(sum(value > limit for value in values))
    mistakes = [
        f"{scene} seen as {sight}"
        for (scene, sight), agreement in zip(pairs, agreements, strict=True)
        if not all(agreement.values())
        or any(getattr(sight, name) > limit for name, limit in MODEL_LIMITS.items())
    ]
    return figures, mistakes


def _failures(figures: dict[str, float], least: dict[str, float]) -> list[str]:
    return [
        f"{name} is {figures[name]:.4g}, must be at least {gate:g}"
        for name, gate in least.items()
        if figures[name] < gate
    ]


@torch.no_grad()
def score_autoencoder(vae: AutoencoderKLWan, *, count: int = 200) -> Score:
    """Measure round trips of held-out clips against the autoencoder's gates."""
    vae.eval()
    device = next(vae.parameters()).device
    rng = random.Random(7)
    decibels, pairs = [], []
    for scene in tqdm(held_out_scenes(count), desc="round trips", mininterval=10):
        clip = render_clip(scene, rng.choice(ANCHORS[scene.motion]))
        x = to_model_range(clip)[None].to(device)
        back = to_pixels(decode_whole(vae, encode_whole(vae, x))[0].float())
        error = float(np.mean((back.astype(float) - clip) ** 2))
        decibels.append(10 * np.log10(255.0**2 / max(error, 1e-9)))
        pairs.append((scene, look_at(back)))
    figures, mistakes = score_sights(pairs)
    figures = {
        "psnr_mean_db": float(np.mean(decibels)),
        "psnr_worst_db": float(min(decibels)),
        **figures,
    }
    return Score(figures, _failures(figures, AUTOENCODER_GATES), mistakes)


def draw(
    pipeline: WanPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = DEFAULT_STEPS,
    guidance: float = DEFAULT_GUIDANCE,
) -> list[Clip]:
    """Draw one clip per prompt and seed with the pipeline at the demo model's settings."""
    result = pipeline(
        prompt=list(prompts),
        negative_prompt="",
        height=HEIGHT_PX,
        width=WIDTH_PX,
        num_frames=FRAME_COUNT,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=MAX_TOKENS,
        output_type="pt",
    ).frames
    return [to_pixels(video.permute(1, 0, 2, 3) * 2 - 1) for video in result]


def held_out_prompts(count: int) -> list[tuple[Scene, str, int]]:
    """Return scenes that training never saw, a full sentence for each, and a seed.

    Every third sentence is Chinese.
    """
    rng = random.Random(11)
    return [
        (scene, exact_caption(scene, rng, chinese=index % 3 == 2), 1000 + index)
        for index, scene in enumerate(held_out_scenes(count))
    ]


def score_model(draw_clips: Draw, *, count: int = 200, batch: int = 8) -> Score:
    """Measure clips of held-out combinations, drawn by ``draw_clips``, against the gates."""
    asked = held_out_prompts(count)
    pairs: list[tuple[Scene, Sight]] = []
    for start in tqdm(range(0, count, batch), desc="drawing", mininterval=10):
        chunk = asked[start : start + batch]
        clips = draw_clips([c[1] for c in chunk], [c[2] for c in chunk])
        pairs += [(scene, look_at(clip)) for (scene, _, _), clip in zip(chunk, clips, strict=True)]
    figures, mistakes = score_sights(pairs)
    failures = _failures(figures, MODEL_GATES)
    failures += [
        f"{name} of the worst clip is {figures[f'{name}_worst']:.4g}, must be at most {limit:g}"
        for name, limit in MODEL_LIMITS.items()
        if figures[f"{name}_worst"] > limit
    ]
    return Score(figures, failures, mistakes)


def contact_sheet(clips: Iterable[Clip], *, columns: int = 5) -> Image.Image:
    """Return a picture with a row of evenly spaced frames per clip."""
    rows = []
    for clip in clips:
        picks = np.linspace(0, len(clip) - 1, columns).round().astype(int)
        framed = np.pad(clip[picks], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=200)
        rows.append(np.concatenate(list(framed), axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))
