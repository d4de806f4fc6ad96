"""Makes further versions of the demo model for exercising rollouts."""

import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from node_agent.model_folder import ModelFolder
from tools.demo_model.model_manifest import write_demo_manifest

_TRANSFORMER: Final = Path("transformer") / "diffusion_pytorch_model.safetensors"


def make_bad_version(source: Path, out: Path, *, version: str = "v-bad") -> ModelFolder:
    """Copy a model folder and break it: it loads and runs, and draws what nobody asked for.

    The transformer's word projections are shuffled among themselves, as a botched conversion
    would do, so that nothing but what is drawn tells the version from a sound one.

    Raises:
        FileExistsError: ``out`` exists.
    """
    shutil.copytree(source, out)
    weights = load_file(out / _TRANSFORMER)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if ".attn2." in name and tensor.ndim == 2:
            order = torch.randperm(tensor.shape[0], generator=generator)
            weights[name] = tensor[order].contiguous()
    save_file(weights, out / _TRANSFORMER, metadata={"format": "pt"})
    return write_demo_manifest(out, version=version)
