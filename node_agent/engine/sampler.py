"""Text to latents by diffusers' own ``WanPipeline``, with progress and cancellation.

The stock pipeline call does the denoising; this adds a callback to it and nothing per
step besides: no copy, no lock, no wait that the device would notice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from reelmesh.v1.video_pb2 import ResolvedSpec

# Negative prompts repeat from request to request; their embeddings are kept.
_KEPT_NEGATIVE_PROMPTS = 4

OnStep = Callable[[int], None]
Check = Callable[[], None]


class StepFence:
    """Knows which denoising step the device has finished.

    A CPU has finished a step when its call returns. CUDA runs behind the calls: a step
    counts once the event behind it has passed. The call for the next step is let
    through meanwhile, so that the device never waits for Python, but no further, so
    that a cancelled run leaves at most that one step on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: Any = None

    def passed(self, step: int) -> int:
        """Called after the work of ``step`` was issued; returns the last finished step."""
        if not self._cuda:
            return step
        before, self._last = self._last, torch.cuda.Event()
        self._last.record()
        if before is not None:
            before.synchronize()
        return step - 1

    def drain(self) -> None:
        """Returns when the device has finished everything that was issued."""
        if self._last is not None:
            self._last.synchronize()
            self._last = None


class Sampler:
    """One pipeline on one device; used by one thread."""

    def __init__(self, pipe: Any, *, device: torch.device, max_sequence_length: int) -> None:
        self._pipe = pipe
        self._device = device
        self._max_sequence_length = max_sequence_length
        self._scheduler_class = type(pipe.scheduler)
        self._scheduler_config = dict(pipe.scheduler.config)
        self._shift_key = "flow_shift" if "flow_shift" in self._scheduler_config else "shift"
        self._negatives: OrderedDict[str, torch.Tensor] = OrderedDict()

    @torch.inference_mode()  # type: ignore[untyped-decorator] # torch is not followed
    def encode_text(self, spec: ResolvedSpec) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings of the prompt and, where guidance is on, of the negative prompt."""
        prompt = self._embed(spec.prompt)
        if spec.guidance_scale <= 1.0:
            return prompt, None
        negative = self._negatives.pop(spec.negative_prompt, None)
        if negative is None:
            negative = self._embed(spec.negative_prompt)
        self._negatives[spec.negative_prompt] = negative
        while len(self._negatives) > _KEPT_NEGATIVE_PROMPTS:
            self._negatives.popitem(last=False)
        return prompt, negative

    @torch.inference_mode()  # type: ignore[untyped-decorator] # torch is not followed
    def denoise(
        self,
        spec: ResolvedSpec,
        embeddings: tuple[torch.Tensor, torch.Tensor | None],
        *,
        on_step: OnStep,
        check: Check,
    ) -> torch.Tensor:
        """Latents of shape [1, z_dim, latent frames, height / 16, width / 16].

        Args:
            spec: What to draw; its seed alone decides the noise, on any device.
            embeddings: From :meth:`encode_text`.
            on_step: Called with n after the device has finished step n, from 1.
            check: Called after each step; what it raises stops the run there.

        Whatever ends it, the next call behaves as if this one had not been.
        """
        self._use_flow_shift(spec.flow_shift)
        fence = StepFence(self._device)

        def after_step(_pipe: Any, index: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
            finished = fence.passed(index + 1)
            check()
            if finished:
                on_step(finished)
            return {}

        prompt, negative = embeddings
        try:
            latents = self._pipe(
                prompt_embeds=prompt,
                negative_prompt_embeds=negative,
                width=spec.width,
                height=spec.height,
                num_frames=spec.num_frames,
                num_inference_steps=spec.steps,
                guidance_scale=spec.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(spec.seed),
                max_sequence_length=self._max_sequence_length,
                output_type="latent",
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=[],
            ).frames
            if self._device.type == "cuda":
                fence.drain()
                on_step(spec.steps)
        except BaseException:
            fence.drain()
            self._forget_run()
            raise
        return latents

    def _embed(self, text: str) -> torch.Tensor:
        embeddings, _ = self._pipe.encode_prompt(
            prompt=text,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_sequence_length,
            device=self._device,
        )
        return embeddings

    def _use_flow_shift(self, flow_shift: float) -> None:
        if self._pipe.scheduler.config[self._shift_key] != flow_shift:
            self._new_scheduler(flow_shift)

    def _new_scheduler(self, flow_shift: float) -> None:
        config = {**self._scheduler_config, self._shift_key: flow_shift}
        self._pipe.scheduler = self._scheduler_class.from_config(config)

    def _forget_run(self) -> None:
        """Clears what a run that was stopped between two steps leaves behind."""
        # The stock call does this at its end, which was not reached: step caches
        # (FirstBlockCache, MagCache) would carry over into the next run.
        self._pipe.maybe_free_model_hooks()
        self._new_scheduler(self._pipe.scheduler.config[self._shift_key])
