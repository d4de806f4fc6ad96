"""A small model of the 5B's shape with random weights, for demos, tests and benchmarks.

The same classes, configuration and files as Wan2.2-TI2V-5B in diffusers' layout, so
that the code that loads it is the code that loads the 5B. It draws coloured noise.
The shape follows diffusers' own ``tests/pipelines/wan/test_wan_22.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from node_agent.model_folder import ModelFolder, write_manifest

_Z_DIM = 48
_TEXT_DIM = 64
_MAX_TOKENS = 64
_PAD, _EOS, _UNK = "<pad>", "</s>", "<unk>"


def make_random_model(
    out: Path, *, name: str = "wan-demo", version: str = "random-1", seed: int = 0
) -> ModelFolder:
    """Writes the model and its manifest into ``out``, which must not exist or be empty.

    The same seed gives the same bytes. Takes well under a second once torch is imported.

    Raises:
        FileExistsError: ``out`` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = WanPipeline(
            tokenizer=_tokenizer(),
            text_encoder=_text_encoder(),
            vae=_vae(),
            transformer=_transformer(),
            transformer_2=None,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
            ),
            boundary_ratio=None,
            expand_timesteps=True,
        )
    transformers.utils.logging.disable_progress_bar()
    pipeline.save_pretrained(out, safe_serialization=True)
    return write_manifest(out, _manifest_fields(name=name, version=version))


def _tokenizer() -> PreTrainedTokenizerFast:
    """UTF-8 bytes as tokens: any language, no vocabulary to ship."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([_PAD, _EOS, _UNK, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=_UNK))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {_EOS}", special_tokens=[(_EOS, vocabulary[_EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=_PAD,
        eos_token=_EOS,
        unk_token=_UNK,
        model_max_length=_MAX_TOKENS,
    )


def _text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=3 + 256,
        d_model=_TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
    )
    return UMT5EncoderModel(config).eval()


def _vae() -> AutoencoderKLWan:
    vae = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=_Z_DIM,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
        latents_mean=[0.0] * _Z_DIM,
        latents_std=[1.0] * _Z_DIM,
    )
    with torch.no_grad():
        # A fresh decoder's output is nearly flat grey; this spreads it over the range,
        # so that an encoder has something to do and a test something to see.
        vae.decoder.conv_out.weight.mul_(2.0)
    return vae.eval()


def _transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=_Z_DIM,
        out_channels=_Z_DIM,
        text_dim=_TEXT_DIM,
        freq_dim=64,
        ffn_dim=192,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    ).eval()


def _manifest_fields(*, name: str, version: str) -> dict[str, Any]:
    landscape = {"width_px": 128, "height_px": 96}
    portrait = {"width_px": 96, "height_px": 128}
    wide = {"width_px": 160, "height_px": 96}
    tall = {"width_px": 96, "height_px": 160}
    small = {"width_px": 64, "height_px": 64}
    return {
        "name": name,
        "version": version,
        "description": "Random weights in the shape of Wan2.2-TI2V-5B. It draws coloured "
        "noise, to exercise a mesh without a trained model.",
        "sizes": [landscape, portrait, wide, tall, small],
        "size_aliases": {
            "480p": landscape,
            "1280x720": wide,
            "1792x1024": wide,
            "720x1280": tall,
            "1024x1792": tall,
        },
        "frames": {"min": 5, "max": 49, "step": 4},
        "fps": 8.0,
        "seconds": {"min_s": 0.5, "max_s": 12.0},
        "steps": {"min": 1, "max": 50},
        "guidance_scale": {"min": 1.0, "max": 10.0},
        "flow_shift": {"min": 1.0, "max": 12.0},
        "defaults": {
            "size": landscape,
            "num_frames": 17,
            "steps": 8,
            "guidance_scale": 3.0,
            "flow_shift": 5.0,
            "negative_prompt": "",
        },
        "max_sequence_length": _MAX_TOKENS,
        "dtypes": {"transformer": "float32", "text_encoder": "float32", "vae": "float32"},
        "vram_gb": 0.5,
    }
