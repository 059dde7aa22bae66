"""An engine's processes as copies of its server.

SGLang starts its scheduler and its detokenizer as new interpreters, because no fork survives CUDA;
each imports torch and all of SGLang anew, which on a CPU is most of what a start takes. Without
CUDA they can begin as copies of the server, which has imported everything and computed nothing."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable


def fork_instead_of_spawn() -> None:
    """Called before SGLang chooses how its processes start. It may be called more than once."""
    if not isinstance(multiprocessing.set_start_method, _Forks):
        multiprocessing.set_start_method = _Forks(multiprocessing.set_start_method)


class _Forks:
    """`multiprocessing.set_start_method` which makes of "spawn" a "fork", where that is safe."""

    def __init__(self, original: Callable[..., None]) -> None:
        self._original = original

    def __call__(self, method: str | None, force: bool = False) -> None:
        # a copy has one thread: what others held locked stays locked in it
        if method == "spawn" and threading.active_count() == 1:
            method = "fork"
        self._original(method, force=force)
