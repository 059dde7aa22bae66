"""Judgements that were made before: in memory, and as JSON lines in the run's folder, where a
resumed run and the processes beside this one find them."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
FILE_NAME = "judgements.jsonl"


def digest(question: Mapping[str, Any]) -> str:
    """Of everything that a judge is asked."""
    text = json.dumps(question, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class JudgementCache:
    """Digest -> reward, the `size` that were used last. On disk there are at most twice as many
    lines: then the older ones are thrown away.

    A cache that cannot be read or written is one without a file: no judgement fails for it."""

    def __init__(self, file: Path | None, size: int) -> None:
        """`size` 0: nothing is kept."""
        self._file, self._size = file if size else None, size
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._num_lines = 0  # of the file, as far as this process knows
        self._loaded = asyncio.Lock()
        self._is_loaded = False

    async def get(self, key: str) -> Any:
        """The reward, or None."""
        async with self._loaded:
            if not self._is_loaded:
                await self._on_disk(self._load)
                self._is_loaded = True
        if key not in self._known:
            return None
        self._known.move_to_end(key)
        return self._known[key]

    async def put(self, key: str, reward: Any) -> None:
        if not self._size:
            return
        self._keep(key, reward)
        line = json.dumps({"key": key, "reward": reward}) + "\n"
        await self._on_disk(lambda file: self._append(file, line))

    def _keep(self, key: str, reward: Any) -> None:
        self._known[key] = reward
        self._known.move_to_end(key)
        while len(self._known) > self._size:
            self._known.popitem(last=False)

    async def _on_disk(self, work: Any) -> None:
        """In a thread: another process may hold the file."""
        if self._file is None:
            return
        try:
            await asyncio.to_thread(work, self._file)
        except OSError as error:
            logger.warning("judgements are kept in memory only: %s", error)
            self._file = None

    def _load(self, file: Path) -> None:
        if not file.exists():
            return
        with file.open(encoding="utf-8", errors="replace") as lines:
            fcntl.flock(lines, fcntl.LOCK_SH)
            for line in lines:
                self._num_lines += 1
                if entry := _entry(line):
                    self._keep(*entry)

    def _append(self, file: Path, line: str) -> None:
        with file.open("a+", encoding="utf-8", errors="replace") as lines:
            fcntl.flock(lines, fcntl.LOCK_EX)
            lines.write(line)
            lines.flush()
            self._num_lines += 1
            if self._num_lines <= 2 * self._size:
                return
            # others append to this very file: it is written anew in place, under the lock
            lines.seek(0)
            newest = {entry[0]: written for written in lines if (entry := _entry(written))}
            kept = list(newest.values())[-self._size :]
            lines.truncate(0)
            lines.writelines(kept)
            self._num_lines = len(kept)


def _entry(line: str) -> tuple[str, Any] | None:
    """(digest, reward) of a line; None for one that a crash cut off."""
    try:
        entry = json.loads(line)
        return str(entry["key"]), entry["reward"]
    except (ValueError, KeyError, TypeError):
        return None
