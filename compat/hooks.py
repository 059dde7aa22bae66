"""Run a function right before a module is first imported, if the module is of the version the
function was written for."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None without one.

    Reads metadata, imports nothing.
    """
    try:
        return importlib.metadata.version(distribution).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


class ImportHook(MetaPathFinder):
    """Finds nothing itself: at the first import of `module` it runs `prepare`, steps aside and lets
    the real finders go on."""

    def __init__(
        self, module: str, distribution: str, tested: str, prepare: Callable[[], None]
    ) -> None:
        self.module, self.distribution, self.tested, self.prepare = (
            module,
            distribution,
            tested,
            prepare,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImportHook) and other.module == self.module

    def __hash__(self) -> int:
        return hash(self.module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if fullname != self.module:
            return
        sys.meta_path.remove(self)
        found = installed_version(self.distribution)
        if found == self.tested:
            self.prepare()
        elif found is not None:
            warnings.warn(
                f"compat: the pieces for {self.distribution} were written for {self.tested}, found"
                f" {found}: not applied (install {self.distribution}=={self.tested}, or a GPU"
                " build, if the import fails)",
                stacklevel=2,
            )
