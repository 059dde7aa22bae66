"""Answers in OpenAI's form of a chat completion, whole and as a stream of chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.core.protocols import Tokenizer
from pipeline.core.types import Completion
from stages.gateway.chat import ChatRequest

THINK = "<think>"


class ToolCall(NamedTuple):
    name: str
    arguments: str  # JSON


class ParsedAnswer(NamedTuple):
    """An answer's text, taken apart by the model's own format."""

    content: str
    calls: Sequence[ToolCall] = ()


# (what the assistant said with its special tokens, the tools it was given) -> its parts
ParseAnswer = Callable[[str, Sequence[Mapping[str, Any]]], ParsedAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the answers to a request."""

    message: dict[str, Any]  # the assistant's, as the agent is given it
    finish_reason: str
    completion: Completion


def read_choice(
    completion: Completion,
    request: ChatRequest,
    tokenizer: Tokenizer,
    parse: ParseAnswer | None = None,
    prompt_end: str = "",
) -> Choice:
    """`parse`: how the model writes calls of tools; None: it is not known, and they stay text.
    `prompt_end`: the last text of the prompt, which may open the thinking."""
    ids = list(completion.token_ids)
    if isinstance(completion.matched, int) and ids and ids[-1] == completion.matched:
        ids.pop()
    reason = "length" if completion.finish_reason == "length" else "stop"
    message: dict[str, Any] = {"role": "assistant"}
    text = tokenizer.decode(ids, skip_special_tokens=not (request.calls_tools and parse))
    text = _upto_stop(text, completion)
    parsed = ParsedAnswer(text)
    if request.calls_tools and parse is not None:
        opened = THINK if prompt_end.rstrip().endswith(THINK) else ""
        parsed = parse(opened + text, request.tools)
        parsed = parsed._replace(content=parsed.content.removeprefix(opened))
    message["content"] = parsed.content or (None if parsed.calls else "")
    if parsed.calls:
        message["tool_calls"] = [_call(call) for call in parsed.calls]
        reason = "tool_calls" if reason == "stop" else reason
    return Choice(message=message, finish_reason=reason, completion=completion)


def chat_answer(
    choices: Sequence[Choice], request: ChatRequest, num_prompt: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """OpenAI's `chat.completion`."""
    num_sampled = sum(len(c.completion.token_ids) for c in choices)
    cached = choices[0].completion.cached_tokens
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [
            {
                "index": i,
                "message": {"refusal": None, **choice.message},
                "finish_reason": choice.finish_reason,
                "logprobs": _logprobs(choice, tokenizer) if request.logprobs else None,
                **_matched_stop(choice),
            }
            for i, choice in enumerate(choices)
        ],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_sampled,
            "total_tokens": num_prompt + num_sampled,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def chat_chunks(answer: Mapping[str, Any], *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """OpenAI's `chat.completion.chunk`s of an answer. It is known whole when the first is sent:
    a token that is given away cannot be taken back, and engines are asked again where one dies."""
    frame = {
        "id": answer["id"],
        "object": "chat.completion.chunk",
        "created": answer["created"],
        "model": answer["model"],
    }
    last = {"usage": None} if include_usage else {}
    for choice in answer["choices"]:
        for delta, more in _deltas(choice):
            part = {"index": choice["index"], "delta": delta, "finish_reason": None, **more}
            yield {**frame, "choices": [part], **last}
    if include_usage:
        yield {**frame, "choices": [], "usage": answer["usage"]}


def _deltas(choice: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    message, logprobs = choice["message"], {"logprobs": choice["logprobs"]}
    yield {"role": "assistant", "content": ""}, {"logprobs": None}
    yield {"content": message.get("content") or ""}, logprobs
    for i, call in enumerate(message.get("tool_calls") or ()):
        yield {"tool_calls": [{"index": i, **call}]}, {"logprobs": None}
    yield {}, {"logprobs": None, "finish_reason": choice["finish_reason"]}


def _matched_stop(choice: Choice) -> dict[str, str]:
    """SGLang's word for the stop text that ended an answer; OpenAI has none."""
    matched = choice.completion.matched
    return {"matched_stop": matched} if isinstance(matched, str) else {}


def _upto_stop(text: str, completion: Completion) -> str:
    """Without the text that ended it, which is not the answer's."""
    matched = completion.matched
    return text.rpartition(matched)[0] if isinstance(matched, str) and matched in text else text


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _logprobs(choice: Choice, tokenizer: Tokenizer) -> dict[str, Any]:
    completion = choice.completion
    texts = [tokenizer.decode([token], skip_special_tokens=False) for token in completion.token_ids]
    return {
        "content": [
            {"token": text, "logprob": log_prob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, log_prob in zip(texts, completion.log_probs, strict=True)
        ],
        "refusal": None,
    }
