"""Rows as they lie in a file, before they are checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row: either a value, or the reason why there is none."""

    where: str
    value: Any = None
    error: str | None = None
    # all rows of a column have the same fields there: those that others lack are null
    padded: bool = False


def read_rows(path: Path, part: slice) -> Iterator[RawRow]:
    """The rows of a .jsonl or .parquet file. Raises DataError where the file itself cannot be
    read."""
    return (_read_jsonl if path.suffix == ".jsonl" else _read_parquet)(path, part)


def _read_jsonl(path: Path, part: slice) -> Iterator[RawRow]:
    """Rows are the lines that are not blank. Lines outside the slice are not parsed."""
    with path.open("rb") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    for number, line in lines[part]:
        where = f"{path} line {number}"
        try:
            yield RawRow(where, json.loads(line))
        except UnicodeDecodeError as error:
            yield RawRow(where, error=f"is not UTF-8 text ({error.reason} at byte {error.start})")
        except json.JSONDecodeError as error:
            yield RawRow(where, error=f"is not JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            yield RawRow(where, error="is nested too deeply")
        except ValueError as error:  # Python reads no integer of more than 4,300 digits
            yield RawRow(where, error=f"holds a number that cannot be read ({error})")


def _read_parquet(path: Path, part: slice) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    start, stop, _ = part.indices(table.num_rows)
    table = table.slice(start, max(0, stop - start))
    number = start
    for batch in table.to_batches(max_chunksize=1024):
        for place in range(batch.num_rows):
            where = f"{path} row {number}"
            number += 1
            try:
                value = {name: batch.column(name)[place].as_py() for name in batch.schema.names}
            except (ValueError, OverflowError) as error:  # text that is no UTF-8, dates beyond time
                yield RawRow(where, error=f"cannot be read ({error})")
            else:
                yield RawRow(where, value, padded=True)


def without_padding(value: Any) -> Any:
    """The value without the entries that are null, at any depth. A column of Parquet has the fields
    of all its rows, and a chat template would show another row's parameters."""
    if isinstance(value, dict):
        return {k: without_padding(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_padding(v) for v in value]
    return value
