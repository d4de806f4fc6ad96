"""Help texts as they are written in the source, made to fit any terminal."""

from __future__ import annotations

# What tells the command line's library to keep a paragraph's lines as they are.
KEEP_LINES = "\b"


def flow(text: str) -> str:
    """Joins the lines of each paragraph, but for those marked with :data:`KEEP_LINES`."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(KEEP_LINES) else " ".join(paragraph.split("\n"))
        for paragraph in paragraphs
    )
