"""Where prompts come from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.core.conversation import LossMaskType

# of prompts that bring what scores them along
PROCEDURAL = ("reasoning_gym:", "verifiers:")


def is_procedural(spec: str | None) -> bool:
    return (spec or "").startswith(PROCEDURAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Prompts."""

    # where prompts come from: file.jsonl, file.parquet, path@[a:b], reasoning_gym:TASK?param=value,
    # or verifiers:NAME?argument=value&...
    prompt_data: str | None = None
    # takes prompts from your own class, file.py[:Class], with slime's get_samples, add_samples,
    # save and load
    data_source_path: str | None = None
    input_key: str = "prompt"  # names the column with the prompt (text or chat messages)
    label_key: str | None = None  # names the column with the label
    # names the column with a JSON object that becomes sample.metadata
    metadata_key: str = "metadata"
    tool_key: str = "tools"  # names the column with tool descriptions for the chat template
    apply_chat_template: bool = False  # renders prompts with the tokenizer's chat template
    # what the chat template is given beside the messages, as JSON: '{"enable_thinking": false}'
    apply_chat_template_kwargs: str | None = None
    system_prompt: str | None = None  # put ahead of every chat
    # which part of a whole chat is trained (--loss-type sft_loss): with qwen and qwen3 every
    # assistant turn, as it was when it was the newest, thinking included; with qwen3_5 every one
    # as the template renders the whole chat; with distill_qwen the last message
    loss_mask_type: LossMaskType = "qwen"
    rollout_shuffle: bool = True  # shuffles prompts, differently in every epoch
    rollout_seed: int = 42  # seeds the shuffle and procedural tasks
    # skips and counts rows that are malformed, refused by the chat template, or without a usable
    # label, instead of stopping
    skip_bad_rows: bool = False
    # names columns with media as JSON: '{"image": "images"}'; prompts say <image> where one goes
    multimodal_keys: str | None = None

    @property
    def template_arguments(self) -> dict[str, Any]:
        """Of well-formed --apply-chat-template-kwargs."""
        return dict(json.loads(self.apply_chat_template_kwargs or "{}"))

    @property
    def image_key(self) -> str | None:
        """The column with images, of well-formed multimodal keys."""
        return (
            None if self.multimodal_keys is None else str(json.loads(self.multimodal_keys)["image"])
        )
