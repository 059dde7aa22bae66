"""Memory of log-probs at its peak, forwards and backwards: ours in chunks against torch's
log_softmax, at a real vocabulary.

    python benchmarks/logprob_memory.py [--vocabulary 151936] [--rows 256 512 1024] [--dtype \
        bfloat16]

Both get logits [rows, vocabulary] as a model gives them, and return the gradient with respect to
them. What is counted is what each holds at once beside those logits, exactly, from the allocator's
own records (CPU) or counters (GPU)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
sys.path.insert(0, str(__import__("pathlib").Path(__file__).resolve().parents[1]))

from common import keep, table


def peak_bytes(work: Callable[[], object], device: str) -> int:
    import torch
    from torch.profiler import ProfilerActivity, profile

    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    held = peak = 0
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(rows: int, words: int, dtype: str, device: str, chunk: int) -> dict[str, Any]:
    import torch

    from stages.learn.losses import compute_log_probs_from_logits

    targets = torch.randint(words, (rows,), device=device)

    def logits() -> Any:
        return (
            torch.randn(rows, words, device=device, dtype=getattr(torch, dtype)).requires_grad_()
            * 1
        )

    def ours(x: Any) -> None:
        got = compute_log_probs_from_logits(x, targets, chunk_size=chunk, overwrite_logits=True)
        torch.autograd.grad(got.log_probs.sum(), x)

    def naive(x: Any) -> None:
        log_p = x.float().log_softmax(-1)
        entropy = -(log_p.detach().exp() * log_p.detach()).sum(-1)
        torch.autograd.grad(log_p.gather(-1, targets[:, None]).sum() + 0 * entropy.sum(), x)

    found: dict[str, Any] = {
        "rows": rows,
        "logits_mib": rows * words * (2 if dtype == "bfloat16" else 4) / 2**20,
    }
    for name, work in (("ours", ours), ("naive", naive)):
        x = logits()
        began = time.perf_counter()
        work(x)
        if device == "cuda":
            torch.cuda.synchronize()
        found[f"{name}_seconds"] = time.perf_counter() - began
        x = logits()
        found[f"{name}_mib"] = peak_bytes(lambda work=work, x=x: work(x), device) / 2**20  # type: ignore[misc]
        del x
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--chunk-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = [
        measure(rows, options.vocabulary, options.dtype, device, options.chunk_size)
        for rows in options.rows
    ]
    table(list(found[0]), [list(f.values()) for f in found])
    given = {
        "vocabulary": options.vocabulary,
        "dtype": options.dtype,
        "chunk_size": options.chunk_size,
        "device": device,
    }
    keep("logprob_memory", {**given, "runs": found})


if __name__ == "__main__":
    main()
