"""A verified model folder to a pipeline on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import WanPipeline

from node_agent.engine.failures import LoadError
from node_agent.engine.sampler import Sampler
from node_agent.model_folder import ModelFolder, ModelFolderError, open_model_folder

# The manifest names one of these; nothing in a folder can name other code.
_PIPELINES = {"WanPipeline": WanPipeline}

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run; used by one thread."""

    folder: ModelFolder
    device: torch.device
    sampler: Sampler
    vae: Any


def load_model(model_dir: Path, device_name: str) -> LoadedModel:
    """Checks every file of the folder against its manifest and loads it.

    Raises:
        LoadError: ``device_unavailable``, ``model_invalid``, ``out_of_memory`` or
            ``load_failed``.
    """
    device = _open_device(device_name)
    try:
        folder = open_model_folder(model_dir)
        folder.verify_files()
    except ModelFolderError as error:
        raise LoadError("model_invalid", str(error)) from None
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipe = _load_pipeline(folder).to(device)
    except (torch.OutOfMemoryError, MemoryError):
        raise LoadError("out_of_memory", f"the weights do not fit on {device_name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        # What diffusers and transformers raise for files that do not fit together.
        raise LoadError("load_failed", f"{type(error).__name__}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    sampler = Sampler(pipe, device=device, max_sequence_length=folder.manifest.max_sequence_length)
    return LoadedModel(folder=folder, device=device, sampler=sampler, vae=pipe.vae)


def _open_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        # The first allocation makes the context, so a broken device shows here.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch asserts where it was built without CUDA.
        reason = str(error).splitlines()[0]
        raise LoadError("device_unavailable", f"device {name!r}: {reason}") from None
    return device


def _load_pipeline(folder: ModelFolder) -> Any:
    manifest = folder.manifest
    pipeline_class = _PIPELINES[manifest.pipeline_class]
    dtypes = manifest.dtypes
    return pipeline_class.from_pretrained(
        folder.path,
        local_files_only=True,
        use_safetensors=True,
        dtype={
            "transformer": _DTYPES[dtypes.transformer],
            "text_encoder": _DTYPES[dtypes.text_encoder],
            "vae": _DTYPES[dtypes.vae],
        },
    )
