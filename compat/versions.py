"""A piece of compatibility is for the version of a package that it was written for."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from functools import cache


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None without one.

    Reads metadata, imports nothing.
    """
    try:
        return importlib.metadata.version(distribution).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def for_version(distribution: str, tested: str, piece: Callable[[], None]) -> Callable[[], None]:
    """`piece`, which does nothing but warn, once in every process, where another version is
    installed."""

    def guarded() -> None:
        if installed_version(distribution) == tested:
            piece()
        else:
            _warn_of_another(distribution, tested)

    return guarded


@cache
def _warn_of_another(distribution: str, tested: str) -> None:
    warnings.warn(
        f"compat: the pieces for {distribution} were written for {tested}, found"
        f" {installed_version(distribution)}: not applied (install {distribution}=={tested}, or a"
        " GPU build, if the import fails)",
        stacklevel=2,
    )
