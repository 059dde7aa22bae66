"""A chat template in Python, in the manner of Qwen's, over bytes and a few control tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from pipeline.core.types import Completion, VersionSpan
from stages.engine.mock_tokenizer import MockTokenizer
from tests.manual_time import ManualTime
from tests.unit.fake_engine import FakeEngineClient

WORDS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")


class ChatML(MockTokenizer):
    """`forgets`: as Qwen3's, it drops the thinking of turns ahead of the last user's message."""

    chat_template = '<tool_call>\\n{"name": ...}'
    eos_token = "<|im_end|>"

    def __init__(self, *, forgets: bool = False, knows_tools: bool = True) -> None:
        super().__init__(WORDS)
        self.eos_token_id = self._ids[self.eos_token]
        self._forgets, self._knows_tools = forgets, knows_tools

    def get_added_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def apply_chat_template(  # type: ignore[override]
        self,
        messages: Sequence[dict[str, Any]],
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        tools: Sequence[Any] = (),
    ) -> Any:
        assert not tokenize
        parts = []
        if tools and self._knows_tools:
            parts.append(f"<|im_start|>tools\n{json.dumps(list(tools))}<|im_end|>\n")
        asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        for place, message in enumerate(messages):
            content = message["content"] or ""
            if self._forgets and place < asked and message["role"] == "assistant":
                content = content.rpartition("</think>")[2].lstrip("\n")
            for call in message.get("tool_calls", ()) if self._knows_tools else ():
                content += f"\n<tool_call>\n{json.dumps(call['function'])}\n</tool_call>"
            parts.append(f"<|im_start|>{message['role']}\n{content}<|im_end|>\n")
        return "".join(parts) + ("<|im_start|>assistant\n" if add_generation_prompt else "")


class Model(FakeEngineClient):
    """Says what it is told to, turn by turn; `<|im_end|>` at the end of a turn ends it."""

    def __init__(self, tokenizer: MockTokenizer, *turns: str, version: int = 0) -> None:
        super().__init__(*(said(tokenizer, t, version + i) for i, t in enumerate(turns)))


def said(tokenizer: MockTokenizer, text: str, version: int = 0) -> Completion:
    ids = tuple(tokenizer.encode(text))
    ended = ids[-1] == tokenizer.eos_token_id
    return Completion(
        token_ids=ids,
        log_probs=tuple(-0.01 * (i + 1) for i in range(len(ids))),
        spans=(VersionSpan(version, 0, len(ids)),),
        finish_reason="stop" if ended else "length",
        matched=ids[-1] if ended else None,
        text=text,
    )


def agent_args(client: FakeEngineClient, tokenizer: Any, **more: Any) -> SimpleNamespace:
    given = {
        "max_turns": 8,
        "context_length": None,
        "time": ManualTime(),
        "tool_call_parser": "auto",
        "tool_timeout_seconds": 5.0,
        "tool_max_output_tokens": 1000,
        **more,
    }
    return SimpleNamespace(engine_client=client, tokenizer=tokenizer, **given)
