"""What to say when an optional part of the package is not installed.

Every entry point is installed with the base package, whose client library needs little.
This module imports nothing but the standard library, so that it can speak for the rest.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator

DISTRIBUTION = "reelmesh"

# A requirement of one extra alone. Those with a further condition, such as a platform,
# are nowhere essential.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[^;]*;\s*extra == ['\"]([A-Za-z0-9._-]+)['\"]")


class MissingExtraError(SystemExit):
    """Ends the process with one line and exit code 1, unless somebody catches it."""


@contextlib.contextmanager
def needs_extra(extra: str, *, program: str, parts: str) -> Iterator[None]:
    """A block, or a function as a decorator, that needs the distributions of ``extra``.

    A module that is missing although the extra is installed, or one of a package that is
    there, is a mistake in the code and stays the ModuleNotFoundError that it is.

    Args:
        extra: Name in ``pip install 'reelmesh[extra]'``.
        program: Who needs it, such as the command's name.
        parts: What it needs, such as ``its command-line parts``.

    Raises:
        MissingExtraError: Says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or _has_package(error.name) or not missing_distributions(extra):
            raise
        raise MissingExtraError(
            f"{program} needs {parts}: pip install '{DISTRIBUTION}[{extra}]' "
            f"(there is no module {error.name})"
        ) from None


def missing_distributions(extra: str) -> list[str]:
    """Distributions that the extra declares and that are not installed, by name."""
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = (_REQUIREMENT.fullmatch(line) for line in declared)
    names = {match[1] for match in found if match is not None and match[2] == extra}
    return sorted(name for name in names if not _is_installed(name))


def _has_package(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
