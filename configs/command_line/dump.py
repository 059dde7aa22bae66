"""The resolved configuration as a preset: `--config runs/NAME/config.yaml` gives the same Config
again."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterator
from typing import Any

from configs.command_line.families import PREFIXES
from configs.flags import own_flags, section_classes, words_of
from configs.schema import Config
from configs.schema.marks import SECRET_OPTIONS


def dump_config(config: Config) -> str:
    """YAML text with every flag of ours that has a value, and the families' flags that the user
    gave.

    Left out is only what is unset by default too (None, no values), and what is secret.
    """
    lines = [
        "# Slipstream: the resolved configuration of a run. Run it again: train_async.py --config"
        " THIS_FILE"
    ]
    for section, cls in section_classes().items():
        lines += ["", f"# {' '.join((cls.__doc__ or section).split())}"]
        part = getattr(config, section)
        for flag in own_flags().values():
            if flag.section != section or flag.secret:
                continue
            value = getattr(part, flag.field)
            if flag.default not in (None, ()) or value != flag.default:
                lines.append(_item(flag.name, value))
    for section, prefix in PREFIXES.items():
        values = dict(getattr(config, section))
        if section == "sglang":
            values = {name: value for name, value in values.items() if name not in SECRET_OPTIONS}
        if values:
            lines += ["", f"# {section}"]
            lines += [
                _item(prefix + field.replace("_", "-"), value) for field, value in values.items()
            ]
    return "\n".join(lines) + "\n"


def changed_flags(before: str, after: str, *, but: Container[str] = ()) -> list[str]:
    """`--lr 2e-5 (was --lr 1e-5)` of every flag that two texts of `dump_config` say otherwise,
    `but` for some."""
    old, new = _flags_of(before), _flags_of(after)
    return [
        f"{new.get(name, f'--{name} unset')} (was {old.get(name, 'unset')})"
        for name in dict.fromkeys([*new, *old])
        if new.get(name) != old.get(name) and name not in but
    ]


def _flags_of(text: str) -> dict[str, str]:
    """Bare name -> the flag as written."""
    import yaml

    items: list[str] = yaml.safe_load(text) or []
    return {item.split()[0].removeprefix("--").removeprefix("no-"): item for item in items}


def _item(name: str, value: Any) -> str:
    return f"- {_scalar(' '.join(_words(name, value)))}"


def _words(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool) and name in own_flags():
        yield f"--{name}" if value else f"--no-{name}"
        return
    yield f"--{name}"
    yield from map(shlex.quote, [""] if value == () else words_of(value))


def _scalar(text: str) -> str:
    """As a YAML scalar: plain where that means the same, else quoted."""
    if (
        all(c.isprintable() and c.isascii() for c in text)
        and ": " not in text
        and " #" not in text
        and not text.endswith(":")
    ):
        return text
    import yaml

    return str(
        yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True)
    ).strip()
