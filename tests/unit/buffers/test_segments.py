"""Segment files: zero-copy, verified, rotated, and all or nothing when the disk is full."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from buffers.decoding import from_batch
from buffers.encoding import to_batch
from buffers.schema import SCHEMA
from buffers.segments import SegmentStore, encode
from pipeline.core.errors import BufferCorruption, ReplayBufferError, UnstorableSamplesError
from pipeline.core.types import Group, Location, Sample, Status, VersionSpan


def make_group(index: int, num_tokens: int = 100) -> Group:
    sample = Sample(
        index=index,
        tokens=list(range(index, index + num_tokens)),
        response_length=num_tokens,
        loss_mask=[1] * num_tokens,
        rollout_log_probs=[-0.5] * num_tokens,
        weight_versions=[VersionSpan(0, 0, num_tokens)],
        reward=1.0,
        status=Status.COMPLETED,
    )
    return Group(group_index=index, deadline=0, admitted_version=0, samples=(sample, sample))


def append(store: SegmentStore, index: int, num_tokens: int = 100) -> Location:
    return store.append(encode(to_batch(make_group(index, num_tokens))))


def files(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """The kernel cuts writes off at this file size, as a full disk does: a short write first, then
    an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Address ranges at which this process has mapped the file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return [
        tuple(int(a, 16) for a in line[0].split("-")) for line in lines if line[-1] == str(path)
    ]  # type: ignore[misc]


def test_what_is_read_lies_in_the_mapped_file(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    append(store, 1)
    location = append(store, 2)
    group = from_batch(store.read(location))
    ranges = mapped_ranges(tmp_path / "segment-000000.arrow")
    assert ranges
    for sample in group.samples:
        for array in (sample.tokens, sample.loss_mask, sample.rollout_log_probs):
            address = array.__array_interface__["data"][0]
            assert any(
                start <= address and address + array.nbytes <= end for start, end in ranges
            ), "copied out of the mapping"
            assert address % array.itemsize == 0
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_views_survive_the_deletion_of_their_file(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    location = append(store, 7)
    group = from_batch(store.read(location))
    store.free(location)
    store.close()
    assert files(tmp_path) == []
    np.testing.assert_array_equal(group.samples[0].tokens, np.arange(7, 107))


def test_a_reader_sees_what_was_appended_after_it_mapped_the_file(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    first = append(store, 1)
    store.read(first)
    second = append(store, 2, num_tokens=5000)
    assert from_batch(store.read(second)).group_index == 2
    assert from_batch(store.read(first)).group_index == 1


def test_a_segment_is_an_arrow_stream_that_any_tool_reads(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    for i in range(3):
        append(store, i)
    table = pa.ipc.open_stream(tmp_path / "segment-000000.arrow").read_all()
    assert table.schema.metadata == {b"schema_version": b"4"} == SCHEMA.metadata
    assert table["group_index"].to_pylist() == [0, 0, 1, 1, 2, 2]


def test_segments_rotate_by_size_and_go_when_all_is_consumed(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path, max_segment_bytes=10_000)
    locations = [append(store, i) for i in range(12)]
    ids = [location.segment for location in locations]
    assert ids == sorted(ids) and len(set(ids)) >= 3
    assert files(tmp_path) == [f"segment-{i:06d}.arrow" for i in sorted(set(ids))]
    for location in locations[:-1]:
        store.free(location)
    assert files(tmp_path) == [f"segment-{ids[-1]:06d}.arrow"], "only the open one is left"
    store.free(locations[-1])
    assert store.num_segments == 1, "the open segment stays open when it is empty"
    store.close()
    assert files(tmp_path) == []


@pytest.mark.parametrize("where", ["length", "header", "checksum", "body", "end"])
def test_a_flipped_bit_is_found_and_named(tmp_path: Path, where: str) -> None:
    store = SegmentStore(tmp_path)
    append(store, 1)
    location = append(store, 2)
    path = tmp_path / "segment-000000.arrow"
    data = bytearray(path.read_bytes())
    crc = data.index(b"crc32:", location.offset)
    at = {
        "length": 4,
        "header": 16,
        "checksum": crc + 8 - location.offset,
        "body": location.num_bytes // 2,
        "end": location.num_bytes - 1,
    }
    data[location.offset + at[where]] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        BufferCorruption, match=rf"segment-000000.arrow at byte {location.offset}: "
    ):
        store.read(location)


def test_a_truncated_file_is_found_and_named(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    location = append(store, 1)
    path = tmp_path / "segment-000000.arrow"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        BufferCorruption, match=rf"at byte {location.offset}: {location.num_bytes} bytes expected"
    ):
        store.read(location)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    first = append(store, 1)
    path = tmp_path / "segment-000000.arrow"
    complete = path.stat().st_size
    with (
        file_size_limit(complete + 1000),
        pytest.raises(
            ReplayBufferError, match=r"do not fit .*segment-000000.arrow.*--buffer-max-bytes"
        ),
    ):
        append(store, 2, num_tokens=1000)
    assert path.stat().st_size == complete, "the torn write was cut off"
    assert from_batch(store.read(first)).group_index == 1
    third = append(store, 3)
    assert third.offset == complete
    assert [from_batch(store.read(x)).group_index for x in (first, third)] == [1, 3]
    assert pa.ipc.open_stream(path).read_all()["group_index"].to_pylist() == [1, 1, 3, 3]


def test_a_segment_that_cannot_be_started_leaves_no_file(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path)
    with file_size_limit(100), pytest.raises(ReplayBufferError, match="do not fit"):
        append(store, 1)
    assert files(tmp_path) == []
    assert from_batch(store.read(append(store, 2))).group_index == 2


def test_segments_of_an_earlier_process_are_removed_and_other_files_kept(tmp_path: Path) -> None:
    SegmentStore(tmp_path)
    (tmp_path / "segment-000000.arrow").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    store = SegmentStore(tmp_path)
    assert files(tmp_path) == ["notes.txt"]
    append(store, 1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "metadata",
            {"x": object()},
            "sample.metadata cannot be stored .*object.* expected what JSON can say",
        ),
        ("tokens", ["a"], "sample.tokens cannot be stored"),
        ("tokens", np.array([1.5]), "sample.tokens cannot be stored .*do not fit int64"),
        ("loss_mask", [300], "sample.loss_mask cannot be stored"),
        ("loss_mask", np.array([300]), "sample.loss_mask cannot be stored .*do not fit uint8"),
        ("response", "\ud800", "sample.response cannot be stored"),
        ("reward", object(), "sample.reward cannot be stored"),
        ("reward", {"a": object()}, "sample.reward.* cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_named(field: str, value: object, message: str) -> None:
    group = dataclasses.replace(make_group(3), samples=(*make_group(3).samples[:1], Sample()))
    setattr(group.samples[1], field, value)
    with pytest.raises(UnstorableSamplesError, match=f"group 3, its sample 1: {message}") as error:
        to_batch(group)
    assert list(error.value.reasons) == [1]


def test_numpy_in_metadata_becomes_plain() -> None:
    group = make_group(3)
    group.samples[0].metadata = {"score": np.float32(0.5), "path": np.arange(3)}
    assert from_batch(to_batch(group)).samples[0].metadata == {"score": 0.5, "path": [0, 1, 2]}


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(ReplayBufferError, match="group 5 has no samples"):
        to_batch(Group(group_index=5, deadline=0, admitted_version=0, samples=()))


def test_another_schema_version_is_refused() -> None:
    batch = to_batch(make_group(1))
    with pytest.raises(ReplayBufferError, match="schema_version 99"):
        from_batch(batch.replace_schema_metadata({"schema_version": "99"}))


def test_a_reward_comes_back_as_it_was() -> None:
    rewards: list[Any] = [0.5, None, "good", [1, {"a": None}], {"right": 1.0}, "", [], {}]
    samples = tuple(Sample(reward=reward) for reward in rewards)
    group = dataclasses.replace(make_group(0), samples=samples)
    assert [s.reward for s in from_batch(to_batch(group)).samples] == rewards
