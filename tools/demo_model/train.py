"""Trains the demo model: ``python -m tools.demo_model.train all --state DIR``.

Phases, each resumable by the same command: ``vae``, ``latents``, ``transformer``, ``export`` and
``eval``; ``all`` runs them in this order. With ``--from-model FOLDER`` the transformer goes on from
an exported model, whose autoencoder stays as it is. Works on a CPU, or on a GPU if torch finds one.
The process group's id is written to ``DIR/pgid``, so that a run can be paused (SIGSTOP) and go on.
"""

import argparse
import dataclasses
import json
import os
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from tools.demo_model import train_autoencoder, train_denoiser
from tools.demo_model.autoencoder import build_autoencoder
from tools.demo_model.checkpoint import Run
from tools.demo_model.denoiser import Denoiser
from tools.demo_model.engine_artist import EngineArtist
from tools.demo_model.evaluate import (
    Score,
    contact_sheet,
    held_out_prompts,
    score_autoencoder,
    score_model,
)
from tools.demo_model.latents import encode_world, load_latents
from tools.demo_model.model_manifest import VERSION, write_demo_manifest
from tools.demo_model.pipeline import build_pipeline, load_pipeline, save_pipeline
from tools.demo_model.tokenizer import build_tokenizer
from tools.demo_model.versions import V2_DELTA, write_delta

_EXTRA_STEPS: Final = 600  # what a missed autoencoder gate earns, a few times
_EXTRA_TRIES: Final = 3


class Training:
    """The phases over one state folder.

    Args:
        options: the parsed command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._state: Path = options.state
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._state.mkdir(parents=True, exist_ok=True)
        self._source = load_pipeline(options.from_model) if options.from_model else None
        (self._state / "pgid").write_text(f"{os.getpgrp()}\n")

    def _passed(self, name: str, *, step: int) -> bool:
        """Tell whether this very state of the weights was measured and found good."""
        path = self._state / f"{name}.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        return record.get("step") == step and not record["failures"]

    def _report(self, name: str, score: Score, *, step: int) -> None:
        print(score.table(name), *score.failures, *score.mistakes[:20], sep="\n", flush=True)
        record = {"step": step, **dataclasses.asdict(score)}
        (self._state / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))

    def _vae(self) -> Any:
        path = self._state / "autoencoder" / "checkpoint.pt"
        if self._source is not None and not path.exists():
            return self._source.vae.to(self._device).eval().requires_grad_(requires_grad=False)
        vae = build_autoencoder()
        vae.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["average"])
        return vae.to(self._device).eval().requires_grad_(requires_grad=False)

    def vae(self) -> None:
        """Train the autoencoder; go on past its budget while its gates are missed.

        Of an exported model only the decoder: its latents stay what they are.
        """
        if self._options.second_version:
            return
        recipe, start = train_autoencoder.FROM_NOTHING, None
        if self._source is not None:
            recipe, start = train_autoencoder.FINE_TUNE, self._source.vae
        total = recipe.total
        if self._options.vae_steps is not None:
            total = recipe.first_step + self._options.vae_steps
        if self._passed("autoencoder-gates", step=Run(self._state / "autoencoder").steps_done()):
            return
        for attempt in range(_EXTRA_TRIES + 1):
            run = Run(self._state / "autoencoder")
            train_autoencoder.train(
                run, device=self._device, recipe=recipe, total=total, start=start
            )
            score = score_autoencoder(self._vae())
            self._report("autoencoder-gates", score, step=run.steps_done())
            if not score.failures:
                return
            if attempt < _EXTRA_TRIES:
                total = max(total, run.steps_done()) + _EXTRA_STEPS
        print("the autoencoder misses its gates; going on with it all the same", flush=True)

    def latents(self) -> None:
        """Encode the world once."""
        step, spread = Run(self._state / "autoencoder").steps_done(), None
        if self._source is not None:
            config = self._source.vae.config
            step, spread = -1, (config.latents_mean, config.latents_std)
        encode_world(
            self._vae(),
            self._state / "latents.pt",
            step=step,
            device=self._device,
            statistics=spread,
        )

    def transformer(self) -> None:
        """Train transformer and text encoder."""
        run = Run(self._state / "transformer")
        data = load_latents(self._state / "latents.pt")
        recipe, start = train_denoiser.FROM_NOTHING, None
        if self._source is not None:
            recipe, start = train_denoiser.FINE_TUNE, Denoiser.from_pipeline(self._source)
        if self._options.second_version:
            recipe = train_denoiser.SECOND_VERSION
        if self._options.transformer_steps is not None:
            total = recipe.first_step + self._options.transformer_steps
            recipe = dataclasses.replace(recipe, total=total)
        train_denoiser.train(
            run, self._vae(), data, device=self._device, recipe=recipe, start=start
        )

    def export(self) -> None:
        """Write the model folder."""
        data = load_latents(self._state / "latents.pt")
        path = self._state / "transformer" / "checkpoint.pt"
        denoiser = Denoiser(len(build_tokenizer()))
        denoiser.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["average"])
        pipeline = build_pipeline(self._vae().cpu(), denoiser, mean=data.mean, std=data.std)
        size = save_pipeline(pipeline, self._options.out)
        write_demo_manifest(
            self._options.out, version="v2" if self._options.second_version else VERSION
        )
        print(f"wrote {self._options.out}: {size} bytes of weights", flush=True)
        if self._options.second_version:
            size = write_delta(self._options.from_model, self._options.out)
            print(f"wrote {V2_DELTA}: {size} bytes", flush=True)

    def eval(self) -> None:
        """Measure the exported model over held-out prompts, and draw a contact sheet.

        Drawn by the serving engine and encoded as it is served: what a user sees is measured.
        """
        with EngineArtist(self._options.out, threads=self._options.threads) as artist:
            score = score_model(artist.draw, count=self._options.eval_count)
            asked = held_out_prompts(10)
            clips = artist.draw([ask[1] for ask in asked], [ask[2] for ask in asked])
        seconds = {
            "load_s": artist.load_s,
            "clip_s_median": statistics.median(artist.clip_s),
            "clip_s_worst": max(artist.clip_s),
        }
        score = dataclasses.replace(score, figures={**score.figures, **seconds})
        self._report("model-gates", score, step=Run(self._state / "transformer").steps_done())
        contact_sheet(clips, columns=8).save(self._state / "contact-sheet.png")
        if score.failures:
            raise SystemExit(1)

    def run(self, phase: str) -> None:
        """Run one phase, or all of them in order."""
        phases: dict[str, Callable[[], None]] = {
            "vae": self.vae,
            "latents": self.latents,
            "transformer": self.transformer,
            "export": self.export,
            "eval": self.eval,
        }
        for name, step in phases.items():
            if phase in (name, "all"):
                print(f"phase {name}", flush=True)
                step()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=["vae", "latents", "transformer", "export", "eval", "all"])
    parser.add_argument("--state", type=Path, required=True, help="folder of checkpoints and plots")
    parser.add_argument("--out", type=Path, help="model folder to write (default: STATE/model)")
    parser.add_argument("--vae-steps", type=int, help="default: the recipe's")
    parser.add_argument("--transformer-steps", type=int, help="default: the recipe's")
    parser.add_argument("--from-model", type=Path, help="exported model to fine-tune")
    parser.add_argument(
        "--second-version",
        action="store_true",
        help="make v2 of --from-model: train the text encoder alone, and write the delta",
    )
    parser.add_argument("--eval-count", type=int, default=200, help="held-out prompts to draw")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: torch's choice)")
    options = parser.parse_args()
    if options.second_version and options.from_model is None:
        parser.error("--second-version needs --from-model: it is a fine-tune")
    options.out = options.out or options.state / "model"
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    Training(options).run(options.phase)


if __name__ == "__main__":
    main()
