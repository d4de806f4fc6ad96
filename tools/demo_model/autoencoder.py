"""The video autoencoder (``AutoencoderKLWan``, as the 5B has it, but small) and a faster forward.

diffusers walks a clip in chunks of four frames with feature caches. Training needs no bounded
memory, so ``encode_whole`` and ``decode_whole`` run the very same layers once over all frames.
They agree with ``vae.encode`` and ``vae.decode`` to rounding (a test holds them to it).
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn

Z_DIM = 24


def build_autoencoder(
    *, base_dim: int = 16, decoder_base_dim: int = 16, z_dim: int = Z_DIM
) -> AutoencoderKLWan:
    """Build the untrained autoencoder: 16x in space, 4x in time, patch 2, residual."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=z_dim,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    )


def _norm(layer: Any, x: Tensor) -> Tensor:
    """RMS-normalise over channels with the layer's gain, then SiLU."""
    scale = torch.rsqrt(x.float().pow(2).mean(dim=1, keepdim=True) + 1e-12).to(x.dtype)
    return F.silu(x * scale * layer.gamma.to(x.dtype))


def _conv(layer: Any, x: Tensor) -> Tensor:
    """Apply a causal convolution to a whole clip (zeros before the first frame)."""
    kernel_t, kernel_h, kernel_w = layer.kernel_size
    if kernel_t > 1:
        x = F.pad(x, (0, 0, 0, 0, kernel_t - 1, 0))
    padding = (0, kernel_h // 2, kernel_w // 2)
    return F.conv3d(x, layer.weight, layer.bias, padding=padding)


def _residual(block: Any, x: Tensor) -> Tensor:
    shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
    h = _conv(block.conv1, _norm(block.norm1, x))
    return _conv(block.conv2, _norm(block.norm2, h)) + shortcut


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    x = block.attentions[0](x)
    return _residual(block.resnets[1], x)


def _frames(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2D layer to every frame."""
    batch, channels, frames, height, width = x.shape
    y = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width)
    y = layer(y)
    return y.view(batch, frames, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def _downsample(layer: Any, x: Tensor) -> Tensor:
    x = _frames(layer.resample, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        # The first frame has no predecessor and passes through.
        time = layer.time_conv
        later = F.conv3d(x, time.weight, time.bias, stride=time.stride)
        x = torch.cat([x[:, :, :1], later], dim=2)
    return x


def _upsample(layer: Any, x: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        # The first latent frame is one picture; each later one becomes two frames here.
        first, later = x[:, :, :1], x[:, :, 1:]
        batch, channels, frames, height, width = later.shape
        later = _conv(layer.time_conv, later).view(batch, 2, channels, frames, height, width)
        later = later.permute(0, 2, 3, 1, 4, 5).reshape(batch, channels, frames * 2, height, width)
        x = torch.cat([first, later], dim=2)
    return _frames(layer.resample, x)


def encode_whole(vae: AutoencoderKLWan, clip: Tensor) -> Tensor:
    """Encode [B, 3, 4k+1, H, W] in -1..1 to the mean latents [B, z, k+1, H/16, W/16]."""
    encoder: Any = vae.encoder
    x = _conv(encoder.conv_in, patchify(clip, 2))
    for block in encoder.down_blocks:
        h = x
        for resnet in block.resnets:
            h = _residual(resnet, h)
        if block.downsampler is not None:
            h = _downsample(block.downsampler, h)
        x = h + block.avg_shortcut(x)
    x = _middle(encoder.mid_block, x)
    x = _conv(encoder.conv_out, _norm(encoder.norm_out, x))
    return vae.quant_conv(x)[:, : vae.config.z_dim]


def decode_whole(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode [B, z, k+1, h, w] to [B, 3, 4k+1, 16h, 16w], not clamped."""
    decoder: Any = vae.decoder
    x = _conv(decoder.conv_in, vae.post_quant_conv(latents))
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        h = x
        for resnet in block.resnets:
            h = _residual(resnet, h)
        if block.upsampler is not None:
            h = _upsample(block.upsampler, h)
            h = h + block.avg_shortcut(x, first_chunk=True)
        x = h
    x = _conv(decoder.conv_out, _norm(decoder.norm_out, x))
    return unpatchify(x, 2)
