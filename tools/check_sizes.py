"""Fails when a file has over 500 lines or a function over 60: small pieces stay readable.

Composition roots (``build_app``) may be longer; generated code is left out.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
COMPOSITION_ROOTS = {"build_app"}
ROOT = Path(__file__).resolve().parent.parent


def tracked_python() -> list[Path]:
    """Hand-written Python files that git knows or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],  # noqa: S607 - git is found by PATH everywhere
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return [
        ROOT / name
        for name in listing
        if not name.endswith(("_pb2.py", "_pb2_grpc.py")) and (ROOT / name).exists()
    ]


def problems(path: Path) -> Iterator[str]:
    """What is too long in one file, a line each."""
    source = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    lines = source.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{name}: {lines} lines, at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES and node.name not in COMPOSITION_ROOTS:
            where = f"{name}:{node.lineno}: {node.name}"
            yield f"{where} has {length} lines, at most {MAX_FUNCTION_LINES}"


def main() -> int:
    """Prints every problem; 1 when there is one."""
    found = [problem for path in tracked_python() for problem in problems(path)]
    print("\n".join(found) if found else "file and function sizes: ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
