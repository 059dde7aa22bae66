"""/v1/completions, OpenAI's older protocol: a prompt as text or token ids, no chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from stages.gateway.dialect import Dialect, JsonObject, event, openai_error
from stages.gateway.errors import RequestError
from stages.gateway.past import Past
from stages.gateway.protocols import fields
from stages.gateway.protocols.descriptions import COMPLETIONS
from stages.gateway.protocols.turns import number_of

REFUSED = {"echo": "the prompt is not given back", "suffix": "text is not filled in"}
KEPT = ("max_tokens", "model", "n", "stop")
MAX_TOKENS = 16  # OpenAI's, where none are said


class Completions(Dialect):
    path = "/v1/completions"

    def request(self, body: JsonObject, past: Past) -> JsonObject:
        fields.refuse(body, REFUSED)
        if body.get("best_of") not in (None, body.get("n") or 1):
            raise RequestError(
                "best_of is not served: answers are not ranked; ask for n", param="best_of"
            )
        chat = {"prompt": _prompt(body.get("prompt")), "max_tokens": MAX_TOKENS}
        chat |= {name: body[name] for name in KEPT if body.get(name) is not None}
        fields.a_flag(body, "stream")
        fields.an_object(body.get("stream_options") or {}, "stream_options")
        if (top := body.get("logprobs")) is not None:
            if type(top) is not int or top != 0:
                raise fields.wrong("logprobs", top, "0: only the sampled tokens' are known")
            chat["logprobs"] = True
        return chat

    def streams(self, body: JsonObject) -> bool:
        return bool(body.get("stream"))

    def answer(self, chat: Mapping[str, Any], body: JsonObject) -> JsonObject:
        choices = [_choice(choice) for choice in chat["choices"]]
        return {**_head(chat), "choices": choices, "usage": chat["usage"]}

    def events(self, chat: Mapping[str, Any], body: JsonObject) -> Iterator[bytes]:
        for choice in chat["choices"]:
            yield event({**_head(chat), "choices": [_choice(choice)], "usage": None})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event({**_head(chat), "choices": [], "usage": chat["usage"]})
        yield b"data: [DONE]\n\n"

    def error(self, error: RequestError) -> JsonObject:
        return openai_error(error)

    def description(self) -> JsonObject:
        return COMPLETIONS


def _head(chat: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"cmpl-{number_of(chat)}",
        "object": "text_completion",
        "created": chat["created"],
        "model": chat["model"],
    }


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": choice["index"],
        "text": choice["message"]["content"] or "",
        "finish_reason": choice["finish_reason"],
        "logprobs": _logprobs(choice["logprobs"]),
    }


def _logprobs(chat: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The four columns of the older protocol."""
    if chat is None:
        return None
    tokens = [token["token"] for token in chat["content"]]
    return {
        "tokens": tokens,
        "token_logprobs": [token["logprob"] for token in chat["content"]],
        "top_logprobs": None,
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=0)) if tokens else [],
    }


def _prompt(prompt: object) -> str | list[int]:
    """Text or token ids; a batch of one is that one."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return fields.a_name(prompt, "prompt")
    if not isinstance(prompt, list) or not prompt:
        raise fields.wrong("prompt", prompt, "a text, or a list of token ids")
    if any(isinstance(part, str | list) for part in prompt):
        raise RequestError(
            "prompt holds several prompts; expected one, and n for several answers", param="prompt"
        )
    tokens = []
    for at, given in enumerate(prompt):
        token = fields.whole(given)
        if token is None or token < 0:
            raise fields.wrong(f"prompt[{at}]", given, "a token id")
        tokens.append(token)
    return tokens
