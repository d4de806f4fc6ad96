import copy

import diffusers
import numpy as np
import pytest
import torch

from node_agent.engine.decode import decode_frames, to_group, unscale_latents
from tests.support.engine import shared_model


@pytest.fixture
def vae(random_model_dir):
    return shared_model(random_model_dir).vae


def latents(latent_frames: int, height: int, width: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, 48, latent_frames, height, width), generator=generator)


def test_the_pinned_diffusers_is_installed():
    # decode_frames reads private state of this series; look at it again before moving.
    assert diffusers.__version__.startswith("0.42.")


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 6, 8), (3, 4, 4), (5, 6, 8), (4, 10, 6)])
def test_streamed_frames_are_the_vaes_own_bit_for_bit(vae, shape):
    z = unscale_latents(vae, latents(*shape))
    with torch.no_grad():
        whole = vae.decode(z).sample

    parts = list(decode_frames(vae, z))

    assert [part.shape[2] for part in parts] == [1] + [4] * (shape[0] - 1)
    assert torch.equal(torch.cat(parts, dim=2).clamp(-1.0, 1.0), whole)


def test_in_bfloat16_too(vae):
    z = latents(3, 4, 4).to(torch.bfloat16)
    # A copy: the shared one would not get back what bfloat16 rounds off.
    vae = copy.deepcopy(vae).to(torch.bfloat16)
    with torch.no_grad():
        whole = vae.decode(z).sample

    parts = list(decode_frames(vae, z))

    assert torch.equal(torch.cat(parts, dim=2).clamp(-1.0, 1.0), whole)


def test_an_abandoned_decode_leaves_nothing_behind(vae):
    z = unscale_latents(vae, latents(3, 4, 4))
    fresh = torch.cat(list(decode_frames(vae, z)), dim=2)

    abandoned = decode_frames(vae, unscale_latents(vae, latents(3, 4, 4, seed=9)))
    next(abandoned)
    next(abandoned)
    abandoned.close()

    assert all(entry is None for entry in vae._feat_map)
    assert torch.equal(torch.cat(list(decode_frames(vae, z)), dim=2), fresh)


def test_latents_are_unscaled_by_the_configured_mean_and_deviation(vae):
    saved = vae.config.latents_mean, vae.config.latents_std
    vae.register_to_config(latents_mean=[0.5] * 48, latents_std=[2.0] * 48)
    try:
        z = unscale_latents(vae, torch.ones((1, 48, 1, 2, 2)))
    finally:
        vae.register_to_config(latents_mean=saved[0], latents_std=saved[1])

    assert torch.equal(z, torch.full((1, 48, 1, 2, 2), 2.5))


def test_tiling_is_refused_rather_than_ignored(vae):
    vae.enable_tiling()
    try:
        with pytest.raises(ValueError, match="tiling"):
            next(decode_frames(vae, latents(1, 4, 4)))
    finally:
        vae.use_tiling = False


def test_levels_are_the_stock_pipelines():
    frames = torch.linspace(-1.2, 1.2, 3 * 2 * 4 * 4).reshape(1, 3, 2, 4, 4)

    rgb = to_group(frames).wait()

    expected = (frames[0].clamp(-1, 1) * 0.5 + 0.5).mul(255).round().permute(1, 2, 3, 0)
    assert rgb is not None
    assert rgb.dtype == np.uint8
    assert np.array_equal(rgb, expected.numpy().astype(np.uint8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_spoils_a_group(bad):
    frames = torch.zeros((1, 3, 4, 8, 8))
    frames[0, 1, 2, 3, 4] = bad

    assert to_group(frames).wait() is None
