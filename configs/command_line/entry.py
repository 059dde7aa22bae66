"""The command line's front door: help on stdout, one message and the error's exit code on a
mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from configs.command_line.families import FlagFamily
from configs.command_line.loader import load_config
from configs.command_line.preset_files import split_words
from configs.schema import Config
from pipeline.core.errors import SlipstreamError
from pipeline.core.version import __version__


def parse_or_exit(argv: Sequence[str], prog: str, families: Iterable[FlagFamily] = ()) -> Config:
    """The configuration that `argv` asks for.

    Ends the process for --help and --version (0) and for a mistake (2), with no traceback.
    """
    families = tuple(families)
    try:
        page = help_page(argv, prog, families)
        if page is None:
            return load_config(argv, families)
    except SlipstreamError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    try:
        print(page, end="", flush=True)
    except BrokenPipeError:
        # `--help | head`: the reader has seen enough; nothing must be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def help_page(argv: Sequence[str], prog: str, families: Sequence[FlagFamily]) -> str | None:
    """The page that `argv` asks for, if any: --version, --help, or --help-FAMILY [WORD ...]."""
    from configs.command_line.help import family_help, own_help

    asked = {given.name: given.values for given in split_words(argv)}
    if "version" in asked:
        return f"slipstream {__version__}\n"
    if "help" in asked:
        return own_help(prog, families)
    for family in families:
        if f"help-{family.section}" in asked:
            return family_help(family, asked[f"help-{family.section}"])
    return None
