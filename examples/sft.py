"""Supervised fine-tuning on the same path: the "response" is the data's, the loss is cross entropy
(--loss-type sft_loss).

    python train_async.py --config sft --prompt-data mine.jsonl --label-key label

A row's label is the answer as text, or the chat messages that follow the prompt's messages. In a
chat every assistant turn is trained, with what closes it; user and tool turns between them are in
the context only (loss mask 0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slipstream import GenerateError, Sample


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> Sample:
    """The data's own continuation of the prompt, as if the policy had sampled it.

    No engine is asked.
    """
    if isinstance(sample.label, str):
        answer = [
            *args.tokenizer.encode(sample.label, add_special_tokens=False),
            args.tokenizer.eos_token_id,
        ]
        tokens, mask = [*sample.tokens, *answer], [0] * len(sample.tokens) + [1] * len(answer)
    elif isinstance(sample.label, list) and isinstance(sample.prompt, list):
        tokens, mask = conversation(args.tokenizer, [*sample.prompt, *sample.label])
    else:
        raise GenerateError(
            f"prompt is {type(sample.prompt).__name__}, label {type(sample.label).__name__}:"
            " expected a label of text, or prompt and label both lists of chat messages"
            " (--input-key, --label-key, and no --apply-chat-template)"
        )
    if 1 not in mask[1:]:
        raise GenerateError("nothing to train on: no assistant turn behind the first token")
    first = max(1, mask.index(1))
    sample.tokens, sample.loss_mask = tokens, mask[first:]
    sample.response_length = len(tokens) - first
    sample.response = args.tokenizer.decode(tokens[first:], skip_special_tokens=True)
    # of no meaning here: nothing was sampled
    sample.rollout_log_probs = [0.0] * sample.response_length
    sample.status = Sample.Status.COMPLETED
    return sample


def conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]]
) -> tuple[list[int], list[int]]:
    """(token ids, loss mask) of a whole chat.

    Raises GenerateError where the template rewrites earlier turns later on.
    """

    def render(upto: int, *, prompt: bool) -> list[int]:
        chat = list(messages[:upto])
        return list(
            tokenizer.apply_chat_template(
                chat, tokenize=True, add_generation_prompt=prompt, return_dict=False
            )
        )

    tokens = render(len(messages), prompt=False)
    mask = [0] * len(tokens)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(i, prompt=True), render(i + 1, prompt=False)
        if after[: len(before)] != before or tokens[: len(after)] != after:
            raise GenerateError(
                f"the chat template renders turn {i} differently inside the whole chat: its tokens"
                " cannot be told apart"
            )
        mask[len(before) : len(after)] = [1] * (len(after) - len(before))
    return tokens, mask


async def reward(args: Any, sample: Sample, **_: Any) -> float:
    """The cross entropy does not look at it."""
    return 0.0
