"""A trained model that answers with transformers' own generation, printed as it comes. Imports
torch, and is imported only for whoever talks to a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from pipeline.core.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from pipeline.cli.chat import Manner

Messages = Sequence[dict[str, str]]


class Speaker:
    """`converses`: prompts are chats, rendered with the tokenizer's template."""

    def __init__(self, folder: Path, manner: Manner, *, device: str, seed: int | None) -> None:
        self._tokenizer, self._model = _load(folder, device)
        template = bool(self._tokenizer.chat_template)
        self.converses = template if manner.chat_template is None else manner.chat_template
        if self.converses and not template:
            raise ConfigError(f"{folder}: its tokenizer has no chat template; --no-chat-template")
        self._manner = manner
        if seed is not None:
            torch.manual_seed(seed)

    def answer(self, asked: str | Messages) -> str:
        """Prints the answer as it is generated, and returns all of it.

        Raises DataError where no room is left for one."""
        prompt = self._encode(asked)
        room = self._model.config.get_text_config().max_position_embeddings - len(prompt)
        if room < 1:
            raise DataError(
                f"the conversation of {len(prompt)} tokens fills the model's context; begin"
                " another one (in a chat: /new)"
            )
        inputs = torch.tensor([prompt], device=self._model.device)
        streamer = transformers.TextStreamer(
            self._tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        with torch.inference_mode():
            out = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=self._settings(min(self._manner.max_new_tokens, room)),
                streamer=streamer,
                # only who stops at strings may name a tokenizer
                **({"tokenizer": self._tokenizer} if self._manner.stop else {}),
            )
        return str(self._tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))

    def _encode(self, asked: str | Messages) -> list[int]:
        if isinstance(asked, str):
            return list(self._tokenizer.encode(asked, add_special_tokens=False))
        system = self._manner.system_prompt
        messages = [{"role": "system", "content": system}, *asked] if system else list(asked)
        return list(
            self._tokenizer.apply_chat_template(
                messages,
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
                **self._manner.template_arguments,
            )
        )

    def _settings(self, max_new_tokens: int) -> Any:
        """All settings of generation: one that is left out would be taken from the checkpoint's
        generation_config, which the engines do not follow."""
        manner, own = self._manner, self._model.generation_config
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        stops = {*ends, self._tokenizer.eos_token_id, *manner.stop_token_ids} - {None}
        sampled: dict[str, Any] = {}
        if manner.temperature > 0:
            sampled = {"temperature": manner.temperature, "top_p": manner.top_p}
            sampled["top_k"] = max(manner.top_k, 0)  # 0: all
        return transformers.GenerationConfig(
            do_sample=manner.temperature > 0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stops) or None,
            pad_token_id=next(iter(sorted(stops)), 0),
            stop_strings=list(manner.stop) or None,
            **sampled,
        )


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        sees = getattr(config, "vision_config", None) is not None
        maker: Any = (
            transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        )
        model = maker.from_pretrained(folder, dtype="auto" if device == "cuda" else torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {error}") from error
    return tokenizer, model.to(device).eval()
