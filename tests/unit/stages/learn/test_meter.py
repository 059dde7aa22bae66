"""What a step is said to have cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.flops import Cost
from pipeline.core.types import OptimizerStep, TrainBatch, TrainSample
from stages.learn.meter import PeakMemory, StepMeter
from tests.manual_time import ManualTime


def batch_of(*lengths: tuple[int, int]) -> TrainBatch:
    samples = tuple(
        TrainSample(
            index=i,
            group_index=0,
            tokens=np.zeros(prompt + response, np.int64),
            response_length=response,
            loss_mask=np.ones(response, np.uint8),
            rollout_log_probs=np.zeros(response, np.float32),
            advantages=np.zeros(response, np.float32),
            reward=0.0,
            staleness=0,
        )
        for i, (prompt, response) in enumerate(lengths)
    )
    step = OptimizerStep(
        per_rank=((samples,),),
        num_samples=len(samples),
        num_loss_tokens=sum(s.response_length for s in samples),
    )
    return TrainBatch(rollout_id=0, policy_version=0, steps=(step,))


def test_pace_and_operations() -> None:
    time = ManualTime()
    meter = StepMeter(
        torch.device("cpu"),
        Cost(linear=3e9, head=1e9, shares_prompts=True),
        num_devices=2,
        now=time.now,
    )
    time.advance(100.0)  # before the step
    meter.restart()
    time.advance(0.5)
    found = meter.metrics(batch_of((4, 6), (4, 2)), extra_passes=1.0)
    assert found["num_tokens"] == 16 and found["seconds"] == 0.5
    assert found["tokens_per_second_per_device"] == 16 / 0.5 / 2
    operations = 3e9 * (16 - 4) + 1e9 * 8  # the second prompt is the first's
    assert found["model_tflops"] == pytest.approx(4 * operations / 0.5 / 2 / 1e12)
    assert "mfu" not in found  # of a CPU nobody says the peak


def test_peak_memory_of_the_process_falls_when_it_is_restarted() -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.restart()
    before = memory.read()
    held = torch.ones(32 << 20, dtype=torch.uint8)
    after = memory.read()
    assert after - before > 24 << 20
    del held
    memory.restart()
    # equal where the system does not allow it
    assert memory.read() < after - (16 << 20) or memory.read() == after
