"""Rows of a prompt file or task, by index: where they come from and what is wrong with them."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

from configs.schema import DataConfig
from pipeline.errors import DataError

logger = logging.getLogger(__name__)
PROCEDURAL_SIZE = 1_000_000  # rows of a task without size=: an epoch nobody reaches
SUMS = "builtin:sums"  # what --mock trains on where no --prompt-data is given
_SLICE = re.compile(r"^(?P<path>.*)@\[(?P<start>-?\d*):(?P<end>-?\d*)\]$")


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt before templates: text or chat messages, label, metadata, tools."""

    prompt: str | list[dict[str, Any]]
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    tools: Any = None


class Rows(Protocol):
    """A finite, indexable set of rows."""

    def __len__(self) -> int: ...
    def row(self, index: int) -> Row: ...


@dataclass(frozen=True, slots=True)
class ListRows:
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        return self.rows[index]


class TaskRows:
    """`reasoning_gym:TASK?param=value&...`: rows made when asked for, from the row's index and the seed."""

    def __init__(self, spec: str, seed: int) -> None:
        task, _, query = spec.removeprefix("reasoning_gym:").partition("?")
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        if task not in DATASETS:
            near = difflib.get_close_matches(task, list(DATASETS), 3)
            raise DataError(f"{spec}: no reasoning-gym task {task!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
        params = {key: _literal(value) for key, value in parse_qsl(query, keep_blank_values=True)}
        try:
            self._dataset = reasoning_gym.create_dataset(task, **{"size": PROCEDURAL_SIZE, "seed": seed, **params})
        except (TypeError, AssertionError, ValueError) as error:
            known = list(DATASETS[task][1].__dataclass_fields__)
            raise DataError(f"{spec}: {task} does not take these parameters ({error}); it knows {', '.join(known)}") from error
        self._task = task

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> Row:
        entry = json.loads(json.dumps(self._dataset[index], default=str))
        return Row(prompt=entry["question"], label=entry["answer"], metadata={"reasoning_gym": {"task": self._task, "entry": entry}})


def open_rows(spec: str, config: DataConfig) -> Rows:
    """The rows that `spec` names. Raises DataError naming file and line."""
    if spec.startswith("reasoning_gym:"):
        return TaskRows(spec, config.rollout_seed)
    if spec == SUMS:
        return ListRows([Row(f"{a} + {b} =", str(a + b), {"rm_type": "exact_match"}) for a in range(20) for b in range(20)])
    path, start, end = _split_slice(spec)
    if not path.is_file():
        raise DataError(f"--prompt-data {spec}: no such file; expected .jsonl, .parquet (with an optional @[a:b]) or reasoning_gym:TASK")
    readers: dict[str, Callable[[Path], list[tuple[str, Any]]]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DataError(f"--prompt-data {path}: unknown kind of file {path.suffix!r}; expected {' or '.join(readers)}")
    rows, bad = [], []
    for where, data in readers[path.suffix](path)[start:end]:
        try:
            rows.append(_row(where, data, config))
        except DataError as error:
            if not config.skip_bad_rows:
                raise DataError(f"{error} (--skip-bad-rows skips and counts such rows)") from None
            bad.append(str(error))
    if bad:
        logger.warning("%s: %d malformed rows skipped, the first: %s", path, len(bad), bad[0])
    if not rows:
        raise DataError(f"--prompt-data {spec}: no prompts in it")
    return ListRows(rows)


def _split_slice(spec: str) -> tuple[Path, int | None, int | None]:
    match = _SLICE.match(spec)
    if match is None:
        return Path(spec), None, None
    start, end = (int(match[name]) if match[name] else None for name in ("start", "end"))
    return Path(match["path"]), start, end


def _read_jsonl(path: Path) -> list[tuple[str, Any]]:
    """(where, decoded line or the error) of every line that is not blank."""
    out: list[tuple[str, Any]] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    out.append((f"{path}, line {number}", json.loads(line)))
                except json.JSONDecodeError as error:
                    out.append((f"{path}, line {number}", error))
    return out


def _read_parquet(path: Path) -> list[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"--prompt-data {path}: not a Parquet file ({error})") from error
    return [(f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist())]


def _row(where: str, data: Any, config: DataConfig) -> Row:
    if isinstance(data, json.JSONDecodeError):
        raise DataError(f"{where}: not JSON ({data.msg} at column {data.colno}); expected one object a line with {config.input_key!r}")
    if not isinstance(data, Mapping):
        raise DataError(f"{where}: expected a JSON object with {config.input_key!r}, got {type(data).__name__}")
    prompt = data.get(config.input_key)
    if not (isinstance(prompt, str) and prompt) and not _is_chat(prompt):
        raise DataError(
            f"{where}: {config.input_key!r} is {prompt!r:.80}; expected text or a list of chat messages with role and content "
            f"(--input-key names the column; this row has {', '.join(map(str, data))})"
        )
    if config.label_key and config.label_key not in data:
        raise DataError(f"{where}: no {config.label_key!r} (--label-key); this row has {', '.join(map(str, data))}")
    metadata = data.get(config.metadata_key) or {}
    if isinstance(metadata, str):
        metadata = _json_of(where, config.metadata_key, metadata)
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: {config.metadata_key!r} is {type(metadata).__name__}; expected a JSON object (--metadata-key)")
    return Row(prompt, data[config.label_key] if config.label_key else None, metadata, data.get(config.tool_key))


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in prompt)


def _json_of(where: str, key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: {key!r} is text that is not JSON ({error})") from None


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False}.get(text, text)
