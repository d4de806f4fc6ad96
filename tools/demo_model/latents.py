"""The training set of the transformer: every training clip of the world as latents, once."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor
from tqdm import tqdm

from tools.demo_model.autoencoder import encode_whole
from tools.demo_model.render import clip_coverage, render_clip
from tools.demo_model.train_autoencoder import to_model_range
from tools.demo_model.world import ANCHORS, Scene, training_scenes


@dataclasses.dataclass(frozen=True)
class LatentSet:
    """Latents of all training clips.

    Attributes:
        scenes: the scene of each clip.
        latents: [N, z, 5, 6, 8] in half precision, normalised to mean 0 and spread 1 a channel.
        near: [N, 5, 6, 8], true where the cell holds a part of the object.
        mean: the channels' means before normalising.
        std: the channels' spreads before normalising.
    """

    scenes: list[Scene]
    latents: Tensor
    near: Tensor
    mean: list[float]
    std: list[float]


def all_training_clips() -> list[tuple[Scene, tuple[int, int]]]:
    """List every training scene at each of its places."""
    return [(scene, anchor) for scene in training_scenes() for anchor in ANCHORS[scene.motion]]


def _cells(coverage: np.ndarray[Any, Any]) -> Tensor:
    """Tell which latent cells [5, 6, 8] a clip's object [17, H, W] touches."""
    touched = F.max_pool2d(torch.from_numpy(coverage)[:, None], 16)[:, 0] > 0
    first, later = touched[:1], touched[1:].view(-1, 4, *touched.shape[1:]).any(dim=1)
    return torch.cat([first, later])


@torch.no_grad()
def encode_world(
    vae: AutoencoderKLWan,
    path: Path,
    *,
    step: int,
    device: str,
    batch: int = 8,
    statistics: tuple[list[float], list[float]] | None = None,
) -> None:
    """Encode every training clip and write the set to ``path``, whole or not at all.

    Args:
        vae: the autoencoder.
        path: the file.
        step: how far the autoencoder was trained; a set of that step is left as it is.
        device: where to encode.
        batch: clips at once.
        statistics: the channels' means and spreads that an exported transformer was trained
            with; measured on the set where it is None.
    """
    if path.exists() and torch.load(path, weights_only=True)["step"] == step:
        return
    vae = vae.to(device).eval()
    clips = all_training_clips()
    parts, near = [], []
    for start in tqdm(range(0, len(clips), batch), desc="latents", mininterval=5):
        chunk = clips[start : start + batch]
        x = torch.stack([to_model_range(render_clip(*clip)) for clip in chunk])
        with torch.autocast(device, torch.bfloat16):  # as in the autoencoder's training
            parts.append(encode_whole(vae, x.to(device)).float().cpu())
        near += [_cells(clip_coverage(*clip)) for clip in chunk]
    latents = torch.cat(parts)
    if statistics is None:
        mean = latents.mean(dim=(0, 2, 3, 4))
        std = latents.std(dim=(0, 2, 3, 4)).clamp_min(1e-4)
    else:
        mean, std = (torch.tensor(values) for values in statistics)
    shape = (1, -1, 1, 1, 1)
    state = {
        "step": step,
        "latents": ((latents - mean.view(shape)) / std.view(shape)).half(),
        "near": torch.stack(near),
        "mean": mean,
        "std": std,
    }
    draft = path.with_suffix(".tmp")
    torch.save(state, draft)
    draft.replace(path)


def load_latents(path: Path) -> LatentSet:
    """Read what ``encode_world`` wrote."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    scenes = [scene for scene, _ in all_training_clips()]
    if len(scenes) != len(state["latents"]):
        raise ValueError(
            f"{path.name} holds {len(state['latents'])} clips and the world has {len(scenes)}: "
            "delete it and run the phase 'latents' again"
        )
    return LatentSet(
        scenes, state["latents"], state["near"], state["mean"].tolist(), state["std"].tolist()
    )
