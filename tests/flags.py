"""Command lines of tests: some flags that many share, and what one of them says otherwise."""

from __future__ import annotations

from collections.abc import Sequence


def later_wins(words: Sequence[str]) -> list[str]:
    """`words` without the flags that come again further on. (On a real command line a flag counts
    once; --config and --eval-prompt-data may come several times.)"""
    flags: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not flags:
            flags.append([word])
        else:
            flags[-1].append(word)
    last = {_name(flag): index for index, flag in enumerate(flags)}
    return [
        word
        for index, flag in enumerate(flags)
        if last[_name(flag)] == index or _name(flag) in ("config", "eval-prompt-data")
        for word in flag
    ]


def _name(flag: Sequence[str]) -> str:
    return flag[0].partition("=")[0].removeprefix("--").removeprefix("no-")
