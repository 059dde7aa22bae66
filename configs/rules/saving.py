"""Rules about checkpoints and what is written beside them."""

from __future__ import annotations

import string
from collections.abc import Iterator

from configs.schema import Config

_PLACES = ("checkpoint", "rollout_id")


def saving(config: Config) -> Iterator[str]:
    template = config.run.save_hf
    if template is None:
        return
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        found = [str(error)]
    if not found or set(found) - set(_PLACES):
        yield (
            f"--save-hf {template}: expected {{rollout_id}} or {{checkpoint}} in it, and nothing"
            " else in braces, so that every save has a folder of its own, e.g. hf/{rollout_id};"
            " `none` for no Hugging Face folders"
        )
