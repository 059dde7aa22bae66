"""Run a function right before, or right after, a module is first executed.

Every Python of the environment imports this file when it starts: it imports nothing but `sys`."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class ImportHook:
    """A finder that asks the finders behind it, and has what they find run `prepare` first, or
    afterwards.

    Looking whether the module is there runs nothing.
    """

    def __init__(self, module: str, prepare: Callable[[], None], *, after: bool = False) -> None:
        self.module, self.prepare, self.after = module, prepare, after

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImportHook) and other.module == self.module

    def __hash__(self) -> int:
        return hash(self.module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in behind)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._add_to(spec.loader)
        return spec

    def _add_to(self, loader: object) -> None:
        execute: Callable[[ModuleType], None] = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: ModuleType) -> None:
            if self.after:
                execute(module)
                self.prepare()
            else:
                self.prepare()
                execute(module)

        loader.exec_module = exec_module  # type: ignore[attr-defined]
