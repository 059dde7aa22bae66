"""A whole chat as one sequence to train on: which of its text the assistant said.

This is found with the chat template alone, whatever the model: renderings of the chat up to a turn
differ by that turn. Some templates rewrite earlier turns when a new one comes (Qwen3 drops their
thinking); so every turn is shown as it was when it was the newest, as a session of several turns
has it, which never renders again what was sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.core.errors import ConfigError, DataError

if TYPE_CHECKING:  # the command line reads LossMaskType, and loads no numpy
    from pipeline.core.protocols import Tokenizer

# slime's names. qwen and qwen3: every turn as it was when it was the newest; qwen3_5: as the
# template renders the whole chat; distill_qwen: the last message, as it is written
LossMaskType = Literal["qwen", "qwen3", "qwen3_5", "distill_qwen"]
Messages = Sequence[Mapping[str, Any]]
# the text of a chat; with the flag, up to where the assistant begins to speak
Render = Callable[[Messages, bool], str]

STEP_MASK = "step_loss_mask"  # slime's key of a message: 0 leaves the turn untrained
_STAND_IN = "Slipstream-stand-in-for-a-turn"  # in place of a turn, to see where it ends


class Piece(NamedTuple):
    """Consecutive text of one kind."""

    text: str
    trained: bool
    # of a turn that the template closes with nothing (GLM): what follows is what ends it
    unclosed: bool = False


class Turn(NamedTuple):
    """One assistant turn as it was when it was the newest."""

    place: int  # of its message
    context: str  # what came since the turn before it
    opening: str  # how the assistant's turns begin
    said: str  # by the assistant, with what closes the turn


def render_with(tokenizer: Tokenizer, tools: Any = None, **template: Any) -> Render:
    """Renders by the tokenizer's chat template, which is also given the values of `template`."""
    given = {**template, **({"tools": tools} if tools else {})}

    def render(messages: Messages, prompt: bool) -> str:
        chat = [{k: v for k, v in m.items() if k != STEP_MASK} for m in messages]
        return str(
            tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=prompt, **given
            )
        )

    return render


def pieces_of(messages: Messages, render: Render, kind: LossMaskType = "qwen") -> tuple[Piece, ...]:
    """The chat's text, cut where training begins and ends. Raises DataError for a chat of which no
    assistant turn can be trained, or whose template hides part of a turn that should be."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise DataError("no message is of role assistant: there is nothing to train on")
    if last == 0:
        raise DataError("the assistant speaks first: expected a message ahead of its first turn")
    if not any(_is_trained(m) for m in messages):
        raise DataError(f"every assistant turn has {STEP_MASK} 0: there is nothing to train on")
    if kind == "distill_qwen":
        return _last_message(messages, render)
    chat = RenderedChat(messages, render)
    turns = list(_turns(chat))
    tail = text_since(chat, len(messages), turns[-1].place)
    whole = _in_whole(chat.upto(len(messages)), turns, tail)
    if kind == "qwen3_5":
        turns = whole
    else:
        for turn in turns:
            _check_shown(messages[turn.place], turn)
    parts = []
    unclosed = _may_be_unclosed(turns[-1], messages) and not chat.closing(turns[0].place)
    for turn in turns:
        trained = _is_trained(messages[turn.place])
        parts.append(Piece(turn.context + turn.opening, False))
        parts.append(Piece(turn.said, trained, trained and unclosed))
    return tuple(piece for piece in (*parts, Piece(tail, False)) if piece.text)


def encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(token ids, loss mask). Pieces are encoded one by one, as prompt and answer are when the
    model speaks. The token after an unclosed piece is trained too: the next turn's first, or the
    tokenizer's eos token."""
    tokens: list[int] = []
    mask: list[int] = []
    unclosed = False
    for piece in pieces:
        ids = tokenizer.encode(piece.text, add_special_tokens=False)
        tokens += ids
        mask += [int(piece.trained)] * len(ids)
        if unclosed and ids:
            mask[-len(ids)] = 1
        unclosed = piece.unclosed
    if unclosed:
        tokens.append(eos_of(tokenizer))
        mask.append(1)
    return tokens, mask


def eos_of(tokenizer: Tokenizer) -> int:
    """Raises ConfigError where there is none."""
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        raise ConfigError(
            "the tokenizer has no eos token, so no answer can be taught to end; set eos_token in"
            " its config"
        )
    return int(eos)


class RenderedChat:
    """Renderings of a chat's beginnings, each made once: there are many rows to judge."""

    def __init__(self, messages: Messages, render: Render) -> None:
        self.messages, self._render = messages, render
        self._known: dict[tuple[int, bool], str] = {}

    def upto(self, end: int, *, prompt: bool = False) -> str:
        if (end, prompt) not in self._known:
            self._known[end, prompt] = self._render(self.messages[:end], prompt)
        return self._known[end, prompt]

    def behind(self, place: int, end: int, *, prompt: bool = False) -> str:
        """What the chat up to message `end` has behind the words of message `place`."""
        stand_in = {**_without_words(self.messages[place]), "content": _STAND_IN}
        chat = [*self.messages[:place], stand_in, *self.messages[place + 1 : end]]
        return _behind_stand_in(self._render(chat, prompt))

    def closing(self, place: int) -> str:
        """What the template puts behind the words of an assistant."""
        chat = [*self.messages[:place], {"role": "assistant", "content": _STAND_IN}]
        return _behind_stand_in(self._render(chat, False))


def _is_trained(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get(STEP_MASK, 1) == 1


def _turns(chat: RenderedChat) -> Iterator[Turn]:
    before: Turn | None = None
    for i, message in enumerate(chat.messages):
        if message["role"] != "assistant":
            continue
        context = text_since(chat, i, None if before is None else before.place)
        asked, answered = chat.upto(i, prompt=True), chat.upto(i + 1)
        at, shared = len(chat.upto(i)), len(shared_beginning(asked, answered))
        if shared < at:
            raise DataError(
                f"message {i}: the chat template shows what comes before this turn differently"
                " once it is there (of two assistant messages in a row, make one)"
            )
        before = Turn(i, context, answered[at:shared], answered[shared:])
        yield before


def text_since(chat: RenderedChat, end: int, place: int | None, *, prompt: bool = False) -> str:
    """The text of the chat up to message `end` that comes after the assistant's turn at `place`;
    with `prompt`, up to where the assistant begins to speak. Raises DataError where the template
    does not show where the turn ends."""
    now = chat.upto(end, prompt=prompt)
    if place is None:
        return now
    then = chat.upto(place + 1)
    if now.startswith(then):
        return now[len(then) :]
    # the turn is shown otherwise now that it is not the newest: where does it end?
    closing = chat.behind(place, place + 1)
    rest = chat.behind(place, end, prompt=prompt)
    if not rest.startswith(closing):
        raise DataError(
            f"message {place}: the chat template closes this turn differently when another"
            " follows, so that its end cannot be told"
        )
    return rest[len(closing) :]


def _may_be_unclosed(turn: Turn, messages: Messages) -> bool:
    """False where the template is seen to put something behind the words of the turn."""
    message = messages[turn.place]
    content = message.get("content")
    if message.get("tool_calls") or not isinstance(content, str):
        return True
    return turn.said.endswith(content.rstrip()[-8:])


def _without_words(message: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in message.items() if k in ("role", "tool_calls")}


def _behind_stand_in(text: str) -> str:
    _, found, behind = text.rpartition(_STAND_IN)
    if not found:
        raise DataError("the chat template does not show what an assistant says as it is written")
    return behind


def _in_whole(whole: str, turns: Sequence[Turn], tail: str) -> list[Turn]:
    """The turns as the rendering of the whole chat has them. What is between them must be the same
    in it."""
    found: list[Turn] = []
    at = 0
    for turn in turns:
        start = whole.find(turn.context or turn.opening, at)
        if start < 0 or (not found and start):
            raise DataError(
                f"message {turn.place}: what comes before it is not the same in the rendering of"
                " the whole chat"
            )
        if found:
            found[-1] = found[-1]._replace(said=whole[at:start])
        at = start + len(turn.context)
        opening = shared_beginning(turn.opening, whole[at:])
        found.append(turn._replace(opening=opening))
        at += len(opening)
    if not whole.endswith(tail) or len(whole) - len(tail) < at:
        raise DataError("the rendering of the whole chat ends otherwise than its last messages")
    found[-1] = found[-1]._replace(said=whole[at : len(whole) - len(tail)])
    return found


def _check_shown(message: Mapping[str, Any], turn: Turn) -> None:
    """Raises DataError for a trained turn of which the template leaves a part out."""
    if not _is_trained(message):
        return
    shown = "".join((turn.opening + turn.said).split())
    for key in ("content", "reasoning_content"):
        for text in _texts(message.get(key)):
            if "".join(text.split()) not in shown:
                raise DataError(
                    f"message {turn.place}: the chat template leaves out a part of its {key}:"
                    f" {text[:60]!r}... (templates of distilled reasoners hide the thinking:"
                    " --loss-mask-type distill_qwen trains the last message as it is written)"
                )


def shared_beginning(one: str, other: str) -> str:
    """The beginning that both texts have."""
    if other.startswith(one):
        return one
    pairs = zip(one, other, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return one[:length]


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if isinstance(part.get("text"), str)]


def _last_message(messages: Messages, render: Render) -> tuple[Piece, ...]:
    """All of the last message, including the thinking that templates of distilled reasoners
    hide."""
    *earlier, last = messages
    content = last.get("content")
    if not isinstance(content, str) or not _is_trained(last):
        raise DataError(
            f"--loss-mask-type distill_qwen trains the last message: it is of role"
            f" {last['role']!r}; expected an assistant's text"
        )
    asked = render(earlier, True)
    closing = RenderedChat(messages, render).closing(len(earlier))
    # a prompt that opens the thinking already
    shared = next(n for n in range(len(content), -1, -1) if asked.endswith(content[:n]))
    return Piece(asked, False), Piece(content[shared:] + closing, True, not closing)
