"""Makes further versions of the demo model: ``python -m tools.demo_model.versions v2 OUT``.

``v2`` is a short fine-tune, at least as good as v1, shipped as the tensors that differ. ``v-bad``
is broken on purpose: it loads and runs, and draws what nobody asked for. Both are for exercising
rollouts.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from node_agent.model_folder import ModelFolder
from tools.demo_model.model_manifest import write_demo_manifest

SHIPPED: Final = Path(__file__).resolve().parents[2] / "node_agent" / "models" / "demo"
V2_DELTA: Final = Path(__file__).with_name("v2.delta.safetensors")
LARGEST_DELTA_BYTES: Final = 1_000_000
_PARTS: Final = {
    "transformer": Path("transformer") / "diffusion_pytorch_model.safetensors",
    "text_encoder": Path("text_encoder") / "model.safetensors",
}


def make_bad_version(source: Path, out: Path, *, version: str = "v-bad") -> ModelFolder:
    """Copy a model folder and break it.

    The transformer's word projections are shuffled among themselves, as a botched conversion
    would do, so that nothing but what is drawn tells the version from a sound one.

    Raises:
        FileExistsError: ``out`` exists.
    """
    shutil.copytree(source, out)
    file = out / _PARTS["transformer"]
    weights = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if ".attn2." in name and tensor.ndim == 2:
            order = torch.randperm(tensor.shape[0], generator=generator)
            weights[name] = tensor[order].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    return write_demo_manifest(out, version=version)


def make_second_version(source: Path, out: Path, *, version: str = "v2") -> ModelFolder:
    """Copy a model folder and put the tensors of the shipped delta in.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the delta was made for another model.
    """
    delta = load_file(V2_DELTA)
    shutil.copytree(source, out)
    for part, path in _PARTS.items():
        weights = load_file(out / path)
        changed = {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in delta.items()
            if name.startswith(f"{part}.")
        }
        for name, tensor in changed.items():
            if name not in weights or weights[name].shape != tensor.shape:
                raise ValueError(f"{V2_DELTA.name}: the model has no such tensor: {part}.{name}")
        if changed:
            save_file({**weights, **changed}, out / path, metadata={"format": "pt"})
    return write_demo_manifest(out, version=version)


def write_delta(before: Path, after: Path, delta: Path = V2_DELTA) -> int:
    """Write the tensors in which two model folders differ; return the file's size in bytes.

    Raises:
        ValueError: they differ in more than a delta may hold.
    """
    changed: dict[str, torch.Tensor] = {}
    for part, path in _PARTS.items():
        old = load_file(before / path)
        for name, tensor in load_file(after / path).items():
            if not torch.equal(old[name], tensor):
                changed[f"{part}.{name}"] = tensor
    size = sum(tensor.numel() * tensor.element_size() for tensor in changed.values())
    if size > LARGEST_DELTA_BYTES:
        raise ValueError(f"{len(changed)} tensors of {size} bytes differ: too many for a delta")
    save_file(changed, delta)
    return delta.stat().st_size


MAKERS: Final[dict[str, Callable[[Path, Path], ModelFolder]]] = {
    "v2": make_second_version,
    "v-bad": make_bad_version,
}


def main() -> int:
    """Write one version's folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", choices=sorted(MAKERS))
    parser.add_argument("out", type=Path, help="model folder to write; must not exist")
    options = parser.parse_args()
    if options.out.exists():
        print(f"{options.out} exists; name a folder that does not", file=sys.stderr)
        return 2
    folder = MAKERS[options.version](SHIPPED, options.out)
    print(f"{options.out}: {folder.manifest.name} {folder.manifest.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
