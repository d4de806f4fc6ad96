"""Prompts with names in them: ``a {color} {product} spins``. Pure.

``{{`` and ``}}`` are braces. A name is a plain identifier: no attributes, indexes,
conversions or formats, so a template can do nothing but be filled in.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.errors import FieldViolation

MAX_TEMPLATE_CHARS: Final = 4_000
MAX_NAMES: Final = 32
MAX_VALUE_CHARS: Final = 2_000
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FORMATTER: Final = string.Formatter()


class BadTemplate(ValueError):  # noqa: N818 - caught where the field's name is known
    """The text is no template; the message says where."""


@dataclass(frozen=True, slots=True)
class Template:
    """A template that was read."""

    pieces: tuple[tuple[str, str | None], ...]
    """A text and the name that follows it, if one does."""

    @property
    def names(self) -> tuple[str, ...]:
        """Each name once, in the order of the text."""
        return tuple(dict.fromkeys(name for _, name in self.pieces if name is not None))

    def render(self, values: Mapping[str, str]) -> str:
        """The text with each name replaced; a value is put in as it is.

        Raises:
            KeyError: A name has no value.
        """
        return "".join(text + ("" if name is None else values[name]) for text, name in self.pieces)


def parse(text: str) -> Template:
    """Reads a template.

    Raises:
        BadTemplate: It is none, or names nothing.
    """
    if len(text) > MAX_TEMPLATE_CHARS:
        raise BadTemplate(f"must be at most {MAX_TEMPLATE_CHARS} characters, not {len(text)}")
    pieces: list[tuple[str, str | None]] = []
    try:
        for literal, name, spec, conversion in _FORMATTER.parse(text):
            if name is not None and (spec or conversion or not _NAME.fullmatch(name)):
                raise BadTemplate(
                    "names are letters, digits and underscores in braces, such as {color}; write "
                    "{{ and }} for braces"
                )
            pieces.append((literal, name))
    except BadTemplate:
        raise
    except ValueError as error:
        raise BadTemplate(f"{error}; write {{{{ and }}}} for braces") from None
    template = Template(tuple(pieces))
    if not template.names:
        raise BadTemplate("must name at least one variable in braces, such as {product}")
    if len(template.names) > MAX_NAMES:
        raise BadTemplate(f"must name at most {MAX_NAMES} variables, not {len(template.names)}")
    return template


def check_values(names: Sequence[str], values: Mapping[str, str]) -> list[FieldViolation]:
    """What of a row's variables is missing, is used nowhere or is too long."""
    found = [
        FieldViolation(name, "is missing: the template names it")
        for name in names
        if name not in values
    ]
    for name, value in values.items():
        if name not in names:
            near = tuple(difflib.get_close_matches(name, names, n=1, cutoff=0.4)) or tuple(
                names[:3]
            )
            found.append(FieldViolation(name, "is not used by the template", near))
        elif len(value) > MAX_VALUE_CHARS:
            rule = f"must be at most {MAX_VALUE_CHARS} characters, not {len(value)}"
            found.append(FieldViolation(name, rule))
    return found
