"""Trains the video autoencoder: single pictures, then 5 frames, then whole clips of 17."""

import dataclasses
import random
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from tools.demo_model.autoencoder import build_autoencoder, decode_whole, encode_whole
from tools.demo_model.checkpoint import Run
from tools.demo_model.optimizer import AveragedWeights, MuonWithAdam, scheduled_rate
from tools.demo_model.render import clip_coverage, render_clip
from tools.demo_model.world import (
    ANCHORS,
    BACKGROUNDS,
    COLORS,
    FRAME_COUNT,
    Scene,
    held_out_scenes,
    training_scenes,
)

LEARNING_RATE: Final = 3e-3
LATENT_NOISE: Final = 0.05


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of the training on windows of one length."""

    frames: int
    batch: int
    steps: int


def to_model_range(clip: np.ndarray[Any, Any]) -> Tensor:
    """Turn 8-bit RGB [T, H, W, 3] into floats [3, T, H, W] in -1..1."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2).float() / 127.5 - 1.0


def sample_batch(scenes: list[Scene], stage: Stage, step: int) -> tuple[Tensor, Tensor]:
    """Draw the clips [B, 3, T, H, W] and loss weights [B, 1, T, H, W] of one step.

    The same step always draws the same batch, so that a resumed run is the run it resumes.
    """
    rng = random.Random(step)
    clips, weights = [], []
    for _ in range(stage.batch):
        scene = rng.choice(scenes)
        anchor = rng.choice(ANCHORS[scene.motion])
        if stage.frames == 1:
            start = rng.randrange(FRAME_COUNT)
        else:
            start = rng.randrange(0, FRAME_COUNT - stage.frames + 1, 4)
        window = slice(start, start + stage.frames)
        coverage = clip_coverage(scene, anchor)[window, ..., None]
        ground = np.asarray(BACKGROUNDS[scene.background], dtype=np.float32)
        paint = np.asarray(COLORS[scene.color], dtype=np.float32)
        clips.append(to_model_range(ground + coverage * (paint - ground)))
        weights.append(torch.from_numpy(coverage).permute(3, 0, 1, 2))
    near = F.max_pool3d(torch.stack(weights), (1, 7, 7), stride=1, padding=(0, 3, 3))
    clip = torch.stack(clips).to(memory_format=torch.channels_last_3d)
    return clip, 1.0 + 6.0 * near


def reconstruction_loss(vae: AutoencoderKLWan, clip: Tensor, weight: Tensor, step: int) -> Tensor:
    """Return the object-weighted error of a noisy round trip."""
    device = clip.device.type
    generator = torch.Generator().manual_seed(step)
    with torch.autocast(device, torch.bfloat16):
        latents = encode_whole(vae, clip)
        noise = torch.randn(latents.shape, generator=generator).to(clip.device)
        decoded = decode_whole(vae, latents + LATENT_NOISE * noise)
    error = decoded.float() - clip
    pixel = (error.square() + 0.3 * error.abs()).mean(dim=1, keepdim=True)
    size = latents.float().square().mean()
    return (pixel * weight).sum() / weight.sum() + 1e-4 * size


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLWan, count: int) -> tuple[float, float]:
    """Return the mean and the worst PSNR in dB of round trips of held-out clips."""
    vae.eval()
    device = next(vae.parameters()).device
    values = []
    for scene in held_out_scenes(count):
        clip = render_clip(scene, ANCHORS[scene.motion][0])
        x = to_model_range(clip)[None].to(device)
        y = decode_whole(vae, encode_whole(vae, x)).clamp(-1, 1)
        values.append(-10 * float(torch.log10((y - x).square().mean() / 4)))
    return float(np.mean(values)), min(values)


def _channels_last(vae: AutoencoderKLWan) -> None:
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # stubs
        elif isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the autoencoder is trained.

    Attributes:
        stages: the lengths of the windows, in order.
        rate: peak learning rate, in Adam's units.
        first_step: the draws of a step depend on its number; a fine-tune goes on counting.
        hard_share: share of the draws that are scenes whose round trips are the worst.
        decoder_only: leave the encoder as it is, and with it all latents made so far.
    """

    stages: tuple[Stage, ...]
    rate: float = LEARNING_RATE
    first_step: int = 0
    hard_share: float = 0.0
    decoder_only: bool = False

    @property
    def total(self) -> int:
        """The step to stop at."""
        return self.first_step + sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """Return the stage that a step belongs to; what follows the last is like the last."""
        step -= self.first_step
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]


FROM_NOTHING: Final = Recipe(stages=(Stage(1, 32, 200), Stage(5, 8, 1250), Stage(17, 3, 800)))
# What the shipped v1 got after the above: big stars that turn or jump had a mottled inside.
FINE_TUNE: Final = Recipe(
    stages=(Stage(17, 3, 500),), rate=6e-4, first_step=10_000, hard_share=0.4, decoder_only=True
)


def _is_hard(scene: Scene) -> bool:
    return scene.shape == "star" and scene.motion in ("bouncing", "spinning", "left", "right")


def train(
    run: Run,
    *,
    device: str,
    recipe: Recipe,
    total: int | None = None,
    start: AutoencoderKLWan | None = None,
) -> None:
    """Train by ``recipe``, going on from a checkpoint, else from ``start``, else from nothing.

    Args:
        run: where the checkpoint and the figures are kept.
        device: where to train.
        recipe: how to train.
        total: the step to stop at, where it is not the recipe's.
        start: weights to begin with.
    """
    torch.manual_seed(1)
    total = recipe.total if total is None else total
    vae = (build_autoencoder() if start is None else start).to(device).requires_grad_()
    if recipe.decoder_only:
        vae.encoder.requires_grad_(requires_grad=False)
        vae.quant_conv.requires_grad_(requires_grad=False)
    _channels_last(vae)
    average = AveragedWeights(vae, decay=0.99 if recipe.decoder_only else 0.998)
    optimizer = MuonWithAdam(vae, lr=recipe.rate)
    step = run.resume(vae, average.model, optimizer) or recipe.first_step
    scenes = training_scenes()
    hard = [scene for scene in scenes if _is_hard(scene)]
    with run.progress("autoencoder", step, total) as bar:
        while step < total:
            pool = hard if random.Random(~step).random() < recipe.hard_share else scenes
            clip, weight = sample_batch(pool, recipe.stage_at(step), step)
            loss = reconstruction_loss(vae, clip.to(device), weight.to(device), step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            share = scheduled_rate(step - recipe.first_step, total - recipe.first_step)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * share
            optimizer.step()
            step += 1
            average.update(vae, step - recipe.first_step)
            run.record(step, loss=float(loss.detach()))
            bar.update()
            if step % 200 == 0 or step == total:
                mean, worst = held_out_psnr(average.model, 24)
                run.record(step, psnr_mean_db=mean, psnr_worst_db=worst)
                bar.set_postfix(loss=f"{float(loss.detach()):.4f}", psnr=f"{mean:.2f}/{worst:.2f}")
            if run.is_due(step) or step == total:
                run.save(step, vae, average.model, optimizer)
    run.close()
