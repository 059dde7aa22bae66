"""Padding against packing on long-tailed lengths: the same model, samples and loss; only how
samples become micro-batches differs.

    python benchmarks/packing.py [--model tiny] [--groups 16] [--samples-per-group 8]

Lengths are lognormal, as responses are. Four ways, interleaved: padded (one sample a row, rows to
the longest of their batch, a plain Hugging Face loop), padded but sorted by length, packed, and
packed with the prompt of a group once. The learner does the last; for the third every sample is
told to be of another group. Work is counted too: tokens that each way puts through the model."""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
sys.path.insert(0, str(__import__("pathlib").Path(__file__).resolve().parents[1]))

import numpy as np
from common import keep, table
from learner_speed import MODELS, plain_step


def samples_of(
    vocab: int, groups: int, each: int, prompt: int, median: int, sigma: float, longest: int
) -> list[Any]:
    from pipeline.core.types import TrainSample

    rng = np.random.default_rng(0)
    out: list[Any] = []
    for group in range(groups):
        shared = rng.integers(0, vocab, prompt)
        for _ in range(each):
            n = int(np.clip(rng.lognormal(np.log(median), sigma), 2, longest))
            out.append(
                TrainSample(
                    index=len(out),
                    group_index=group,
                    tokens=np.concatenate([shared, rng.integers(0, vocab, n)]),
                    response_length=n,
                    loss_mask=np.ones(n, dtype=np.uint8),
                    rollout_log_probs=np.full(n, -np.log(vocab), dtype=np.float32),
                    advantages=rng.standard_normal(n).astype(np.float32),
                    reward=0.0,
                    staleness=0,
                )
            )
    return out


def padded_tokens(samples: list[Any], micro_batch: int) -> int:
    parts = [samples[i : i + micro_batch] for i in range(0, len(samples), micro_batch)]
    return sum(len(part) * max(s.num_tokens for s in part) for part in parts)


def shared_tokens(micro_batches: list[Any]) -> int:
    """Each prompt once a micro-batch."""
    from pipeline.core.flops import Cost

    cost = Cost(shares_prompts=True)
    return int(sum(cost.of_micro_batch(mb) for mb in micro_batches))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from configs.schema import Config, ModelConfig
    from pipeline.core.batch_share import batch_shares
    from pipeline.models.resolve import resolve_checkpoint
    from stages.batch import make_batch
    from stages.learn.megatron import start_rank
    from stages.learn.settings import LearnerSettings

    folder = resolve_checkpoint(MODELS[options.model][0]).absolute()
    vocab = AutoConfig.from_pretrained(folder).vocab_size
    samples = samples_of(
        vocab,
        options.groups,
        options.samples_per_group,
        options.prompt,
        options.median,
        options.sigma,
        options.longest,
    )
    strangers = [dataclasses.replace(s, group_index=s.index) for s in samples]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    flags = LearnerSettings(
        config=Config(model=ModelConfig(hf_checkpoint=str(folder), device="cpu", dtype="float32")),
        num_optimizer_steps=1000,
    )
    learner = start_rank(flags, rank=0, world_size=1, store=None)
    torch.set_num_threads(options.threads)

    def cut(part: list[Any]) -> Any:
        return make_batch(
            part,
            rollout_id=0,
            policy_version=0,
            num_dp_ranks=1,
            num_steps_per_rollout=1,
            max_tokens=options.max_tokens,
        )

    apart, together = cut(strangers), cut(samples)
    # a padded batch must fit the budget too
    rows = max(1, options.max_tokens // max(s.num_tokens for s in samples))
    by_length = sorted(samples, key=lambda s: -s.num_tokens)
    tokens = sum(s.num_tokens for s in samples)
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "padded": (
            lambda: plain_step(model, optimizer, samples, rows),
            padded_tokens(samples, rows),
        ),
        "padded, sorted": (
            lambda: plain_step(model, optimizer, by_length, rows),
            padded_tokens(by_length, rows),
        ),
        "packed": (lambda: learner.step(*batch_shares(apart, 1)), tokens),
        "packed, prompts shared": (
            lambda: learner.step(*batch_shares(together, 1)),
            shared_tokens(list(together.steps[0].per_rank[0])),
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(options.repeats + 1):  # interleaved, the first round is for warming up
        for name, (step, _) in ways.items():
            began = time.perf_counter()
            step()
            if i:
                taken[name].append(time.perf_counter() - began)
    learner.close()
    first = statistics.median(taken["padded"])
    return [
        {
            "way": name,
            "samples": len(samples),
            "tokens": tokens,
            "tokens_through_the_model": through,
            "useful_share": tokens / through,
            "tokens_per_s": tokens / statistics.median(taken[name]),
            "times_padded": first / statistics.median(taken[name]),
        }
        for name, (_, through) in ways.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(MODELS), default="tiny")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--samples-per-group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--median", type=int, default=96, help="tokens of a response")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the logarithm")
    parser.add_argument("--longest", type=int, default=1024)
    parser.add_argument(
        "--max-tokens", type=int, default=4096, help="of a micro-batch, padding included"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found = measure(options)
    table(list(found[0]), [list(f.values()) for f in found])
    keep("packing", {**vars(options), "runs": found})


if __name__ == "__main__":
    main()
