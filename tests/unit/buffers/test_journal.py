"""The journal: what is read back is what was written, torn ends are cut off, damage is named."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest

from buffers.journal import JOURNAL_SCHEMA, Journal, encode, read_journal
from pipeline.core.errors import BufferCorruption, ReplayBufferError

OPEN = {"t": "open", "schema": JOURNAL_SCHEMA}
ENTRIES = [
    {"t": "admit", "g": 0, "d": 2, "v": 0},
    {"t": "put", "g": 0, "s": 0, "o": 1024, "n": 512},
    {"t": "discard", "g": 0, "why": "filtered: zero_std\nsecond line"},
]


def write(path: Path, entries: list[dict[str, object]]) -> None:
    journal = Journal(path)
    for entry in entries:
        journal.append(entry)
    journal.close()


def test_what_is_written_is_read_back_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, ENTRIES[:2])
    write(path, ENTRIES[2:])
    assert read_journal(path) == ([OPEN, *ENTRIES], 0)


def test_every_cut_gives_the_whole_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, ENTRIES)
    data = path.read_bytes()
    lines = [encode(r) for r in (OPEN, *ENTRIES)]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        whole = 0
        while whole < len(lines) and sum(map(len, lines[: whole + 1])) <= cut:
            whole += 1
        entries, torn = read_journal(path)
        assert entries == [OPEN, *ENTRIES][:whole]
        assert torn == cut - sum(map(len, lines[:whole]))
        write(path, [{"t": "push", "v": 9}])  # and the journal goes on behind them
        again, torn = read_journal(path)
        assert torn == 0 and again == [*([OPEN, *ENTRIES][:whole] or [OPEN]), {"t": "push", "v": 9}]


def test_every_changed_byte_is_named_or_leaves_a_torn_end(tmp_path: Path) -> None:
    """Never a crash, never an entry that was not written."""
    path = tmp_path / "j"
    write(path, ENTRIES)
    data = path.read_bytes()
    rng = random.Random(0)
    named = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            entries, torn = read_journal(path)
        except BufferCorruption as e:
            assert str(path) in str(e)
            named += 1
        else:
            assert entries == [OPEN, *ENTRIES][: len(entries)] and torn > 0
    assert named >= len(data) - len(encode(ENTRIES[-1]))


def test_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(encode({"t": "open", "schema": 99}))
    with pytest.raises(BufferCorruption, match="schema"):
        read_journal(tmp_path / "j")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        with pytest.raises(ReplayBufferError, match="cannot be written"):
            journal.append(ENTRIES[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(ENTRIES[1])
    journal.close()
    assert read_journal(path) == ([OPEN, ENTRIES[1]], 0)


def test_in_memory_lines_wait_for_a_flush(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", flush_each=False)
    journal.append(ENTRIES[0])
    assert (tmp_path / "j").stat().st_size == 0
    journal.flush()
    assert read_journal(tmp_path / "j") == ([OPEN, ENTRIES[0]], 0)
    journal.close()
