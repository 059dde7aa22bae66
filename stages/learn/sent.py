"""Which rank sends which weights in a push. Pure."""

from __future__ import annotations

from collections.abc import Sequence

# (a weight's name that all ranks agree on, the Hugging Face names of what it is made of)
Named = tuple[str, tuple[str, ...]]


def deal(held: Sequence[Sequence[Named]]) -> list[tuple[str, ...]]:
    """Rank -> names of the weights that it sends, in its order, out of those that it could send:
    every Hugging Face name once, by the first rank that has it. So tied embeddings, which the first
    and the last pipeline stage hold, are sent by the first.

    Raises AssertionError for a weight that is made of some that are sent and some that are not."""
    taken: set[str] = set()
    dealt = []
    for weights in held:
        own = []
        for name, hf_names in weights:
            new = [n for n in hf_names if n not in taken]
            assert len(new) in (0, len(hf_names)), f"{name}: of {hf_names} only {new} are new"
            if new:
                taken.update(new)
                own.append(name)
        dealt.append(tuple(own))
    return dealt
