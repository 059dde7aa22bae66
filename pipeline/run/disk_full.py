"""A full disk is reported once: whoever noticed it first, the cause and the way on are the same."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# a library that writes by itself may say anything: then what is free there tells
_NOTHING_FREE_BYTES = 1 << 20
_LEAST_BYTES = 64 << 20  # a run's journal, segments and records


def is_disk_full(error: BaseException) -> bool:
    """Does the error, or what it came from, say that a device or a quota is full?"""
    return any(isinstance(e, OSError) and e.errno in _FULL for e in _chain(error))


def disk_full_error(
    errors: list[BaseException], run_dir: Path, checkpoints: Path
) -> DiskFullError | None:
    """What the user of a run that ended with `errors` is told; None when the disk is not the
    cause."""
    said = [_place_of(e) for error in errors for e in _chain(error)]
    places = [Path(place) for place in said if place is not None]
    full = [at for at in (checkpoints, run_dir) if _free_bytes(at) < _NOTHING_FREE_BYTES]
    if not full and not any(map(is_disk_full, errors)):
        return None
    place = places[0] if places else full[0] if full else run_dir
    needed = max(_LEAST_BYTES, 2 * _newest_checkpoint_bytes(checkpoints))
    return DiskFullError(
        f"{place} cannot be written: its disk is full, or a quota is. Free at least"
        f" {-(-needed >> 20)} MiB there, then go on: --load {run_dir}"
    )


def _chain(error: BaseException, seen: frozenset[int] = frozenset()) -> Iterator[BaseException]:
    """The error, those it groups, and those it was raised from or while handling."""
    if id(error) in seen:
        return
    seen |= {id(error)}
    yield error
    grouped = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for e in (*grouped, error.__cause__, error.__context__):
        if e is not None:
            yield from _chain(e, seen)


def _place_of(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or error.errno not in _FULL or error.filename is None:
        return None
    return str(error.filename)


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _newest_checkpoint_bytes(checkpoints: Path) -> int:
    files = (checkpoints / "latest").resolve().rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
