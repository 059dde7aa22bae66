"""What an agent names instead of sending it again: the answers of its session."""

from __future__ import annotations

from typing import Any, NamedTuple

from stages.gateway.errors import RequestError

Messages = list[dict[str, Any]]


class _Turn(NamedTuple):
    """What one request added, and after which answer: a chain of them takes memory once."""

    before: str | None
    messages: Messages


class Past:
    """Chats by the id of their last answer."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    def messages(self, answer_id: str | None) -> Messages:
        """The chat up to and with this answer; [] for None. Raises RequestError if there is none
        such."""
        turns = []
        while answer_id is not None:
            turn = self._turns.get(answer_id)
            if turn is None:
                raise RequestError(
                    f"previous_response_id is {answer_id!r:.80}; expected the id of a response of"
                    " this rollout that was made without store: false",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            turns.append(turn.messages)
            answer_id = turn.before
        return [message for messages in reversed(turns) for message in messages]

    def keep(self, answer_id: str, before: str | None, messages: Messages) -> None:
        """`messages`: what the request added, and the model's turn."""
        self._turns[answer_id] = _Turn(before, messages)
