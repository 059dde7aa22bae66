"""Rules about what prompts are made into."""

from __future__ import annotations

import json
from collections.abc import Iterator

from configs.schema import Config


def template(config: Config) -> Iterator[str]:
    given = config.data.apply_chat_template_kwargs
    if given is None:
        return
    try:
        arguments = json.loads(given)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        yield (
            f"--apply-chat-template-kwargs {given}: expected a JSON object, quoted for the shell,"
            " e.g. '{\"enable_thinking\": false}'"
        )
