"""A user's file and the helpers beside it, imported under names of their own.

The folder of the file becomes a package, named after the folder, and the file and its neighbours
are modules in it. What is written in them as `import helper` is looked for there first, as for a
script; so two folders may each have a helper.py, and a pipeline.py or a folder configs/ of the
user's is neither taken for ours nor hidden by it.

Names can be read back (`folder_of`), so an object of a user's class may be pickled and loaded in
any process that has imported this module."""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, all_suffixes
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.slime_names import offer_slime_names

_PREFIX = "slipstream_user_"
_NEVER = {*sys.builtin_module_names, "__main__"}  # what Python finds before any file
# what is installed with Slipstream: a user's folder may hold something of the same name
OURS = {
    *("slipstream", "train_async", "pipeline", "stages", "buffers", "configs", "compat"),
    "sandbox",
}


def import_user_file(file: Path) -> ModuleType:
    """The module of `file`, an absolute path. The same file is imported once."""
    return importlib.import_module(_module_name(file))


def folder_of(package: str) -> Path | None:
    """The folder that a package stands for; None for any other package."""
    folder = Path(_decode(package.removeprefix(_PREFIX)))
    return folder if package.startswith(_PREFIX) and folder.is_absolute() else None


def _module_name(file: Path) -> str:
    """The module's own name where Python's rules find this very file by it; else the whole file
    name, as for `my-reward.py`, or for `math.py` beside a package `math`."""
    package = _PREFIX + _encode(str(file.parent))
    found = (
        PathFinder.find_spec(file.stem, [str(file.parent)]) if file.stem.isidentifier() else None
    )
    if found is not None and found.origin == str(file):
        return f"{package}.{file.stem}"
    return f"{package}.{_encode(file.name)}"


def _encode(text: str) -> str:
    """The text as an identifier: every byte but ASCII letters and digits becomes `_` and two hex
    digits."""
    encoded = os.fsencode(text)
    return "".join(
        chr(b) if chr(b).isascii() and chr(b).isalnum() else f"_{b:02X}" for b in encoded
    )


def _decode(text: str) -> str:
    encoded = re.sub(rb"_([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), text.encode())
    return os.fsdecode(encoded)


class _UserLoader(SourceFileLoader):
    """Runs a user's module with an `import` that looks beside it first."""

    def exec_module(self, module: ModuleType) -> None:
        offer_slime_names()
        module.__dict__["__builtins__"] = _builtins_of(module.__name__.partition(".")[0])
        super().exec_module(module)


class UserModuleFinder(MetaPathFinder):
    """Finds the packages that stand for folders, and the modules in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        folder = folder_of(package)
        if folder is None:
            return None
        if not rest:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            return spec
        found = PathFinder.find_spec(fullname, path)
        if found is None and (file := folder / _decode(rest)).suffix == ".py" and file.is_file():
            loader = _UserLoader(fullname, str(file))
            return importlib.util.spec_from_file_location(fullname, file, loader=loader)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _UserLoader(fullname, found.loader.path)
        return found


@functools.cache
def _builtins_of(package: str) -> dict[str, Any]:
    """Python's builtins, with the import statement of one folder's modules."""
    folder = folder_of(package)
    assert folder is not None

    def import_beside(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        own = f"{package}.{name}"
        importer = globals.get("__name__") if globals else None
        if level or not (own in sys.modules or _lies_in(folder, name)):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        if own == importer and "." not in name and _spec_of(name) is not None:
            # a file json.py that says `import json` means Python's
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = builtins.__import__(own, globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{package}.{name.partition('.')[0]}"]

    return {**vars(builtins), "__import__": import_beside}


def _lies_in(folder: Path, name: str) -> bool:
    """Does `import name`, written in a module of `folder`, mean what lies there?"""
    top, *rest = name.split(".")
    place = folder / top
    if top in _NEVER or not _is_module(place.joinpath(*rest)):
        return False
    elsewhere = _spec_of(top)
    if elsewhere is None:
        return True
    if any(where.parent == folder for where in _places(elsewhere)):
        # the folder is on sys.path, as the repository's own may be: one module, not two
        return False
    # A folder without __init__.py is a package only where no other is to be found, as everywhere
    # in Python; but ours are no reason to hide a user's.
    return _is_regular(place) or top in OURS


def _is_module(place: Path) -> bool:
    return _is_regular(place) or (place.is_dir() and any(place.glob("*.py")))


def _is_regular(place: Path) -> bool:
    return (place / "__init__.py").is_file() or any(
        place.with_name(place.name + suffix).is_file() for suffix in all_suffixes()
    )


def _spec_of(top: str) -> ModuleSpec | None:
    if top in sys.modules:
        return getattr(sys.modules[top], "__spec__", None)
    return importlib.util.find_spec(top)


def _places(spec: ModuleSpec) -> list[Path]:
    """The file of a module, or the folders of a package."""
    if spec.submodule_search_locations is not None:
        return [Path(where).resolve() for where in spec.submodule_search_locations]
    return [Path(spec.origin).resolve()] if spec.has_location and spec.origin else []


sys.meta_path.insert(0, UserModuleFinder())
