"""Prompts from JSONL and Parquet files: read and checked as a whole before anything starts."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from configs.schema import DataConfig
from pipeline.core.errors import DataError
from pipeline.core.images import to_data_url
from pipeline.core.row_slice import split_slice

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt, as the user wrote it."""

    where: str  # for messages: "math.jsonl line 12"
    prompt: str | Messages
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None
    images: tuple[str, ...] = ()  # data-URLs


class Rows(Protocol):
    """A set of prompts, seen epoch by epoch.

    A file has the same rows in every epoch, an endless task has new ones.
    """

    name: str
    endless: bool
    num_bad_rows: int

    def __len__(self) -> int:
        """Rows an epoch."""

    def row(self, epoch: int, index: int) -> Row: ...

    def fingerprint(self) -> str:
        """Changes when the prompts do: a position in one set means nothing in another."""


class FileRows:
    """A JSONL or Parquet file, or the slice `path@[a:b]` of its rows (Python's rules, so b may be
    negative)."""

    endless = False

    def __init__(self, spec: str, config: DataConfig) -> None:
        """Raises DataError naming file and line for the first malformed row (with --skip-bad-rows:
        counts them), and for no rows."""
        path, self._slice = split_slice(spec)
        if path.suffix not in (".jsonl", ".parquet"):
            raise DataError(
                f"{spec!r}: expected a file ending in .jsonl or .parquet, or reasoning_gym:TASK"
            )
        if not path.is_file():
            raise DataError(f"prompt file {path} does not exist{_similar(path)}")
        self.name = path.name
        self.num_bad_rows = 0
        self._rows: list[Row] = []
        digest = hashlib.blake2b(digest_size=8)
        for raw in (_read_jsonl if path.suffix == ".jsonl" else _read_parquet)(path, self._slice):
            try:
                self._rows.append(check_row(raw, config, path.parent))
            except DataError:
                if not config.skip_bad_rows:
                    raise
                self.num_bad_rows += 1
            else:
                digest.update(
                    repr(
                        (self._rows[-1].prompt, self._rows[-1].label, *self._rows[-1].images)
                    ).encode()
                )
        if not self._rows:
            raise DataError(
                f"{spec!r} holds no prompts"
                + (
                    f" ({self.num_bad_rows} malformed rows were skipped)"
                    if self.num_bad_rows
                    else ""
                )
            )
        self._fingerprint = f"{len(self._rows)}:{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, epoch: int, index: int) -> Row:
        return self._rows[index]

    def fingerprint(self) -> str:
        return self._fingerprint


@dataclass(frozen=True, slots=True)
class _Raw:
    """One row before it is checked: either a value, or the reason why there is none."""

    where: str
    value: Any = None
    error: str | None = None


def _read_jsonl(path: Path, part: slice) -> Iterator[_Raw]:
    """Rows are the lines that are not blank. Lines outside the slice are not parsed."""
    with path.open("rb") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    for number, line in lines[part]:
        where = f"{path} line {number}"
        try:
            yield _Raw(where, json.loads(line))
        except UnicodeDecodeError as error:
            yield _Raw(where, error=f"is not UTF-8 text ({error.reason} at byte {error.start})")
        except json.JSONDecodeError as error:
            yield _Raw(where, error=f"is not JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            yield _Raw(where, error="is nested too deeply")


def _read_parquet(path: Path, part: slice) -> Iterator[_Raw]:
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
        for value in batch.to_pylist():
            yield _Raw(f"{path} row {number}", value)
            number += 1


def check_row(raw: _Raw, config: DataConfig, folder: Path | None = None) -> Row:
    """A well-formed row, or DataError naming where, what was found, and what was expected."""
    if raw.error:
        raise DataError(
            f"{raw.where} {raw.error}; expected {_expected(config)} (--skip-bad-rows skips and"
            " counts such rows)"
        )
    if not isinstance(raw.value, dict):
        raise DataError(
            f"{raw.where} is a {_kind(raw.value)}; expected {_expected(config)} (--skip-bad-rows"
            " skips and counts such rows)"
        )
    row = raw.value
    if config.input_key not in row:
        raise _missing(raw.where, row, config.input_key, "--input-key")
    if config.label_key is not None and config.label_key not in row:
        raise _missing(raw.where, row, config.label_key, "--label-key")
    label = row[config.label_key] if config.label_key is not None else None
    try:
        _json_text(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{raw.where}: the label in {config.label_key!r} cannot be kept as JSON: {error}; store"
            " it as text"
        ) from error
    return Row(
        where=raw.where,
        prompt=_check_prompt(raw.where, config.input_key, row[config.input_key]),
        label=label,
        metadata=_parsed(raw.where, config.metadata_key, row.get(config.metadata_key), dict) or {},
        tools=_parsed(raw.where, config.tool_key, row.get(config.tool_key), list),
        images=_images(raw.where, config.image_key, row, folder),
    )


def _images(
    where: str, key: str | None, row: Mapping[str, Any], folder: Path | None
) -> tuple[str, ...]:
    """Files are looked for beside the prompt file."""
    if key is None or row.get(key) is None:
        return ()
    given = row[key] if isinstance(row[key], list | tuple) else [row[key]]
    try:
        return tuple(to_data_url(image, folder) for image in given)
    except (ValueError, OSError) as error:
        raise DataError(f"{where}: {key!r}: {error}") from error


def _check_prompt(where: str, key: str, prompt: Any) -> str | Messages:
    try:
        _json_text(prompt)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {key!r} cannot be kept as JSON: {error}; expected text or a list of chat"
            " messages"
        ) from error
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt:
        for place, message in enumerate(prompt):
            if (
                not isinstance(message, dict)
                or not isinstance(message.get("role"), str)
                or "content" not in message
            ):
                raise DataError(
                    f"{where}: message {place} of {key!r} is {message!r:.80}; expected {{'role':"
                    " ..., 'content': ...}"
                )
        return prompt
    found = f"an empty {_kind(prompt)}" if isinstance(prompt, str | list) else f"a {_kind(prompt)}"
    raise DataError(f"{where}: {key!r} is {found}; expected text or a list of chat messages")


def _parsed(where: str, key: str, value: Any, kind: type) -> Any:
    """An optional JSON column, given as itself or (as Parquet files often have it) as JSON text."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: {key!r} is text that is not JSON ({error.msg}); expected a JSON"
                f" {_NAMES[kind]}"
            ) from error
    if not isinstance(value, kind):
        raise DataError(f"{where}: {key!r} is a {_kind(value)}; expected a JSON {_NAMES[kind]}")
    try:
        _json_text(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {key!r} cannot be kept as JSON: {error}") from error
    return value


def _json_text(value: Any) -> bytes:
    """Raises TypeError for what JSON has not (dates, bytes), ValueError for what UTF-8 has not
    (half a surrogate pair)."""
    return json.dumps(value, ensure_ascii=False).encode()


_NAMES: dict[type, str] = {
    dict: "object",
    list: "list",
    str: "text",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _expected(config: DataConfig) -> str:
    keys = [config.input_key] + ([config.label_key] if config.label_key else [])
    return f"a JSON object with {' and '.join(map(repr, keys))}"


def _missing(where: str, row: Mapping[str, Any], key: str, flag: str) -> DataError:
    close = difflib.get_close_matches(key, list(row), n=1)
    hint = f"; did you mean {flag} {close[0]}?" if close else f"; set {flag}"
    return DataError(
        f"{where} has no {key!r}: it has {', '.join(map(repr, row)) or 'no keys'}{hint}"
    )


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does the folder {path.parent})"
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
