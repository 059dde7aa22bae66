"""Supervised training on answers that a function makes, in place of the data's own.

    python train_async.py --config sft --custom-generate-function-path examples/sft.py \
        --custom-rm-path examples/sft.py:reward --prompt-data mine.jsonl --label-key label

Without a function `--loss-type sft_loss` trains on the data's answers as they are: labels, or whole
chats (`--input-key messages`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream import Sample, Supervision


def answer_of(sample: Sample) -> str:
    """What is taught for this prompt: look it up, augment it, ask another model."""
    return f"The answer is {sample.label}."


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> Sample:
    """The answer as if the policy had sampled it. No engine is asked."""
    supervision = Supervision(tokenizer=args.tokenizer, loss_mask_type=args.loss_mask_type)
    tokens, mask = supervision.sequence(sample.prompt, answer_of(sample), None)
    first = mask.index(1)
    sample.tokens, sample.loss_mask = tokens, mask[first:]
    sample.response_length = len(tokens) - first
    sample.response = args.tokenizer.decode(tokens[first:], skip_special_tokens=True)
    # of no meaning here: nothing was sampled
    sample.rollout_log_probs = [0.0] * sample.response_length
    sample.status = Sample.Status.COMPLETED
    return sample


async def reward(args: Any, sample: Sample, **_: Any) -> float:
    """The cross entropy does not look at it."""
    return 0.0
