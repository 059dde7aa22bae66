"""A GPU is asked for in one way, which needs no torch and says what torch would say."""

from __future__ import annotations

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
