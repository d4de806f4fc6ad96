"""The transformer that draws latents from noise and words, and the words' encoder.

Both are of the 5B's classes (``WanTransformer3DModel``, ``UMT5EncoderModel``) and are trained
together: the vocabulary is a closed grammar, so there is nothing to take from a larger encoder.
"""

from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from tools.demo_model.autoencoder import Z_DIM
from tools.demo_model.tokenizer import MAX_TOKENS
from tools.demo_model.world import FRAME_COUNT, HEIGHT_PX, WIDTH_PX

TRAIN_SHIFT: Final = 3.0
PROBED_BLOCK: Final = 1
LATENT_FRAMES: Final = 1 + (FRAME_COUNT - 1) // 4
_TEXT_DIM: Final = 128


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Build the untrained text encoder."""
    config = UMT5Config(
        vocab_size=vocabulary_size,
        d_model=_TEXT_DIM,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=True,
    )
    encoder = UMT5EncoderModel(config)
    # A unit embedding: the first norm then neither starves nor drowns it.
    nn.init.normal_(encoder.shared.weight, std=1.0)
    return encoder


def build_transformer() -> WanTransformer3DModel:
    """Build the untrained transformer; its output starts at zero."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        text_dim=_TEXT_DIM,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


class PlainAttention:
    """Wan's attention by three matrix products.

    On a CPU the fused kernel takes three times as long for 60 tokens, forward and backward.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend [B, N, C] to itself, or to words [B, M, C]."""
        del attention_mask  # Wan masks nothing
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(source).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        scale = query.shape[-1] ** -0.5
        logits = (query * scale).to(value.dtype).transpose(1, 2) @ key.to(value.dtype).permute(
            0, 2, 3, 1
        )
        mixed = logits.softmax(dim=-1).to(value.dtype) @ value
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs of [B, N, heads, D] by their positions' angles."""
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class Denoiser(nn.Module):
    """Text encoder and transformer as one trainable whole, and a probe that helps at first.

    Wan's transformer knows only relative positions (RoPE), and pure noise is alike everywhere: it
    must learn to find the picture's edges in the noise before it can place anything. The probe
    asks an early layer where each token is, which teaches it that within some hundred steps. It
    is no part of the shipped model.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary_size)
        self.transformer = build_transformer()
        for block in self.transformer.blocks:
            block.attn1.set_processor(PlainAttention())
            block.attn2.set_processor(PlainAttention())
        self._grid = (LATENT_FRAMES, HEIGHT_PX // 32, WIDTH_PX // 32)
        self.position_probe = nn.Linear(192, sum(self._grid))
        self._probed: Tensor | None = None
        self.transformer.blocks[PROBED_BLOCK].register_forward_hook(self._keep_probed)

    @classmethod
    def from_pipeline(cls, pipeline: WanPipeline) -> Self:
        """Take the weights of an exported model; the probe starts anew."""
        denoiser = cls(len(pipeline.tokenizer))
        denoiser.text_encoder.load_state_dict(pipeline.text_encoder.state_dict())
        denoiser.transformer.load_state_dict(pipeline.transformer.state_dict())
        return denoiser

    def _keep_probed(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        del module, inputs
        self._probed = output

    def compile_blocks(self) -> None:
        """Compile the transformer's blocks for this device: half the time a step, after a minute.

        Needs a C++ compiler on a CPU. Call it after every copy of the model was made.
        """
        for block in self.transformer.blocks:
            block.compile(dynamic=False)

    def position_loss(self) -> Tensor:
        """Return how badly the probed layer of the last forward knows where its tokens are."""
        assert self._probed is not None  # forward comes first
        hidden = F.layer_norm(self._probed.float(), (self._probed.shape[-1],))
        guesses = self.position_probe(hidden).split(self._grid, dim=-1)
        truth = torch.cartesian_prod(*(torch.arange(n, device=hidden.device) for n in self._grid))
        losses = [
            F.cross_entropy(guess.flatten(0, 1), truth[:, axis].repeat(len(hidden)))
            for axis, guess in enumerate(guesses)
        ]
        return torch.stack(losses).mean()

    def embed(self, token_ids: Tensor) -> Tensor:
        """Encode tokens [B, 24] to [B, 24, 128], zero where padded, as the pipeline does."""
        mask = (token_ids != 0).long()
        states = self.text_encoder(token_ids, mask).last_hidden_state
        return states * mask[..., None]

    def forward(self, latents: Tensor, sigma: Tensor, token_ids: Tensor) -> Tensor:
        """Predict the velocity (noise minus clean) of latents [B, z, T, h, w] at noise [B]."""
        words = self.embed(token_ids)
        velocity: Tensor = self.transformer(
            hidden_states=latents,
            timestep=sigma * 1000.0,
            encoder_hidden_states=words,
            return_dict=False,
        )[0]
        return velocity


def sample_noise_levels(count: int, generator: torch.Generator, early_share: float) -> Tensor:
    """Draw noise levels in 0..1: logit-normal, shifted towards noise as sampling is.

    ``early_share`` of them lie near pure noise, where a clip's content and place are decided.
    """
    sigma = torch.sigmoid(torch.randn(count, generator=generator))
    sigma = TRAIN_SHIFT * sigma / (1 + (TRAIN_SHIFT - 1) * sigma)
    early = torch.rand(count, generator=generator) < early_share
    return torch.where(early, 1.0 - 0.12 * torch.rand(count, generator=generator), sigma)


def flow_matching_loss(
    denoiser: Denoiser,
    clean: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    generator: torch.Generator,
    *,
    early_share: float,
) -> tuple[Tensor, Tensor]:
    """Return the velocity's weighted squared error on latents [B, z, T, h, w], and the probe's."""
    assert token_ids.shape[1] == MAX_TOKENS  # the length is part of what is learnt
    sigma = sample_noise_levels(len(clean), generator, early_share).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast(clean.device.type, torch.bfloat16):
        velocity = denoiser((1 - level) * clean + level * noise, sigma, token_ids)
    error = (velocity.float() - (noise - clean)).square().mean(dim=1, keepdim=True)
    return (error * weight).sum() / weight.sum(), denoiser.position_loss()
