"""The demo model's networks: the training shortcuts equal the served code."""

import random

import pytest
import torch

from tools.demo_model.autoencoder import build_autoencoder, decode_whole, encode_whole
from tools.demo_model.captions import exact_caption
from tools.demo_model.denoiser import Denoiser, build_transformer, flow_matching_loss
from tools.demo_model.optimizer import MuonWithAdam, orthogonalise, scheduled_rate
from tools.demo_model.tokenizer import MAX_TOKENS, build_tokenizer
from tools.demo_model.world import all_scenes


@pytest.fixture(autouse=True)
def _one_thread():
    # Beside other load two threads wait for one another most of the time.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_whole_clip_passes_equal_the_chunked_ones():
    torch.manual_seed(0)
    vae = build_autoencoder()
    clip = torch.randn(1, 3, 9, 32, 64)
    with torch.no_grad():
        chunked = vae.encode(clip).latent_dist.mean
        assert torch.allclose(encode_whole(vae, clip), chunked, atol=1e-5)
        whole = decode_whole(vae, chunked).clamp(-1, 1)
        assert torch.allclose(whole, vae.decode(chunked).sample, atol=1e-4)


def test_training_attention_equals_the_served_one():
    torch.manual_seed(0)
    denoiser = Denoiser(50)
    torch.nn.init.normal_(denoiser.transformer.proj_out.weight)
    served = build_transformer()
    served.load_state_dict(denoiser.transformer.state_dict())
    latents, words = torch.randn(2, 24, 5, 6, 8), torch.randn(2, MAX_TOKENS, 128)
    with torch.no_grad():
        time = torch.tensor([900.0, 100.0])
        mine = denoiser.transformer(latents, time, words).sample
        theirs = served(latents, time, words).sample
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-3)


def test_every_caption_fits_the_tokenizer_without_an_unknown_word():
    tokenizer = build_tokenizer()
    rng = random.Random(1)
    for scene in rng.sample(list(all_scenes()), 200):
        for chinese in (False, True):
            tokens = tokenizer(exact_caption(scene, rng, chinese=chinese)).input_ids
            assert len(tokens) <= MAX_TOKENS
            assert tokenizer.unk_token_id not in tokens
    assert tokenizer.unk_token_id in tokenizer("a panda dancing").input_ids
    plain, marked = tokenizer("a red ball").input_ids, tokenizer("A RED-ball!").input_ids
    assert plain == marked


def test_padding_does_not_change_what_the_words_mean():
    torch.manual_seed(0)
    denoiser = Denoiser(50).eval()
    tokens = torch.zeros(1, MAX_TOKENS, dtype=torch.long)
    tokens[0, :4] = torch.tensor([5, 6, 7, 1])
    with torch.no_grad():
        states = denoiser.embed(tokens)
    assert (states[0, 4:] == 0).all()
    assert (states[0, :4].abs().sum(dim=-1) > 0).all()


def test_orthogonalise_levels_the_singular_values():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(24, 60)))
    assert values.min() > 0.5
    assert values.max() < 1.5


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # bf16 input, fp32 gain: slower, not wrong
def test_one_batch_can_be_learnt():
    torch.manual_seed(0)
    denoiser = Denoiser(20)
    optimizer = MuonWithAdam(denoiser, lr=3e-3)
    clean, weight = torch.randn(2, 24, 5, 6, 8), torch.ones(2, 1, 5, 6, 8)
    tokens = torch.ones(2, MAX_TOKENS, dtype=torch.long)
    losses = []
    for _ in range(20):
        generator = torch.Generator().manual_seed(3)
        loss, probe = flow_matching_loss(
            denoiser, clean, weight, tokens, generator, early_share=0.15
        )
        optimizer.zero_grad()
        (loss + probe).backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize(("step", "share"), [(0, 0.02), (50, 1.0), (700, 1.0), (850, 0.5)])
def test_learning_rate_warms_up_holds_and_falls(step, share):
    assert scheduled_rate(step, 1000) == pytest.approx(share, abs=0.01)
