"""What a request is refused with: an HTTP status and OpenAI's words for it."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is not answered. `kind` and `code` are OpenAI's `type` and `code`."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class NoRoomError(RequestError):
    """The chat has no room for an answer: what trains it is truncated here."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="messages", code="context_length_exceeded")


class UnknownTokenError(RequestError):
    status, kind = 401, "authentication_error"


class ForeignSessionError(RequestError):
    status, kind = 403, "permission_error"


class TooLargeError(RequestError):
    status = 413


class TooManyError(RequestError):
    status, kind = 429, "rate_limit_error"


class UnavailableError(RequestError):
    """The engines did not answer."""

    status, kind = 503, "server_error"
