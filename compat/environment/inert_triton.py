"""A `triton` whose kernels can be declared and never run, for engine processes on machines without
Triton.

SGLang's modules say `@triton.jit def kernel(...)`, `x: tl.constexpr`, `class C(triton.runtime.X)`
at import. Any attribute of an inert module is therefore another inert module (lower case) or an
empty class (upper case), and calling one decorates."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Empty:
    """Base of every class an inert module hands out; takes any constructor arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class InertModule(ModuleType):
    """`inert.anything.at_all`, usable as module, decorator, decorator factory and annotation."""

    __path__: list[str] = []  # noqa: RUF012 - a package, so that `import triton.language` looks for a submodule

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[:1].isupper():
            child: Any = type(name, (_Empty,), {"__module__": self.__name__})
        else:
            child = sys.modules.get(f"{self.__name__}.{name}") or InertModule(
                f"{self.__name__}.{name}"
            )
        setattr(self, name, child)
        return child

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and callable(args[0]) and not kwargs:
            return args[0]  # @triton.jit
        return lambda function: function  # @triton.autotune(...)

    def __bool__(self) -> bool:
        return False  # `if triton.something:` takes the path without it


class _InertLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        parent_name, _, name = spec.name.rpartition(".")
        known = vars(sys.modules[parent_name]).get(name) if parent_name else None
        return known if isinstance(known, InertModule) else InertModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "triton":
            vars(module).update(__version__="0.0.0", cdiv=_cdiv, next_power_of_2=_next_power_of_2)


class InertTritonFinder(MetaPathFinder):
    """Stands last on sys.meta_path: it is asked only when no real Triton was found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "triton" and not (
            fullname.startswith("triton.") and isinstance(sys.modules.get("triton"), InertModule)
        ):
            return None
        return importlib.util.spec_from_loader(fullname, _InertLoader(), is_package=True)


def _cdiv(x: int, y: int) -> int:
    """triton.cdiv: ceil(x / y). Also used by SGLang outside of kernels."""
    return -(-x // y)


def _next_power_of_2(n: int) -> int:
    """triton.next_power_of_2. Also used by SGLang outside of kernels."""
    return 1 << (n - 1).bit_length() if n > 0 else 1
