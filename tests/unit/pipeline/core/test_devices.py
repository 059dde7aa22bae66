"""A GPU is asked for in one way, which needs no torch and says what torch would say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.core import devices


def test_the_answer_is_torchs() -> None:
    assert devices.has_gpu() == torch.cuda.is_available()
    assert (devices.why_no_gpu() is None) == devices.has_gpu()


@pytest.mark.parametrize("hidden", devices.HIDDEN)
def test_hidden_devices_are_none(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not devices.has_gpu()
    assert "CUDA_VISIBLE_DEVICES" in (devices.why_no_gpu() or "")


def test_gpus_that_torch_or_the_driver_cannot_use_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(devices, "num_devices", lambda: 0)
    assert devices.why_unused() is None
    for name in ("nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1"):
        (tmp_path / name).touch()
    assert "nvidia0 is here" in (devices.why_unused() or "")
    monkeypatch.setattr(devices, "num_devices", lambda: 2)
    monkeypatch.setattr(devices, "_torch_knows_cuda", lambda: False)
    assert "2 GPUs are here" in (devices.why_unused() or "")
    monkeypatch.setattr(devices, "_torch_knows_cuda", lambda: True)
    assert devices.why_unused() is None
    monkeypatch.setattr(devices, "_torch_knows_cuda", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.why_unused() is None  # on purpose
