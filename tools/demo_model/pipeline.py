"""Puts the trained parts together as a ``WanPipeline`` and writes it as a model folder."""

import copy
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from torch import nn

from tools.demo_model.autoencoder import build_autoencoder
from tools.demo_model.denoiser import Denoiser, build_text_encoder, build_transformer
from tools.demo_model.tokenizer import build_tokenizer

DEFAULT_STEPS: Final = 16
# Guidance buys nothing here and costs: at 2 one clip in fifty that moves up or down showed the
# object twice, at two of the places that the seed may choose; at 1 none in 160 did.
DEFAULT_GUIDANCE: Final = 1.0
FLOW_SHIFT: Final = 3.0
LARGEST_BYTES: Final = 16_000_000


def _copied(fresh: nn.Module, trained: nn.Module) -> Any:
    """Return the fresh model with the trained one's weights, in plain memory order."""
    fresh.load_state_dict(copy.deepcopy(trained.state_dict()))
    return fresh.eval()


def build_pipeline(
    vae: AutoencoderKLWan, denoiser: Denoiser, *, mean: list[float], std: list[float]
) -> WanPipeline:
    """Assemble the pipeline from trained parts; ``mean`` and ``std`` are the latents'.

    The parts are copied: training may go on.
    """
    tokenizer = build_tokenizer()
    own_vae = _copied(build_autoencoder(), vae)
    own_vae.register_to_config(latents_mean=mean, latents_std=std)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=_copied(build_text_encoder(len(tokenizer)), denoiser.text_encoder),
        vae=own_vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            num_train_timesteps=1000,
            flow_shift=FLOW_SHIFT,
        ),
        transformer=_copied(build_transformer(), denoiser.transformer),
        transformer_2=None,
        boundary_ratio=None,
        expand_timesteps=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(pipeline: WanPipeline, folder: Path) -> int:
    """Write the model folder in half precision; return the size of its weights in bytes.

    Raises:
        ValueError: the weights are larger than the demo model may be.
    """
    for part in (pipeline.vae, pipeline.transformer, pipeline.text_encoder):
        part.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if size > LARGEST_BYTES:
        raise ValueError(f"the weights take {size} bytes; the demo model may take {LARGEST_BYTES}")
    return size


def load_pipeline(folder: Path) -> WanPipeline:
    """Load a model folder for drawing, in single precision, from disk alone."""
    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
