"""What may be in a model's folder: data that cannot run, and proof of it by the first bytes. Pure.

A name alone says nothing: a pickle can be called ``model.safetensors``. So the header of each
safetensors file is read and has to describe exactly the bytes that follow, and no other file
may begin as a pickle, an archive or a program does.
"""

from __future__ import annotations

import enum
import json
import math
from pathlib import PurePosixPath
from typing import Any, Final

# The node agent takes the same and nothing else; a test holds the two lists together.
ACCEPTED_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model"})
PICKLES: Final = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack"}
    | {".h5", ".hdf5", ".keras", ".pb", ".onnx", ".mar", ".dill"}
)
CODE: Final = frozenset(
    {".py", ".pyc", ".pyd", ".pyx", ".so", ".dylib", ".dll", ".exe", ".sh", ".bash", ".bat", ".cmd"}
    | {".ps1", ".js", ".mjs", ".ts", ".rb", ".pl", ".lua", ".jar", ".class", ".wasm", ".ipynb"}
    | {".cu", ".ptx", ".cubin", ".whl", ".egg"}
)
MANIFEST_NAME: Final = "manifest.json"

HEAD_BYTES: Final = 8
# What the safetensors library itself takes at most.
MAX_HEADER_BYTES: Final = 100_000_000

_STARTS: Final = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"#!", "a script"),
    (b"\x93NUMPY", "a numpy array"),
)
_WIDTHS: Final = {
    64: "F64 I64 U64 C64",
    32: "F32 I32 U32",
    16: "F16 BF16 I16 U16",
    8: "I8 U8 BOOL F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    6: "F6_E2M3 F6_E3M2",
    4: "F4",
}
_BITS: Final = {dtype: bits for bits, names in _WIDTHS.items() for dtype in names.split()}


class Verdict(enum.Enum):
    """What becomes of a file by its name."""

    TAKEN = "taken"
    LEFT_OUT = "left out"
    REFUSED = "refused"


def judge(path: str) -> tuple[Verdict, str]:
    """What becomes of a file by its name, and why where it is refused."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in PICKLES:
        return Verdict.REFUSED, f"{suffix} files can run code when they are loaded"
    if suffix in CODE:
        return Verdict.REFUSED, f"{suffix} files are code"
    if suffix not in ACCEPTED_SUFFIXES or path == MANIFEST_NAME:
        return Verdict.LEFT_OUT, ""
    if any(part.startswith(".") for part in PurePosixPath(path).parts):
        return Verdict.LEFT_OUT, ""
    return Verdict.TAKEN, ""


def path_problem(path: str) -> str:
    """What is wrong with a file's path; "" for a plain one below its folder."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        return "is no plain path inside the folder"
    if "\\" in path or not path.isprintable():
        return "holds characters that a path should not"
    return ""


def start_problem(path: str, head: bytes) -> str:
    """What is wrong with a file by its first bytes; "" for one that may be data."""
    for start, what in _STARTS:
        if head.startswith(start):
            return f"begins as {what} does"
    # Protocols 2 to 5; a safetensors file of that length of header ends far beyond.
    if not path.endswith(".safetensors") and head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return "begins as a pickle does"
    return ""


def header_length(head: bytes, size_bytes: int) -> int | None:
    """Bytes of a safetensors file's header by its first eight; None where it is no such file."""
    if len(head) < HEAD_BYTES:
        return None
    length = int.from_bytes(head[:HEAD_BYTES], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - HEAD_BYTES):
        return None
    return length


def header_problem(header: bytes, data_bytes: int) -> str:
    """What is wrong with a safetensors header; "" where it describes exactly the bytes after it.

    Args:
        header: Its JSON.
        data_bytes: Bytes of the file after it.
    """
    try:
        told = json.loads(header)
    except (ValueError, RecursionError):
        return "its header is not JSON"
    if not isinstance(told, dict):
        return "its header is no JSON object"
    spans = []
    for name, tensor in told.items():
        if name == "__metadata__":
            continue
        span = _span(tensor)
        if span is None:
            return f"its header describes tensor {name[:60]!r} wrongly"
        spans.append(span)
    # Every byte belongs to one tensor: nothing is hidden between them or behind.
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            return "its tensors leave gaps, or overlap"
        at = end
    if at != data_bytes:
        return f"its tensors take {at} bytes, and {data_bytes} follow its header"
    return ""


def _span(tensor: Any) -> tuple[int, int] | None:
    if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    bits, shape, offsets = _BITS.get(str(tensor["dtype"])), tensor["shape"], tensor["data_offsets"]
    if bits is None or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        return None
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * bits:
        return None
    return begin, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)
