"""Who sends which weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.learn.sent import Named, deal

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"


def layer(number: int) -> Named:
    return f"layers.{number}.qkv", tuple(f"model.layers.{number}.{x}" for x in "qkv")


def expert(number: int) -> Named:
    return f"experts.fc1.weight{number}", (f"experts.{number}.gate", f"experts.{number}.up")


def test_tied_embeddings_are_sent_by_the_first_stage() -> None:
    tied = ("model.embed_tokens.weight",)
    held = [[(EMBEDDING, tied), layer(0)], [], [layer(1), (HEAD, tied)], []]
    assert deal(held) == [(EMBEDDING, "layers.0.qkv"), (), ("layers.1.qkv",), ()]


def test_a_head_of_its_own_is_sent_by_the_last_stage() -> None:
    held = [[(EMBEDDING, ("embed",)), layer(0)], [layer(1), (HEAD, ("lm_head",))]]
    assert deal(held)[1] == ("layers.1.qkv", HEAD)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_every_name_is_sent_once_by_one_that_holds_it(
    stages: int, shards: int, each: int, tied: bool
) -> None:
    """Any number of pipeline stages and expert shards: as many senders, and none sends what is
    another's."""
    held: list[list[Named]] = []
    for stage in range(stages):
        ends = [(EMBEDDING, ("embed",))] if stage == 0 else []
        ends += [(HEAD, ("embed" if tied else "head",))] if stage == stages - 1 else []
        dense = [*ends, layer(stage)]
        first = stage * shards * each
        held += [
            [*(dense if shard == 0 else []), *map(expert, range(at, at + each))]
            for shard in range(shards)
            for at in [first + shard * each]
        ]
    dealt = deal(held)
    hf = {name: names for weights in held for name, names in weights}
    sent = [n for names in dealt for name in names for n in hf[name]]
    assert sorted(sent) == sorted({n for weights in held for _, names in weights for n in names})
    assert all(
        {*names} <= {name for name, _ in own} for names, own in zip(dealt, held, strict=True)
    )
    assert all(dealt), "every stage and every shard has a sender"


def test_half_a_weight_cannot_be_sent() -> None:
    with pytest.raises(AssertionError, match="only"):
        deal([[("a", ("x",))], [("b", ("x", "y"))]])
