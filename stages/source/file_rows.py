"""Prompts from JSONL and Parquet files: read and judged as a whole before anything starts."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from configs.schema import DataConfig
from pipeline.core.errors import DataError
from pipeline.core.row_slice import split_slice
from pipeline.core.tally import Tally
from stages.source.check import check_row
from stages.source.raw import read_rows
from stages.source.rows import Row

logger = logging.getLogger(__name__)


class FileRows:
    """A JSONL or Parquet file, or the slice `path@[a:b]` of its rows (Python's rules, so b may be
    negative)."""

    endless = False

    def __init__(
        self, spec: str, config: DataConfig, judge: Callable[[Row], None] = lambda row: None
    ) -> None:
        """`judge` raises DataError for a well-formed row that is of no use. Raises DataError naming
        file and line for the first bad row (with --skip-bad-rows: counts them), and for no rows."""
        path, self._slice = split_slice(spec)
        if path.suffix not in (".jsonl", ".parquet"):
            raise DataError(
                f"{spec!r}: expected a file ending in .jsonl or .parquet, or reasoning_gym:TASK"
            )
        if not path.is_file():
            raise DataError(f"prompt file {path} does not exist{_similar(path)}")
        self.name = path.name
        bad = Tally(logger, "bad row", "skipped")
        self._rows: list[Row] = []
        digest = hashlib.blake2b(digest_size=8)
        for raw in read_rows(path, self._slice):
            try:
                row = check_row(raw, config, path.parent)
                judge(row)
            except DataError as error:
                if not config.skip_bad_rows:
                    raise
                bad.add(str(error))
            else:
                self._rows.append(row)
                digest.update(repr((row.prompt, row.label, *row.images)).encode())
        bad.say(last=True)
        self.num_bad_rows = bad.count
        if not self._rows:
            raise DataError(
                f"{spec!r} holds no prompts"
                + (f" ({self.num_bad_rows} bad rows were skipped)" if self.num_bad_rows else "")
            )
        self._fingerprint = f"{len(self._rows)}:{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, epoch: int, index: int) -> Row:
        return self._rows[index]

    def fingerprint(self) -> str:
        return self._fingerprint


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does the folder {path.parent})"
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
