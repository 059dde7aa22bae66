"""Which known place of the tree a chat goes on from: told by its messages, not by their text in a
template, so that the tokens that were sampled need not be found again."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from stages.gateway.tree import Node

Message = Mapping[str, Any]


class Known(NamedTuple):
    """The longest beginning of a chat whose tokens are known."""

    num_messages: int  # the last of them is the assistant's
    place: Node  # behind the assistant's words


class KnownText(NamedTuple):
    """The longest beginning of a prompt without messages whose tokens are known."""

    text: str
    place: Node


class History:
    """Every answer of a session, by the chat that it ended, or by the text."""

    def __init__(self) -> None:
        self._places: defaultdict[bytes, list[tuple[Node, Message]]] = defaultdict(list)
        self._texts: list[KnownText] = []

    def remember(
        self, messages: Sequence[Message], tools: Sequence[Any], said: Message, place: Node
    ) -> None:
        """`said`: the assistant's message as the agent was given it; `place`: behind it."""
        *_, key = _keys([*messages, said], tools)
        self._places[key].append((place, said))

    def find(self, messages: Sequence[Message], tools: Sequence[Any]) -> Known | None:
        """None where nothing of it is known. Of answers in the same words, to one chat, it is the
        one with the same ids of its calls; else the newest."""
        keys = list(_keys(messages, tools))
        for i in range(len(messages), 0, -1):
            message = messages[i - 1]
            if message["role"] != "assistant" or keys[i - 1] not in self._places:
                continue
            alike = [(n, m) for n, m in self._places[keys[i - 1]] if not n.withdrawn]
            if alike:
                same = [n for n, m in alike if _call_ids(m) == _call_ids(message)]
                return Known(i, same[-1] if same else alike[-1][0])
        return None

    def remember_text(self, text: str, place: Node) -> None:
        """`text`: the prompt and what was answered, as the agent was given it."""
        self._texts.append(KnownText(text, place))

    def find_text(self, prompt: str) -> KnownText | None:
        """Of several in the same words it is the newest."""
        known = [k for k in self._texts if prompt.startswith(k.text) and not k.place.withdrawn]
        return max(reversed(known), key=lambda k: len(k.text), default=None)


def _keys(messages: Sequence[Message], tools: Sequence[Any]) -> list[bytes]:
    """One for every beginning of the chat."""
    digest = hashlib.blake2b(orjson.dumps(tools, option=orjson.OPT_SORT_KEYS), digest_size=16)
    out = []
    for message in messages:
        digest.update(orjson.dumps(_essence(message), option=orjson.OPT_SORT_KEYS))
        out.append(digest.digest())
    return out


def _essence(message: Message) -> list[Any]:
    """What agents send back as they were given it: they give calls other ids, leave out the
    thinking, and strip what the assistant said."""
    content = message.get("content") or ""
    if message["role"] != "assistant":
        return [message["role"], content]
    calls = [
        [call["function"]["name"], call["function"]["arguments"]]
        for call in message.get("tool_calls") or ()
    ]
    return ["assistant", content.strip(), calls]


def _call_ids(message: Message) -> list[Any]:
    return [call.get("id") for call in message.get("tool_calls") or ()]
