"""Small models, batches and an independent reference for the learner's tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import (
    AlgorithmConfig,
    ClusterConfig,
    Config,
    CriticConfig,
    ModelConfig,
    OptimConfig,
    RolloutConfig,
)
from pipeline.core.batch_share import StepShare, batch_shares, step_shares
from pipeline.core.histogram import NUM_RATIO_BINS, ratio_bins
from pipeline.core.types import OptimizerStep, TrainBatch, TrainSample
from stages.batch import make_batch as cut_batch
from stages.learn.settings import LearnerSettings

VOCAB = 101
# metrics that no two runs share
MEASURED = frozenset(
    {"seconds", "tokens_per_second_per_device", "model_tflops", "peak_memory_bytes"}
    # a token at the edge of a bin may be in the next one where sums are rounded otherwise
    | ratio_bins([0] * NUM_RATIO_BINS).keys()
)
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def make_model(kind: str, path: Path, *, tied: bool, seed: int = 0, num_layers: int = 2) -> Path:
    """A tiny model of random weights, saved as transformers saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape = {**_SHAPE, "num_hidden_layers": num_layers}
    model: Any
    if kind == "qwen3":  # head_dim is not hidden_size / heads, as in the published models
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32, tie_word_embeddings=tied))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied))
    with torch.no_grad():
        for name, p in model.named_parameters():
            # so that attention and norms matter
            p.mul_(1 + 0.3 * torch.randn_like(p)) if "norm" in name else p.mul_(4.0)
    model.save_pretrained(path)
    (path / "tokenizer_config.json").write_text("{}")
    return path


def load_hf(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def settings(
    model: Path,
    *,
    ranks: int = 1,
    optim: OptimConfig | None = None,
    critic: CriticConfig | None = None,
    steps: int = 10,
    **flags: Any,
) -> LearnerSettings:
    """Flags of AlgorithmConfig by name, and some of ModelConfig; `megatron` takes Megatron's."""
    megatron: Mapping[str, Any] = flags.pop("megatron", {})
    temperature: float = flags.pop("temperature", 1.0)
    of_model = {
        name: flags.pop(name)
        for name in ("dtype", "train_backend", "gradient_checkpointing")
        if name in flags
    }
    config = Config(
        model=ModelConfig(hf_checkpoint=str(model), device="cpu", **of_model),
        algorithm=AlgorithmConfig(**flags),
        critic=critic or CriticConfig(),
        optim=optim or OptimConfig(),
        cluster=ClusterConfig(actor_num_gpus_per_node=ranks),
        rollout=RolloutConfig(rollout_temperature=temperature),
        megatron={"lr": 1e-3, **megatron},
    )
    return LearnerSettings(config=config, num_optimizer_steps=steps)


def make_samples(lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[TrainSample]:
    """One sample a (prompt, response) length pair; about a fifth of the response tokens carry no
    loss.

    Neighbours with prompts of equal length are of one group: the same prompt."""
    rng = np.random.default_rng(seed)
    groups = np.cumsum([i > 0 and lengths[i][0] != lengths[i - 1][0] for i in range(len(lengths))])
    prompts = {
        int(g): rng.integers(0, VOCAB, prompt)
        for g, (prompt, _) in zip(groups, lengths, strict=True)
    }
    return [
        TrainSample(
            index=i,
            group_index=int(groups[i]),
            tokens=np.concatenate([prompts[int(groups[i])], rng.integers(0, VOCAB, response)]),
            response_length=response,
            loss_mask=(rng.random(response) < 0.8).astype(np.uint8)
            | (np.arange(response) == 0).astype(np.uint8),
            rollout_log_probs=rng.normal(-4.6, 0.6, response).astype(np.float32),
            advantages=rng.normal(size=response).astype(np.float32),
            reward=0.0,
            staleness=0,
        )
        for i, (prompt, response) in enumerate(lengths)
    ]


def numbered(samples: Sequence[TrainSample]) -> list[TrainSample]:
    """With loss on every response token, and rollout log-probs that number those tokens from 0: a
    packing shows where they went."""
    ends = np.cumsum([0, *(s.response_length for s in samples)])
    return [
        dataclasses.replace(
            s,
            loss_mask=np.ones(s.response_length, np.uint8),
            rollout_log_probs=np.arange(a, b, dtype=np.float32),
        )
        for s, a, b in zip(samples, ends[:-1], ends[1:], strict=True)
    ]


def make_step(
    samples: Sequence[TrainSample], *, ranks: int = 1, micro_batches: int = 1
) -> OptimizerStep:
    """Samples dealt out in turn over ranks and micro-batches, each a trajectory of its own."""
    samples = [dataclasses.replace(s, trajectory=i) for i, s in enumerate(samples)]
    parts = [
        [tuple(samples[r + ranks * m :: ranks * micro_batches]) for m in range(micro_batches)]
        for r in range(ranks)
    ]
    tokens = sum(int(s.loss_mask.sum()) for s in samples)
    return OptimizerStep(
        per_rank=tuple(tuple(p) for p in parts), num_samples=len(samples), num_loss_tokens=tokens
    )


def step(rank: Any, batch: TrainBatch) -> dict[str, float]:
    """The rank's step on its share of the batch."""
    metrics: dict[str, float] = rank.step(batch_shares(batch, rank.dp_size)[rank.dp_rank])
    return metrics


def share(step: OptimizerStep) -> StepShare:
    """All of the step, for a learner of one rank."""
    (whole,) = step_shares(step, 1)
    return whole


def pack(rank: Any, samples: Sequence[TrainSample]) -> list[Any]:
    """The samples packed as one micro-batch, for a learner of one rank."""
    packed: list[Any] = rank._passes.pack(share(make_step(samples)))
    return packed


def make_batch(*steps: OptimizerStep, rollout_id: int = 0) -> TrainBatch:
    return TrainBatch(rollout_id=rollout_id, policy_version=rollout_id, steps=steps)


LENGTHS = [(5, 9), (17, 3), (8, 20), (8, 1), (8, 20), (30, 40), (30, 6), (3, 33)]


def token_log_probs(model: Any, sample: TrainSample, temperature: float) -> torch.Tensor:
    """[R] log-probs of the response, by the plain model, one unpadded sample at a time."""
    ids = torch.from_numpy(sample.tokens)[None]
    logits = model(ids).logits[0] / temperature
    first = sample.num_tokens - sample.response_length
    rows = [
        torch.log_softmax(logits[t - 1], -1)[ids[0, t]] for t in range(first, sample.num_tokens)
    ]
    return torch.stack(rows)


def reference_loss(
    model: Any,
    samples: Sequence[TrainSample],
    old: Sequence[torch.Tensor],
    config: AlgorithmConfig,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The policy loss of one optimizer step, written as the formula reads: a loop over samples and
    tokens."""
    total = torch.zeros(())
    num_tokens = sum(int(s.loss_mask.sum()) for s in samples)
    high = config.eps_clip if config.eps_clip_high is None else config.eps_clip_high
    for s, old_lp in zip(samples, old, strict=True):
        new = token_log_probs(model, s, temperature)
        ids = torch.from_numpy(s.tokens)[None]
        log_p = torch.log_softmax(model(ids).logits[0] / temperature, -1)
        losses = []
        for t in range(s.response_length):
            if not s.loss_mask[t]:
                continue
            anchor = (
                float(s.rollout_log_probs[t]) if config.use_rollout_logprobs else float(old_lp[t])
            )
            ratio, advantage = (new[t] - anchor).exp(), float(s.advantages[t])
            loss = torch.maximum(
                -ratio * advantage, -ratio.clamp(1 - config.eps_clip, 1 + high) * advantage
            )
            if config.use_tis:
                loss = loss * min(
                    max(
                        np.exp(float(old_lp[t]) - float(s.rollout_log_probs[t])),
                        config.tis_clip_low,
                    ),
                    config.tis_clip,
                )
            if config.entropy_coef:
                row = log_p[s.num_tokens - s.response_length + t - 1]
                loss = loss + config.entropy_coef * (row.exp() * row).sum()
            losses.append(loss)
        total = total + (
            sum(losses) / num_tokens
            if config.calculate_per_token_loss
            else sum(losses) / len(losses) / len(samples)
        )
    return total


def hf_gradients(rank: Any) -> dict[str, torch.Tensor]:
    """The reduced gradients of the last step, by Hugging Face name and layout (one rank, no
    clipping)."""
    bridge, model = rank._built.bridge, rank._built.models[0]
    names = bridge.names(model)
    out = {}
    for name, p in model.named_parameters():
        out.update(bridge.to_hf(names[name], p.main_grad))
    return out


def meta(name: str, tensor: torch.Tensor) -> tuple[str, str, list[int]]:
    """As `describe_sent` says it."""
    return name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def weights_of(rank: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in rank.hf_weights()}


def halves() -> list[list[TrainSample]]:
    """Two optimizer steps' worth of samples."""
    samples = make_samples(LENGTHS)
    return [samples[:4], samples[4:]]


def few(ranks: int = 1) -> TrainBatch:
    """One sample with a loss, for two optimizer steps: ranks are left over, and a step."""
    return cut_batch(
        halves()[1][:1],
        rollout_id=5,
        policy_version=5,
        num_dp_ranks=ranks,
        num_steps_per_rollout=2,
        max_tokens=100,
    )


def poisoned() -> list[TrainSample]:
    """Samples of which one has an advantage that is not a number; it lands on the first rank
    only."""
    samples = make_samples(LENGTHS)
    samples[0].advantages[0] = float("nan")
    return samples


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a Hugging Face folder, under the names that they have there."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
