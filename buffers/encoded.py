"""From a group to what the buffer appends, wherever the group was made, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from buffers.decoding import from_batch
from buffers.encoding import to_batch
from buffers.priority import Priority, reward_std
from buffers.segments import decode, encode
from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.types import Group, Sample


def encode_group(group: Group, priority: Priority = reward_std) -> EncodedGroup:
    """Raises UnstorableSamplesError, and whatever `priority` raises."""
    batch = to_batch(group)
    return EncodedGroup(
        group_index=group.group_index,
        deadline=group.deadline,
        message=encode(batch),
        response_lengths=tuple(s.response_length for s in group.samples),
        oldest_version=oldest_version(group.samples),
        priority=priority(group),
    )


def decode_group(encoded: EncodedGroup) -> Group:
    """Its arrays are views of the bytes. Raises BufferCorruption unless the checksum holds."""
    return from_batch(decode(pa.py_buffer(encoded.message), Path("(a group not yet stored)"), 0))


def oldest_version(samples: Sequence[Sample]) -> int | None:
    return min((v for s in samples if (v := s.oldest_version()) is not None), default=None)
