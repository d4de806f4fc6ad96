"""Generates the checked-in protobuf code: ``python tools/gen_protos.py [--check]``.

``--check`` generates into a scratch folder and fails when the checked-in files
differ, so that CI notices a .proto that changed without its code.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent

# (proto root, files below it, where the code goes). The etcd stubs have a package
# and a file name of their own: two etcd libraries in one process clash on kv.proto.
TREES = (
    ("proto", "reelmesh/v1/*.proto", "proto"),
    (".", "control_plane/store/etcdpb/*.proto", "."),
)


def generate(out_root: Path) -> None:
    """Writes all generated files below ``out_root``, laid out as in the repository."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    for proto_root, pattern, out in TREES:
        files = sorted((ROOT / proto_root).glob(pattern))
        if not files:
            continue
        target = out_root / out
        target.mkdir(parents=True, exist_ok=True)
        code = protoc.main(
            [
                "protoc",
                f"-I{ROOT / proto_root}",
                f"-I{well_known}",
                f"--python_out={target}",
                f"--grpc_python_out={target}",
                f"--mypy_out=quiet:{target}",
                f"--mypy_grpc_out=quiet:{target}",
                *map(str, files),
            ]
        )
        if code != 0:
            sys.exit(code)
    _drop_empty_services(out_root)


def _drop_empty_services(out_root: Path) -> None:
    """Removes the _pb2_grpc files of protos that define no service."""
    for path in out_root.rglob("*_pb2_grpc.py"):
        if path.relative_to(out_root).parts[0] not in {"proto", "control_plane"}:
            continue
        if "class " not in path.read_text():
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)


def generated_files(root: Path) -> set[Path]:
    """Paths of the generated files below ``root``, relative to it."""
    found: set[Path] = set()
    for folder in ("proto/reelmesh/v1", "control_plane/store/etcdpb"):
        for path in (root / folder).glob("*_pb2*.py*"):
            found.add(path.relative_to(root))
    return found


def check() -> int:
    """Compares a fresh generation with the checked-in files; 0 when equal."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh_root = Path(scratch)
        generate(fresh_root)
        fresh, kept = generated_files(fresh_root), generated_files(ROOT)
        stale = sorted(
            str(path)
            for path in fresh | kept
            if path not in fresh
            or path not in kept
            or not filecmp.cmp(fresh_root / path, ROOT / path, shallow=False)
        )
    for path in stale:
        print(f"stale generated file: {path}", file=sys.stderr)
    if stale:
        print("run: make protos", file=sys.stderr)
    return 1 if stale else 0


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference, write nothing")
    if parser.parse_args().check:
        return check()
    for path in generated_files(ROOT):
        (ROOT / path).unlink()
    generate(ROOT)
    return 0


if __name__ == "__main__":
    shutil.which("protoc-gen-mypy") or sys.exit("protoc-gen-mypy is not on PATH: activate .venv")
    sys.exit(main())
