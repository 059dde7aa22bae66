"""The buffer's journal: one line for every decision. A line is appended before anything follows
from it, and all are read back after a crash.

A line is eight hexadecimal digits of CRC-32, a space, one JSON object and a newline. Bytes behind
the last newline are a write that a crash cut off: they are dropped, and the run says so. Any other
line that does not fit its checksum is corruption, and the error names its place.

The entries, by their kind `t`:

    open     schema                the first line
    admit    g, d, v, i            group g may generate for prompt i, with deadline d, at policy
                                   version v
    put      g, s, o, n, p, w      group g is complete: n bytes at offset o of segment s; its
                                   priority is p, the oldest version among its tokens w
    gone     g                     the bytes of group g were not there after a crash: it is
                                   generated again
    discard  g, why, again         group g gives its slot back; again: its prompt is tried again
    consume  r, v, g, x, at, pr    rollout r, trained at version v, takes groups g for the first
                                   time and groups x once more; it was chosen when the journal had
                                   `at` entries, with probabilities pr (left out where all are 1)
    trained  r                     rollout r is trained on
    push     v                     the engines begin to be given version v
    pushed   v                     every engine has version v
    commit   r, name               checkpoint `name` covers rollouts 0..r-1
    restore  r, name, v            the run goes on from checkpoint `name` (null: from the beginning)
                                   after r rollouts, at version v; what rollouts r and later had
                                   consumed is lost with their weights"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from pipeline.core.errors import BufferCorruption, ReplayBufferError
from pipeline.schedule.clock import RolloutClock

JOURNAL_SCHEMA = 2
READABLE = (1, 2)  # 1 had no i, p, w, again, x, at
FILE_NAME = "journal.log"
HELD_BYTES = 1 << 16  # under durability `memory`
JournalEntry = dict[str, Any]


class Journal:
    """Appends entries to a file. When `append` returns, the kernel has the line: it survives this
    process's death.

    With `flush_each=False` (durability `memory`) lines stay in this process until `flush` or
    `close`."""

    def __init__(self, path: Path, *, flush_each: bool = True, num_entries: int = 0) -> None:
        """Goes on at the end of an existing file of `num_entries` entries, whose torn tail is cut
        off. Raises ReplayBufferError when the file cannot be opened."""
        self.path, self._flush_each, self._held = path, flush_each, bytearray()
        exists = path.exists() and path.stat().st_size > 0
        end = _end_of_lines(path) if exists else 0
        self.num_entries = num_entries
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
            os.ftruncate(self._fd, end)
        except OSError as e:
            raise ReplayBufferError(
                f"replay buffer: cannot open {path}: {e.strerror}; check the run directory"
            ) from e
        self._end = end
        if end == 0:
            self.append({"t": "open", "schema": JOURNAL_SCHEMA})

    @property
    def fd(self) -> int:
        return self._fd

    def append(self, entry: Mapping[str, Any]) -> None:
        """Raises ReplayBufferError when the entry cannot be written; then nothing of it is in the
        file."""
        self._held += encode(entry)
        if self._flush_each or len(self._held) > HELD_BYTES:
            self.flush()
        self.num_entries += 1

    def flush(self) -> None:
        view, at = memoryview(bytes(self._held)), self._end
        try:
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
        except OSError as e:
            error = ReplayBufferError(
                f"replay buffer: {self.path} cannot be written: {e.strerror} (errno {e.errno});"
                " free space there"
            )
            try:
                os.ftruncate(self._fd, self._end)
            except OSError as cut:  # harmless: the next line overwrites the torn bytes
                error.add_note(f"the torn write could not be cut off either: {cut}")
            self._held.clear()
            raise error from e
        self._end = at
        self._held.clear()

    def close(self) -> None:
        """Writes what is held and closes the file. It may be called more than once."""
        if self._fd >= 0:
            try:
                self.flush()
            finally:
                os.close(self._fd)
                self._fd = -1


class ProgressLines:
    """Writes into the journal which rollouts were trained on and which pushes were completed: from
    these and the other lines every admission can be derived again."""

    def __init__(self, journal: Journal, clock: RolloutClock) -> None:
        self._journal, self._clock = journal, clock
        self._num_trained, self._version = clock.num_trained, clock.policy_version

    def write(self) -> None:
        """Appends what the clock has counted since the last call."""
        for rollout_id in range(self._num_trained, self._clock.num_trained):
            self._journal.append({"t": "trained", "r": rollout_id})
        for version in range(self._version + 1, self._clock.policy_version + 1):
            self._journal.append({"t": "pushed", "v": version})
        self._num_trained, self._version = self._clock.num_trained, self._clock.policy_version


def encode(entry: Mapping[str, Any]) -> bytes:
    body = orjson.dumps(entry)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def read_journal(path: Path) -> tuple[list[JournalEntry], int]:
    """(entries, number of bytes of a torn last line, which is left out).

    Raises ReplayBufferError when the file cannot be read, and BufferCorruption naming file and
    offset when a line is damaged."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ReplayBufferError(
            f"{path} cannot be read: {e.strerror}; expected the journal of a run's buffer"
        ) from e
    whole = _whole(data)
    entries, at = [], 0
    for line in _lines(whole):
        entries.append(_decode(line, path, at))
        at += len(line)
    if entries and (entries[0]["t"] != "open" or entries[0].get("schema") not in READABLE):
        raise BufferCorruption(
            f"{path} begins with {entries[0]!r:.80}: this version reads journals of schema"
            f" {READABLE}"
        )
    return entries, len(data) - len(whole)


def _end_of_lines(path: Path) -> int:
    """The number of bytes up to and including the last newline, which is looked for from the end
    because a journal may be long."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - HELD_BYTES)
            file.seek(start)
            if (found := file.read(at - start).rfind(b"\n")) >= 0:
                return start + found + 1
            at = start
    return 0


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def _whole(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _decode(line: bytes, path: Path, at: int) -> JournalEntry:
    check, space, body = line[:8], line[8:9], line[9:-1]
    if space != b" " or check != b"%08x" % zlib.crc32(body):
        raise BufferCorruption(
            f"{path} at byte {at}: the line's checksum does not fit. The file was changed or the"
            " disk is faulty"
        )
    try:
        entry = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise BufferCorruption(f"{path} at byte {at}: {e}") from e
    if not isinstance(entry, dict) or "t" not in entry:
        raise BufferCorruption(
            f"{path} at byte {at}: expected an object with a kind, got {entry!r:.80}"
        )
    return entry
