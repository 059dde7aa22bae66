"""The learner's side: bucket layout, and a real gloo group between two processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import WeightSyncError
from pipeline.core.ports import free_port
from stages.publish.buckets import TensorMeta, meta_of, num_bytes, put, split
from stages.publish.gathered import Gathered
from stages.publish.sender import BroadcastSender
from tests.unit.stages.publish.gloo_peer import peer
from tests.unit.stages.publish.unflatten import unflatten

CPU = torch.device("cpu")
tensors = st.lists(
    st.tuples(
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    ),
    min_size=1,
    max_size=8,
)


@given(shapes=tensors, max_bytes=st.integers(1, 200))
@settings(max_examples=60)
def test_split_and_flatten_lose_nothing(
    shapes: list[tuple[list[int], torch.dtype]], max_bytes: int
) -> None:
    named = [
        (f"t{i}", (torch.rand(shape) * 100).to(dtype)) for i, (shape, dtype) in enumerate(shapes)
    ]
    back: list[tuple[str, torch.Tensor]] = []
    buckets = split([meta_of(name, tensor) for name, tensor in named], max_bytes)
    gathered = Gathered(buckets, lambda size: torch.empty(size, dtype=torch.uint8))
    gathered.fill(iter(named))
    for i, metas in enumerate(buckets):
        flat = gathered.take(i, 0.0)
        assert flat.nbytes <= max_bytes or len([m for m in metas if num_bytes(m)]) <= 1
        back += unflatten(metas, flat)
    assert [name for name, _ in back] == [name for name, _ in named]
    assert all(
        a.dtype == b.dtype and torch.equal(a, b) for (_, a), (_, b) in zip(back, named, strict=True)
    )


def test_a_transposed_tensor_travels_in_its_logical_order() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    flat = torch.empty(25, dtype=torch.uint8)
    # where its numbers may begin, and where not
    for at in (0, 1):
        assert put(tensor, flat, at) == at + 24
        found = flat[at : at + 24].clone().view(torch.float32)
        assert found.tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]


def prepare(sender: BroadcastSender, max_bytes: int = 1 << 20) -> list[list[TensorMeta]]:
    """A copy, as RankSenders makes it."""
    buckets = split(sender.describe(), max_bytes)
    sender.begin(buckets, copy=True)
    sender.gather()
    return buckets


def test_what_is_prepared_is_a_copy() -> None:
    weight = torch.zeros(4)
    sender = BroadcastSender(lambda: iter([("w", weight)]), lambda path: None, CPU)
    prepare(sender)
    weight.add_(1.0)
    assert sender._gathered is not None
    assert sender._gathered.take(0, 0.0).view(torch.float32).tolist() == [0.0] * 4


def test_a_failure_while_gathering_still_runs_the_collective_to_its_end() -> None:
    seen: list[str] = []

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in ("a", "b", "c"):
            seen.append(name)
            # copying off the meta device is refused
            yield name, torch.zeros(1, device="meta" if name == "a" else "cpu")

    described = [(name, "float32", [1]) for name in ("a", "b", "c")]
    sender = BroadcastSender(weights, lambda path: None, CPU, lambda: described)
    with pytest.raises(WeightSyncError, match="could not be gathered"):
        prepare(sender, 1)
    assert seen == ["a", "b", "c"]


def test_sending_without_a_group_or_a_bucket_is_refused() -> None:
    sender = BroadcastSender(lambda: iter([]), lambda path: None, CPU)
    with pytest.raises(WeightSyncError, match="nothing to send"):
        sender.broadcast("g", 0)
    sender.leave("g")


def test_an_export_that_cannot_be_written_is_a_weight_sync_error() -> None:
    def export(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(WeightSyncError, match="No space left"):
        BroadcastSender(lambda: iter([]), export, CPU).export_hf(Path("x"))


def test_a_group_carries_buckets_and_survives_the_death_of_its_peer() -> None:
    sender = BroadcastSender(
        lambda: iter([("w", torch.arange(4.0))]), lambda path: None, CPU, timeout_seconds=30.0
    )
    assert prepare(sender) == [[("w", "float32", [4])]]
    port = free_port()
    other = peer(port, 1)
    sender.join("g", "127.0.0.1", port, 2, "gloo")
    sender.broadcast("g", 0)
    said, _ = other.communicate(timeout=60)
    assert said.strip() == "[0.0, 1.0, 2.0, 3.0]"
    with pytest.raises(WeightSyncError, match="already in group g"):
        sender.join("g", "127.0.0.1", port, 2, "gloo")
    with pytest.raises(WeightSyncError, match="broadcasting bucket 0 to group g failed"):
        for _ in range(100):  # the first may still fit into the socket
            sender.broadcast("g", 0)
    sender.leave("g")
    again = peer(port := free_port(), 1)
    sender.join("g", "127.0.0.1", port, 2, "gloo")  # the engine is back
    sender.broadcast("g", 0)
    assert again.communicate(timeout=60)[0].strip() == "[0.0, 1.0, 2.0, 3.0]"
    sender.leave("g")


def test_one_broadcast_reaches_several_engines_and_a_death_among_them_is_an_error() -> None:
    sender = BroadcastSender(
        lambda: iter([("w", torch.arange(4.0))]), lambda path: None, CPU, timeout_seconds=30.0
    )
    prepare(sender)
    port = free_port()
    others = [peer(port, rounds, rank, 3) for rank, rounds in ((1, 1), (2, 200))]
    sender.join("g", "127.0.0.1", port, 3, "gloo")
    with pytest.raises(WeightSyncError, match="broadcasting bucket 0 to group g failed"):
        for _ in range(200):  # the first engine is gone after one
            sender.broadcast("g", 0)
    sender.leave("g")
    said = [other.communicate(timeout=60)[0].splitlines() for other in others]
    assert said[0] == ["[0.0, 1.0, 2.0, 3.0]"] and said[1][0] == said[0][0]
    assert [other.returncode for other in others] == [0, 1]  # the second was told, and not left


def test_a_group_to_which_one_does_not_come_ends_the_waiting_of_those_who_came() -> None:
    sender = BroadcastSender(lambda: iter([]), lambda path: None, CPU, join_seconds=8.0)
    port = free_port()
    came = peer(port, 1, 1, 3)
    with pytest.raises(WeightSyncError, match="could not form gloo group g of 3"):
        sender.join("g", "127.0.0.1", port, 3, "gloo")
    _, complaint = came.communicate(timeout=60)  # it would wait for 30 minutes
    assert came.returncode == 1 and "store" in complaint.lower()
