"""Trains the transformer and the text encoder on the world's latents by flow matching."""

import random
import shutil
from typing import Any, Final

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from tools.demo_model.captions import training_caption
from tools.demo_model.checkpoint import Run
from tools.demo_model.denoiser import Denoiser, flow_matching_loss
from tools.demo_model.evaluate import contact_sheet, draw, held_out_prompts, score_model
from tools.demo_model.latents import LatentSet
from tools.demo_model.optimizer import AveragedWeights, MuonWithAdam, scheduled_rate
from tools.demo_model.pipeline import build_pipeline
from tools.demo_model.tokenizer import MAX_TOKENS, build_tokenizer

LEARNING_RATE: Final = 2e-3
TOTAL_STEPS: Final = 5300
EVALUATE_EVERY: Final = 500
_NEAR_WEIGHT: Final = 2.0
_PROBE_WEIGHT: Final = 0.1
_SMALL_BATCH_STEPS: Final = 3000


def sample_batch(data: LatentSet, tokenizer: Any, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the latents, their weights and the tokens of one step; a step's draw never changes."""
    rng = random.Random(step)
    batch = 64 if step < _SMALL_BATCH_STEPS else 128
    picks = [rng.randrange(len(data.scenes)) for _ in range(batch)]
    captions = [training_caption(data.scenes[pick], rng) for pick in picks]
    tokens = tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    index = torch.tensor(picks)
    weight = 1.0 + _NEAR_WEIGHT * data.near[index][:, None].float()
    return data.latents[index].float(), weight, tokens


def _look(
    run: Run, step: int, vae: AutoencoderKLWan, denoiser: Any, data: LatentSet, count: int
) -> None:
    """Draw some held-out prompts, note how many attributes are right, and keep a picture."""
    pipeline = build_pipeline(vae, denoiser, mean=data.mean, std=data.std)
    score = score_model(pipeline, count=count)
    names = ("color", "shape", "motion", "background", "object_sigma")
    run.record(step, **{name: score.figures[name] for name in names})
    asked = held_out_prompts(10)
    clips = draw(pipeline, [ask[1] for ask in asked], [ask[2] for ask in asked])
    contact_sheet(clips).save(run.folder / "sheet.png")
    (run.folder / "sheet.txt").write_text("\n".join(ask[1] for ask in asked), encoding="utf-8")


def train(
    run: Run,
    vae: AutoencoderKLWan,
    data: LatentSet,
    *,
    device: str,
    total: int = TOTAL_STEPS,
    rate: float = LEARNING_RATE,
) -> Denoiser:
    """Train up to ``total`` steps, going on from a checkpoint; return the averaged model."""
    torch.manual_seed(2)
    tokenizer = build_tokenizer()
    denoiser = Denoiser(len(tokenizer)).to(device)
    average = AveragedWeights(denoiser, decay=0.998)
    optimizer = MuonWithAdam(denoiser, lr=rate, weight_decay=0.01)
    step = run.resume(denoiser, average.model, optimizer)
    if shutil.which("c++") is not None:
        denoiser.compile_blocks()
    with run.progress("transformer", step, total) as bar:
        while step < total:
            clean, weight, tokens = (t.to(device) for t in sample_batch(data, tokenizer, step))
            generator = torch.Generator().manual_seed(step)
            loss, probe = flow_matching_loss(denoiser, clean, weight, tokens, generator)
            optimizer.zero_grad()
            (loss + _PROBE_WEIGHT * probe).backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * scheduled_rate(step, total, warmup=100)
            optimizer.step()
            step += 1
            average.update(denoiser, step)
            run.record(step, loss=float(loss.detach()))
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(
                    loss=f"{float(loss.detach()):.3f}", probe=f"{float(probe.detach()):.3f}"
                )
            if step % EVALUATE_EVERY == 0 or step == total:
                _look(run, step, vae, average.model, data, count=35)
            if run.is_due(step) or step == total:
                run.save(step, denoiser, average.model, optimizer)
    run.close()
    return average.model  # type: ignore[return-value]  # it is a copy of the denoiser
