"""Append-only Arrow IPC stream files, and memory-mapped, verified, zero-copy reads of single
batches from them.

A segment is a valid IPC stream (schema message, then one message a batch; the end marker is
optional and left out), so any Arrow tool reads it. Every batch message carries a CRC-32 of its own
bytes (header and body) in its custom metadata; the checksum's place counts as eight zeros while it
is computed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from buffers.durability import sync_directory
from buffers.schema import SCHEMA
from pipeline.core.errors import BufferCorruption, ReplayBufferError
from pipeline.core.types import Location

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MARK, _BLANK = b"crc32:", b"00000000"
_BLANK_METADATA = {"checksum": (_MARK + _BLANK).decode()}
_METADATA_BYTES = 1024  # at most, with the end marker: beside what Arrow counts of a batch
_SCHEMA_MESSAGE = SCHEMA.serialize().to_pybytes()
_OPTIONS = pa.ipc.IpcWriteOptions()  # without it every writer looks through the environment


@dataclass(slots=True, kw_only=True)
class _Segment:
    path: Path
    fd: int | None  # None: sealed
    num_bytes: int  # what is complete; bytes beyond it are never read
    live: set[int] = field(default_factory=set)  # offsets of the batches not yet freed
    mapped: pa.MemoryMappedFile | None = None
    mapped_bytes: int = 0


class SegmentStore:
    """The way of a batch: append -> Location -> read, any number of times -> free.

    A sealed segment without live batches is deleted."""

    def __init__(
        self,
        directory: Path,
        max_segment_bytes: int = 64 << 20,
        *,
        live: Iterable[Location] = (),
        keep: bool = False,
        first_id: int = 0,
    ) -> None:
        """`live`: the places that an earlier process left here and that are still wanted; its other
        segments are removed. `keep`: no segment is ever removed. `first_id`: the number of the
        first new segment; a number must not be used twice, because the journal may still speak of
        its first use."""
        self._directory, self._max_bytes, self._keep = directory, max_segment_bytes, keep
        directory.mkdir(parents=True, exist_ok=True)
        self._segments: dict[int, _Segment] = {}
        wanted = _offsets(live)
        self._next_id = first_id
        for path in sorted(directory.glob("segment-*.arrow")):
            number = int(path.stem.removeprefix("segment-"))
            self._next_id = max(self._next_id, number + 1)
            offsets = wanted.get(number, set())
            if offsets or keep:
                self._segments[number] = _Segment(
                    path=path, fd=None, num_bytes=path.stat().st_size, live=offsets
                )
            else:
                path.unlink()
        self._open: _Segment | None = None
        self.sync_when_sealed = False  # durability fsync

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    def append(self, message: Buffer) -> Location:
        """Writes one batch, given as `encode` makes it; when this returns, the operating system has
        it. Raises ReplayBufferError when writing fails (disk full, say); then nothing of the batch
        can be seen, and a later append may succeed."""
        if self._open is not None and self._open.num_bytes >= self._max_bytes:
            self._seal(self._open)
        segment, view = self._open or self._start(), memoryview(message)
        _write(segment, view)
        location = Location(
            segment=self._next_id - 1, offset=segment.num_bytes, num_bytes=view.nbytes
        )
        segment.num_bytes += view.nbytes
        segment.live.add(location.offset)
        return location

    def read(self, location: Location) -> pa.RecordBatch:
        """The batch at this place; its buffers are inside the mapped file.

        Raises BufferCorruption naming file and offset."""
        segment = self._segments[location.segment]
        if segment.mapped is None or segment.mapped_bytes < location.offset + location.num_bytes:
            segment.mapped = pa.memory_map(str(segment.path))
            segment.mapped_bytes = segment.mapped.size()
        segment.mapped.seek(min(location.offset, segment.mapped_bytes))
        message = segment.mapped.read_buffer(location.num_bytes)
        if message.size < location.num_bytes:
            raise _corrupt(
                segment.path,
                location.offset,
                f"{location.num_bytes} bytes expected, the file holds {message.size}",
            )
        return decode(message, segment.path, location.offset)

    def holds(self, location: Location) -> bool:
        """Are the batch's bytes there? (`read` checks whether they are the right ones.)"""
        segment = self._segments.get(location.segment)
        return segment is not None and location.offset + location.num_bytes <= segment.num_bytes

    def sync(self, journal_fd: int) -> Callable[[], None]:
        """Brings the journal and everything appended until now to the disk: returns the part that
        a thread can do. Sealed segments were synced when they were sealed."""
        open_fd = None if self._open is None else self._open.fd
        descriptors = [os.dup(fd) for fd in (open_fd, journal_fd) if fd is not None]

        def sync() -> None:
            try:
                for fd in descriptors:
                    os.fsync(fd)
            finally:
                for fd in descriptors:
                    os.close(fd)

        return sync

    def keep_only(self, live: Iterable[Location]) -> None:
        """These batches are wanted and no others, as if the directory were opened again."""
        wanted = _offsets(live)
        for number, segment in list(self._segments.items()):
            segment.live = wanted.get(number, set())
            if segment.fd is None and not segment.live:
                self._delete(number)

    def free(self, location: Location) -> None:
        """Nobody will read this batch again. Views of it that exist stay valid."""
        segment = self._segments[location.segment]
        segment.live.remove(location.offset)
        if segment.fd is None and not segment.live:
            self._delete(location.segment)

    def close(self) -> None:
        """Seals the open segment. Files without live batches are removed, the others stay on
        disk."""
        if self._open is not None:
            self._seal(self._open)
        for segment in self._segments.values():
            segment.mapped = None

    def _start(self) -> _Segment:
        path = self._directory / f"segment-{self._next_id:06d}.arrow"
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except OSError as e:
            raise ReplayBufferError(
                f"replay buffer: cannot create {path}: {e.strerror}; check the run directory"
            ) from e
        segment = _Segment(path=path, fd=fd, num_bytes=0)
        try:
            _write(segment, _SCHEMA_MESSAGE)
        except ReplayBufferError:
            os.close(fd)
            path.unlink()
            raise
        segment.num_bytes = len(_SCHEMA_MESSAGE)
        if self.sync_when_sealed:
            sync_directory(self._directory)  # of the journal beside it, too
        self._segments[self._next_id] = self._open = segment
        self._next_id += 1
        return segment

    def _seal(self, segment: _Segment) -> None:
        assert segment.fd is not None
        if self.sync_when_sealed:
            os.fsync(segment.fd)
        os.close(segment.fd)
        segment.fd = self._open = None
        if not segment.live:
            self._delete(self._next_id - 1)

    def _delete(self, segment_id: int) -> None:
        if not self._keep:
            self._segments.pop(segment_id).path.unlink()


def _offsets(places: Iterable[Location]) -> dict[int, set[int]]:
    """By segment."""
    out: dict[int, set[int]] = {}
    for place in places:
        out.setdefault(place.segment, set()).add(place.offset)
    return out


def encode(batch: pa.RecordBatch) -> memoryview:
    """The batch as one IPC message with its checksum, in memory of its own: its columns are copied
    once.

    A multiple of 8 bytes long, so that messages stay aligned in the file.
    """
    size = pa.ipc.get_record_batch_size(batch)
    memory = np.empty(len(_SCHEMA_MESSAGE) + size + _METADATA_BYTES, np.uint8)
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(memory))
    with pa.ipc.new_stream(sink, SCHEMA, options=_OPTIONS) as writer:
        writer.write_batch(batch, custom_metadata=_BLANK_METADATA)
        end = sink.tell()
    message = memory.data[len(_SCHEMA_MESSAGE) : end]
    at = _find_mark(message)
    message[at : at + len(_BLANK)] = b"%08x" % zlib.crc32(message)
    return message


def _find_mark(message: memoryview) -> int:
    """Where the digits of its checksum begin; -1 where there is none."""
    header_bytes = 8 + int.from_bytes(message[4:8], "little")
    found = bytes(message[:header_bytes]).find(_MARK)
    return found + len(_MARK) if found >= 0 else -1


def decode(message: pa.Buffer, path: Path, offset: int) -> pa.RecordBatch:
    """The batch of a message, without copying.

    Raises BufferCorruption naming `path` and `offset` unless the checksum holds.
    """
    view = memoryview(message)
    at = _find_mark(view)
    if at < 0:
        raise _corrupt(path, offset, "no checksum where a batch should begin")
    end = at + len(_BLANK)
    found = b"%08x" % zlib.crc32(view[end:], zlib.crc32(_BLANK, zlib.crc32(view[:at])))
    if found != bytes(view[at:end]):
        raise _corrupt(
            path, offset, f"checksum {found.decode()}, written as {bytes(view[at:end])!r}"
        )
    try:
        return pa.ipc.read_record_batch(pa.ipc.read_message(message), SCHEMA)
    except (pa.ArrowException, OSError) as e:
        raise _corrupt(path, offset, str(e)) from e


def _write(segment: _Segment, data: Buffer) -> None:
    """Writes all of `data` behind what is complete, or nothing of it."""
    assert segment.fd is not None
    view, at = memoryview(data), segment.num_bytes
    try:
        while view:
            written = os.pwrite(segment.fd, view, at)
            view, at = view[written:], at + written
    except OSError as e:
        error = ReplayBufferError(
            f"replay buffer: {memoryview(data).nbytes} bytes do not fit {segment.path}:"
            f" {e.strerror} (errno {e.errno}); free space there, choose another --runs-dir, or"
            " lower --buffer-max-bytes"
        )
        try:
            os.ftruncate(segment.fd, segment.num_bytes)
        except OSError as cut:
            # harmless: the next append overwrites the torn bytes, and no location points at them
            error.add_note(f"the torn write could not be cut off either: {cut}")
        raise error from e


def _corrupt(path: Path, offset: int, what: str) -> BufferCorruption:
    return BufferCorruption(
        f"{path} at byte {offset}: {what}. The file was changed or the disk is faulty; this group"
        " cannot be trained on"
    )


def scan(path: Path, start: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(offset, batch) of everything in a segment file from byte `start` on, which must begin a
    message. Every batch is verified: raises BufferCorruption at the first damage. What a crash left
    half written at the end counts as damage too, because no journal line points there."""
    with pa.memory_map(str(path)) as mapped:
        size = mapped.size()
        at = start
        while at < size:
            mapped.seek(at)
            try:
                message = pa.ipc.read_message(mapped)
            except (pa.ArrowException, OSError, EOFError) as e:
                raise _corrupt(path, at, str(e) or type(e).__name__) from e
            end = mapped.tell()
            if message.type == "record batch":
                mapped.seek(at)
                yield at, decode(mapped.read_buffer(end - at), path, at)
            at = end
