"""What a POST to /generate asks for, read from SGLang's native payload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_MAX_NEW_TOKENS = 128  # SGLang's

SERVED = {
    "text": "a string or a list of strings",
    "input_ids": "a list of token ids or a list of such lists",
    "sampling_params": "an object, or one for each prompt",
    "image_data": "an image or a list of images (data-URLs, base64 or files)",
    "rid": "a string, or one for each prompt",
    "return_logprob": "true or false; log-probs are in the answer either way",
    "return_text_in_logprobs": "true or false",
    "return_routed_experts": "true or false",
    "routed_experts_start_len": "a number",
    "routing_key": "a string: requests with the same one go to the same engine",
    "session_id": "the same",
}
# The run decides these itself, or they only concern an engine's own log.
LEFT_TO_THE_RUN = {
    "extra_key",
    "priority",
    "log_metrics",
    "no_logs",
    "custom_labels",
    "modalities",
    "data_parallel_rank",
    "routed_dp_rank",
}


class PayloadError(Exception):
    """The payload cannot be served: says what was given and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeRequest:
    """One prompt of a payload."""

    prompt: str | Sequence[int]
    sampling_params: Mapping[str, Any]
    images: Sequence[Any] = ()
    rid: str | None = None
    routing_key: str | None = None
    known_experts: int = 0
    with_texts: bool = False  # the text of every token beside its log-prob


@dataclass(frozen=True, slots=True, kw_only=True)
class NativePayload:
    """All prompts of a payload; answered by a list where it was a list, or asked for n > 1."""

    requests: Sequence[NativeRequest]
    as_list: bool


def read_payload(payload: Any) -> NativePayload:
    """Raises PayloadError."""
    if not isinstance(payload, dict):
        raise PayloadError(f"the payload is {_said(payload)}; expected a JSON object")
    _refuse_what_is_not_served(payload)
    prompts, many = _prompts(payload)
    params = _for_each(payload, "sampling_params", len(prompts), default={})
    rids = _for_each(payload, "rid", len(prompts), default=None)
    images = _images(payload, len(prompts), many)
    requests, times = [], 1
    for prompt, asked, rid, seen in zip(prompts, params, rids, images, strict=True):
        cleaned, times = _sampling_params(asked)
        one = NativeRequest(
            prompt=prompt,
            sampling_params=cleaned,
            images=seen,
            rid=_typed("rid", rid, str),
            routing_key=_typed("routing_key", payload.get("routing_key"), str)
            or _typed("session_id", payload.get("session_id"), str),
            known_experts=_typed(
                "routed_experts_start_len", payload.get("routed_experts_start_len"), int
            )
            or 0,
            with_texts=bool(payload.get("return_text_in_logprobs")),
        )
        requests += [one] * times
    return NativePayload(requests=requests, as_list=many or times > 1)


def _refuse_what_is_not_served(payload: Mapping[str, Any]) -> None:
    for name, value in payload.items():
        if name in SERVED or name in LEFT_TO_THE_RUN or value in (-1, None):
            continue
        if not value and name != "logprob_start_len":  # there, 0 asks for the whole prompt's
            continue
        raise PayloadError(
            f"{name}: {_said(value)} is not served here; expected one of {', '.join(SERVED)}"
        )


def _prompts(payload: Mapping[str, Any]) -> tuple[list[str | list[int]], bool]:
    text, ids = payload.get("text"), payload.get("input_ids")
    if (text is None) == (ids is None):
        given = "both" if text is not None else f"neither (keys: {', '.join(payload) or 'none'})"
        raise PayloadError(f"{given} of text and input_ids given; expected exactly one")
    if isinstance(text, str):
        return [text], False
    if isinstance(text, list) and text and all(isinstance(t, str) for t in text):
        return text, True
    if isinstance(ids, list) and _are_ids(ids):
        return [ids], False
    if isinstance(ids, list) and ids and all(map(_are_ids, ids)):
        return ids, True
    name, value = ("text", text) if text is not None else ("input_ids", ids)
    raise PayloadError(f"{name} is {_said(value)}; expected {SERVED[name]}")


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and token >= 0 for token in value)
    )


def _for_each(payload: Mapping[str, Any], name: str, number: int, default: Any) -> list[Any]:
    value = payload.get(name)
    if value is None:
        return [default] * number
    if not isinstance(value, list):
        return [value] * number
    if len(value) != number:
        raise PayloadError(f"{name} has {len(value)} entries for {number} prompts")
    return value


def _images(payload: Mapping[str, Any], number: int, many: bool) -> list[list[Any]]:
    given = payload.get("image_data")
    if given is None or given == []:
        return [[] for _ in range(number)]
    if not many:
        return [given if isinstance(given, list) else [given]]
    if not isinstance(given, list) or len(given) != number:
        raise PayloadError(f"image_data is {_said(given)}; expected one entry for each prompt")
    return [each if isinstance(each, list) else [each] if each else [] for each in given]


def _sampling_params(given: Any) -> tuple[dict[str, Any], int]:
    """Without what is not set, and how many answers are asked for."""
    if not isinstance(given, dict):
        raise PayloadError(
            f"sampling_params is {_said(given)}; expected {SERVED['sampling_params']}"
        )
    params = {name: value for name, value in given.items() if value is not None}
    times = params.pop("n", 1)
    if type(times) is not int or times < 1:
        raise PayloadError(f"sampling_params.n is {_said(times)}; expected a number of at least 1")
    limit = params.setdefault("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    if type(limit) is not int or limit < 1:
        raise PayloadError(
            f"sampling_params.max_new_tokens is {_said(limit)}; expected a number of at least 1"
        )
    return params, times


def _typed(name: str, value: Any, kind: type) -> Any:
    if value is not None and not isinstance(value, kind):
        raise PayloadError(f"{name} is {_said(value)}; expected {SERVED[name]}")
    return value


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
