"""Latents to video frames, a latent frame at a time.

Wan's VAE is causal in time: ``AutoencoderKLWan._decode`` itself walks the latent
frames and carries each convolution's last inputs in a cache. This does the same walk
and yields after each step, so that the first frames are encoded while later ones are
still being decoded. It reads private state of diffusers 0.42, therefore a test
compares it with ``vae.decode`` bit for bit and the version is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from node_agent.engine.encode import Rgb


@dataclass(frozen=True)
class FrameGroup:
    """Frames on their way from the device: read them only after ``wait``."""

    _rgb: torch.Tensor
    _extremes: torch.Tensor
    _ready: Callable[[], None]

    def wait(self) -> Rgb | None:
        """Blocks until the device has finished them; [t, height, width, 3] in 8 bits.

        None where the decoder's output held NaN or infinity. Any thread may call it.
        """
        self._ready()
        if not bool(torch.isfinite(self._extremes).all()):
            return None
        return self._rgb.numpy()


def unscale_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE takes them, computed exactly as ``WanPipeline`` does."""
    latents = latents.to(vae.device, dtype=vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents.device, latents.dtype)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents.device, latents.dtype)
    return latents / std + mean


@torch.inference_mode()  # type: ignore[untyped-decorator] # torch is not followed
def decode_frames(vae: Any, z: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields frames of shape [1, 3, t, height, width]: t is 1 at first, then 4.

    Joined along time they equal ``vae.decode(z)`` before its last clamp to [-1, 1], bit
    for bit. Abandoning the iterator frees the cache. One decode at a time per VAE.

    Args:
        vae: An ``AutoencoderKLWan`` without tiling or slicing.
        z: [1, z_dim, latent frames, height / 16, width / 16], from :func:`unscale_latents`.
    """
    if vae.use_tiling or (vae.use_slicing and z.shape[0] > 1):
        raise ValueError("streamed decoding knows neither tiling nor slicing")
    vae.clear_cache()
    try:
        x = vae.post_quant_conv(z)
        for index in range(z.shape[2]):
            vae._conv_idx = [0]  # noqa: SLF001 - see the module's docstring
            out = vae.decoder(
                x[:, :, index : index + 1],
                feat_cache=vae._feat_map,  # noqa: SLF001
                feat_idx=vae._conv_idx,  # noqa: SLF001
                first_chunk=index == 0,
            )
            if vae.config.patch_size is not None:
                out = unpatchify(out, patch_size=vae.config.patch_size)
            yield out
    finally:
        vae.clear_cache()


@torch.inference_mode()  # type: ignore[untyped-decorator] # torch is not followed
def to_group(frames: torch.Tensor) -> FrameGroup:
    """Starts the conversion to 8 bits and the copy to the host; does not wait for either."""
    # NaN passes through aminmax and clamp; infinity does not pass the clamp.
    extremes = torch.stack(torch.aminmax(frames))
    # In diffusers' own order (VideoProcessor), so that the levels are the stock pipeline's.
    unit = frames[0].clamp(-1.0, 1.0).mul_(0.5).add_(0.5).clamp_(0.0, 1.0)
    levels = unit.mul_(255.0).round_().to(torch.uint8)
    rgb = levels.permute(1, 2, 3, 0).contiguous()
    if rgb.device.type != "cuda":
        return FrameGroup(rgb, extremes, _nothing)
    pinned_rgb = torch.empty(rgb.shape, dtype=rgb.dtype, pin_memory=True)
    pinned_extremes = torch.empty(extremes.shape, dtype=extremes.dtype, pin_memory=True)
    pinned_rgb.copy_(rgb, non_blocking=True)
    pinned_extremes.copy_(extremes, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return FrameGroup(pinned_rgb, pinned_extremes, copied.synchronize)


def _nothing() -> None:
    """What there is to wait for on a CPU."""
