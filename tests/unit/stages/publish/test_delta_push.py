"""From the learner's tensors to a node's copy of them, by way of a file that may be damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.core.errors import StaleWeightsError, WeightSyncError
from stages.engine.scratch import sweep_stale
from stages.publish import delta_codec, delta_file, delta_mirror, delta_sender
from stages.publish.delta_mirror import MANIFEST, PREFIX, bring, drop
from stages.publish.delta_sender import DeltaSender


class Learner:
    """Tensors of all types, one of them without an element, one without a dimension."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.tensors = {
            "bf16": torch.randn(300, 40).bfloat16(),
            "fp32": torch.randn(77, 3),
            "fp16": torch.randn(1000).half(),
            "scalar": torch.tensor(3.0, dtype=torch.bfloat16),
            "none": torch.empty(0, 5),
            "int": torch.arange(50),
        }
        self.iterated = 0

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()
        self.iterated += 1

    def step(self, share: float = 0.02) -> None:
        for tensor in self.tensors.values():
            if tensor.is_floating_point():
                tensor[torch.rand(tensor.shape) < share] *= 1.01


class World:
    def __init__(self, folder: Path) -> None:
        self.learner = Learner()
        self.sender = DeltaSender(self.learner.weights)
        self.folder, self.copy = folder, folder / f"{PREFIX}a"
        self.pushes = 0

    def stage(self) -> Path:
        self.pushes += 1
        self.path = self.folder / f"{self.pushes}.delta"
        self.staged = self.sender.export_delta(self.path)
        return self.path

    def bring(self, copy: Path | None = None, check: bool = False) -> str:
        return bring(copy or self.copy, self.path, self.staged.reached, check)

    def full(self) -> str:
        path = self.folder / "full"
        assert self.sender.export_all(path, self.staged.reached) == path.stat().st_size
        return bring(self.copy, path, self.staged.reached)

    def held(self) -> dict[str, torch.Tensor]:
        return {k: t for f in self.copy.glob("*.safetensors") for k, t in load_file(f).items()}

    def assert_equal(self) -> None:
        held = self.held()
        assert held.keys() == self.learner.tensors.keys()
        for name, expected in self.learner.tensors.items():
            assert (held[name].dtype, held[name].shape) == (expected.dtype, expected.shape)
            assert torch.equal(
                held[name].reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)
            )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for copy in list(delta_mirror._held):
        drop(copy)


def test_pushes_in_a_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (delta_codec, delta_file, delta_mirror, delta_sender):
        if hasattr(module, "CHUNK"):
            monkeypatch.setattr(module, "CHUNK", 1000)  # several of them in one tensor
    monkeypatch.setattr(delta_mirror, "SHARD_BYTES", 20_000)
    world.stage()
    assert world.staged.base is None and world.bring() == "full"
    assert len(list(world.copy.glob("*.safetensors"))) > 1
    world.assert_equal()
    for _ in range(3):
        world.learner.step()
        before = world.staged.reached
        world.stage()
        assert world.staged.base == before
        assert world.staged.num_bytes < world.staged.full_bytes / 2
        assert world.bring() == "delta"
        world.assert_equal()
    assert world.bring() == "there"  # a second engine of the node
    world.stage()  # nothing has changed
    assert world.bring() == "there"
    world.assert_equal()


def test_nan_payloads_infinities_and_signed_zeros(world: World) -> None:
    world.stage()
    world.bring()
    patterns = torch.tensor([0x7FC1, -1, 0x7F80, -128, -32768, 0x7FA5], dtype=torch.int16)
    world.learner.tensors["bf16"].view(torch.int16)[0, :6] = patterns
    world.stage()
    assert world.bring() == "delta"
    world.assert_equal()


def test_all_that_changed(world: World) -> None:
    world.stage()
    world.bring()
    for name, tensor in world.learner.tensors.items():
        if tensor.is_floating_point():
            world.learner.tensors[name] = torch.randn(tensor.shape).to(tensor.dtype)
    world.stage()
    assert world.bring() == "delta"
    world.assert_equal()


def test_a_damaged_byte_anywhere_is_refused_and_all_weights_help(world: World) -> None:
    world.stage()
    world.bring()
    world.learner.step()
    good = world.stage().read_bytes()
    before = world.held()
    for at in [*range(0, len(good), 61), *range(len(good) - 40, len(good))]:
        world.path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        with pytest.raises(WeightSyncError, match="is damaged"):
            world.bring()
    for shorter in (0, 7, 100, len(good) - 1):
        world.path.write_bytes(good[:shorter])
        with pytest.raises(WeightSyncError):
            world.bring()
    world.path.write_bytes(good + b"x")
    with pytest.raises(WeightSyncError, match="is damaged"):
        world.bring()
    assert all(torch.equal(tensor, before[name]) for name, tensor in world.held().items())
    assert world.full() == "full"
    world.assert_equal()


def test_another_state_than_the_push_begins_with(world: World) -> None:
    world.stage()
    world.bring()
    for _ in range(2):  # the first of these two passes this node by
        world.learner.step()
        world.stage()
    with pytest.raises(WeightSyncError, match="holds another state of the weights"):
        world.bring()
    with pytest.raises(WeightSyncError, match="holds nothing"):
        world.bring(world.folder / f"{PREFIX}b")
    assert world.full() == "full"
    world.assert_equal()


def test_bits_that_changed_where_they_lie(world: World) -> None:
    world.stage()
    world.bring()
    (file,) = world.copy.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert world.bring() == "there"  # nobody looked
    with pytest.raises(WeightSyncError, match="has changed where it lies"):
        world.bring(check=True)
    assert not (world.copy / MANIFEST).exists()
    assert world.full() == "full" and world.bring(check=True) == "there"
    world.assert_equal()


def test_a_changed_tensor_must_come_out_right(world: World) -> None:
    world.stage()
    world.bring()
    (file,) = world.copy.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle of the largest
    file.write_bytes(data)
    world.learner.step(share=0.5)
    world.stage()
    with pytest.raises(WeightSyncError, match="does not come out as the learner has it"):
        world.bring()
    with pytest.raises(WeightSyncError, match="holds nothing"):
        world.bring()  # half applied: it is of no state
    assert world.full() == "full"
    world.assert_equal()


def test_a_learner_that_could_not_write_sends_everything_next(world: World) -> None:
    world.stage()
    world.learner.step()
    with pytest.raises(WeightSyncError, match="could not be written"):
        world.sender.export_delta(world.folder / "nowhere" / "x")
    assert world.learner.iterated == 2, "the other ranks are in there too"
    with pytest.raises(StaleWeightsError, match="no longer has the weights"):
        world.sender.export_all(world.folder / "x", world.staged.reached)
    world.stage()
    assert world.staged.base is None
    assert world.bring() == "full"
    world.assert_equal()


def test_weights_of_another_shape_begin_anew(world: World) -> None:
    world.stage()
    world.learner.tensors["fp32"] = torch.randn(3, 3)
    with pytest.raises(WeightSyncError, match=r"fp32 is float32 \[3, 3\]"):
        world.stage()
    world.stage()
    assert world.staged.base is None and world.bring() == "full"
    world.assert_equal()


def test_what_the_learner_does_afterwards_is_not_in_the_push(world: World) -> None:
    world.stage()
    expected = {name: tensor.clone() for name, tensor in world.learner.tensors.items()}
    world.learner.step(share=1.0)
    assert world.full() == "full"
    world.learner.tensors = expected
    world.assert_equal()


def test_an_engine_that_starts_removes_what_a_killed_process_left(world: World) -> None:
    world.stage()
    world.bring()
    sweep_stale(world.folder)
    world.assert_equal()
    os.close(delta_mirror._held.pop(world.copy))  # as the kernel does
    sweep_stale(world.folder)
    assert not world.copy.exists()


def test_copies_that_nobody_holds_are_removed(world: World) -> None:
    left = world.folder / f"{PREFIX}left"
    left.mkdir()
    (left / delta_mirror.OWNER).touch()
    other = world.folder / f"{PREFIX}held"
    world.stage()
    world.bring(other)
    world.bring()
    assert not left.exists() and other.exists() and world.copy.exists()
    drop(other)
    assert not other.exists()
    drop(other)
