"""Checks one row of a file: whether its fields are there, and whether they can be stored and shown
to a model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.schema import DataConfig
from pipeline.core.errors import DataError
from pipeline.core.images import to_data_url
from stages.source.raw import RawRow, without_padding
from stages.source.rows import Messages, Row

_SKIP = "--skip-bad-rows skips and counts such rows"
# what JSON has not (dates, bytes), what UTF-8 has not (half a surrogate pair), endless nesting
_UNKEPT = (TypeError, ValueError, RecursionError)


def check_row(raw: RawRow, config: DataConfig, folder: Path | None = None) -> Row:
    """The row, well-formed. Raises DataError naming where it is, what was found and what was
    expected."""
    if raw.error:
        raise DataError(f"{raw.where} {raw.error}; expected {_expected(config)} ({_SKIP})")
    if not isinstance(raw.value, dict):
        raise DataError(
            f"{raw.where} is a {_kind(raw.value)}; expected {_expected(config)} ({_SKIP})"
        )
    row = raw.value
    if config.input_key not in row:
        raise _missing(raw.where, row, config.input_key, "--input-key")
    if config.label_key is not None and config.label_key not in row:
        raise _missing(raw.where, row, config.label_key, "--label-key")
    label = row[config.label_key] if config.label_key is not None else None
    try:
        _json_text(label)
    except _UNKEPT as error:
        raise DataError(
            f"{raw.where}: the label in {config.label_key!r} cannot be kept as JSON: {error}; store"
            " it as text"
        ) from error
    return Row(
        where=raw.where,
        prompt=_check_prompt(raw, config.input_key, row[config.input_key]),
        label=label,
        metadata=_parsed(raw.where, config.metadata_key, row.get(config.metadata_key), dict) or {},
        tools=_tools(raw, config.tool_key, row.get(config.tool_key)),
        images=_images(raw.where, config.image_key, row, folder),
    )


def _images(
    where: str, key: str | None, row: Mapping[str, Any], folder: Path | None
) -> tuple[str, ...]:
    """The row's images as data-URLs. Files are looked for beside the prompt file."""
    if key is None or row.get(key) is None:
        return ()
    given = row[key] if isinstance(row[key], list | tuple) else [row[key]]
    try:
        return tuple(to_data_url(image, folder) for image in given)
    except (ValueError, OSError) as error:
        raise DataError(f"{where}: {key!r}: {error}") from error


def _tools(raw: RawRow, key: str, value: Any) -> list[Any] | None:
    tools = _parsed(raw.where, key, value, list)
    # a list of the file's own is padded, one written as text says what it means
    return without_padding(tools) if raw.padded and isinstance(value, list) else tools


def _check_prompt(raw: RawRow, key: str, prompt: Any) -> str | Messages:
    try:
        _json_text(prompt)
    except _UNKEPT as error:
        raise DataError(
            f"{raw.where}: {key!r} cannot be kept as JSON: {error}; expected text or a list of chat"
            " messages"
        ) from error
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt:
        return [
            _check_message(raw, f"message {place} of {key!r}", message)
            for place, message in enumerate(prompt)
        ]
    found = f"an empty {_kind(prompt)}" if isinstance(prompt, str | list) else f"a {_kind(prompt)}"
    raise DataError(f"{raw.where}: {key!r} is {found}; expected text or a list of chat messages")


def _check_message(raw: RawRow, what: str, message: Any) -> dict[str, Any]:
    """Checks one chat message. Its content must be there in any case: it is null where the message
    calls tools instead of speaking."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError(
            f"{raw.where}: {what} is {message!r:.80}; expected {{'role': ..., 'content': ...}}"
        )
    if raw.padded:
        message = without_padding(message)
    content = message.get("content")
    if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
        raise DataError(
            f"{raw.where}: the content of {what} is {_kind(content)}; expected text, a list of"
            " parts, or null beside tool_calls"
        )
    return {**message, "content": content}


def _parsed(where: str, key: str, value: Any, kind: type) -> Any:
    """An optional JSON column, given as a value or (as Parquet files often have it) as JSON
    text."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(
                f"{where}: {key!r} is text that is not JSON ({reason}); expected a JSON"
                f" {_NAMES[kind]}"
            ) from error
    if not isinstance(value, kind):
        raise DataError(f"{where}: {key!r} is a {_kind(value)}; expected a JSON {_NAMES[kind]}")
    try:
        _json_text(value)
    except _UNKEPT as error:
        raise DataError(f"{where}: {key!r} cannot be kept as JSON: {error}") from error
    return value


def _json_text(value: Any) -> bytes:
    """The value as JSON text. Raises TypeError for what JSON does not have (dates, bytes) and
    ValueError for what UTF-8 does not have (half a surrogate pair)."""
    return json.dumps(value, ensure_ascii=False).encode()


_NAMES: dict[type, str] = {
    dict: "object",
    list: "list",
    str: "text",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _expected(config: DataConfig) -> str:
    keys = [config.input_key] + ([config.label_key] if config.label_key else [])
    return f"a JSON object with {' and '.join(map(repr, keys))}"


def _missing(where: str, row: Mapping[str, Any], key: str, flag: str) -> DataError:
    close = difflib.get_close_matches(key, list(row), n=1)
    hint = f"; did you mean {flag} {close[0]}?" if close else f"; set {flag}"
    return DataError(
        f"{where} has no {key!r}: it has {', '.join(map(repr, row)) or 'no keys'}{hint}"
    )
