"""The code blocks of our documents, so that tests can run what users are told to run."""

import re
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str


def blocks_of(document: str, *, under: str = "") -> list[Block]:
    """The blocks of a document, or of its section with that heading alone."""
    text = (REPO / document).read_text(encoding="utf-8")
    if under:
        _, found, text = text.partition(f"\n## {under}\n")
        assert found, f"{document} has no section {under!r}"
        text = text.partition("\n## ")[0]
    return [Block(match[1], match[2]) for match in _BLOCK.finditer(text)]
