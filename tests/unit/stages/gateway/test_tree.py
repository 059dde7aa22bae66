"""The tree of tokens: whatever an agent asks and in whatever order, every sampled token is trained
once, at its place, with its own log-prob and version."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.types import Completion, VersionSpan
from stages.gateway.tree import Node, TokenTree, num_known_experts, tokens_of


def answer(*token_ids: int, versions: tuple[int, ...] = (), finish: str = "stop") -> Completion:
    """Tokens of `versions`, one after the other (0 without), each with a log-prob of its own."""
    labels = versions or (0,) * len(token_ids)
    return Completion(
        token_ids=token_ids,
        log_probs=tuple(-0.5 * token - 0.01 * i for i, token in enumerate(token_ids)),
        spans=tuple(VersionSpan(v, i, i + 1) for i, v in enumerate(labels)),
        finish_reason=finish,
    )


def test_a_chat_that_goes_on_is_one_branch() -> None:
    tree = TokenTree()
    first = tree.answer(tree.place([1, 2]), answer(7, 8, versions=(3, 4)))
    second = tree.answer(tree.place([5], behind=first), answer(9, versions=(4,)))
    (branch,) = tree.branches()
    assert branch.leaf is second and branch.num_prompt == 2
    assert branch.tokens == [1, 2, 7, 8, 5, 9]
    assert branch.loss_mask == [1, 1, 0, 1]
    assert branch.spans == [VersionSpan(3, 0, 1), VersionSpan(4, 1, 2), VersionSpan(4, 3, 4)]
    assert tree.num_branches == 0


def test_an_edited_answer_branches_inside_of_it() -> None:
    tree = TokenTree()
    tree.answer(tree.place([1]), answer(7, 8, 9))
    tree.answer(tree.place([1, 7, 8, 4]), answer(6))
    one, other = tree.branches()
    assert (one.tokens, one.loss_mask) == ([1, 7, 8, 9], [1, 1, 1])
    assert (other.tokens, other.loss_mask) == ([1, 7, 8, 4, 6], [0, 0, 0, 1])
    assert other.log_probs[:2] == one.log_probs[:2]  # known, though trained with the first
    assert tree.num_branches == 1


def test_two_answers_to_one_request_are_two_also_with_the_same_tokens() -> None:
    tree = TokenTree()
    place = tree.place([1, 2])
    tree.answer(place, answer(7, 8))
    tree.answer(place, answer(7, 8))
    assert [b.loss_mask for b in tree.branches()] == [[1, 1], [1, 1]]
    assert tree.num_branches == 0  # one request


def test_a_request_without_an_answer_is_no_branch() -> None:
    tree = TokenTree()
    first = tree.answer(tree.place([1]), answer(7))
    tree.place([5, 6], behind=first)
    (branch,) = tree.branches()
    assert branch.tokens == [1, 7]


def test_an_answer_that_never_arrived_is_none() -> None:
    tree = TokenTree()
    tree.answer(tree.place([1]), answer(7)).withdrawn = True
    kept = tree.answer(tree.place([1]), answer(7, 8))
    assert [b.leaf for b in tree.branches()] == [kept]
    assert tree.place([1, 7, 8]) is kept


# what an agent does: ask again from a place it knows (with more), from the tokens of one that is
# cut or edited, or from the very same tokens
Deed = tuple[int, int, list[int], list[int], list[int]]
deeds = st.lists(
    st.tuples(
        st.integers(0, 10),  # which answer it goes on from
        st.integers(0, 12),  # how many of its tokens are kept; beyond the end: all, known by place
        st.lists(st.integers(0, 2), max_size=4),  # what it adds
        st.lists(st.integers(0, 2), min_size=1, max_size=4),  # what is sampled
        st.lists(st.integers(0, 5), min_size=4, max_size=4),  # by which versions
    ),
    min_size=1,
    max_size=14,
)


def played(script: list[Deed]) -> tuple[TokenTree, list[tuple[list[int], Completion, Node]]]:
    tree = TokenTree()
    done: list[tuple[list[int], Completion, Node]] = []
    for start, kept, added, sampled, versions in script:
        behind = done[start % len(done)][2] if done else None
        have = tokens_of(behind) if behind is not None else []
        if behind is None or kept < len(have):
            asked = have[:kept] + (added or [0])
            place = tree.place(asked)
        else:
            asked = have + added
            place = tree.place(added, behind=behind)
        assert tokens_of(place) == asked  # what the engine is asked with
        said = answer(*sampled, versions=tuple(versions[: len(sampled)]))
        done.append((asked, said, tree.answer(place, said)))
    return tree, done


@given(deeds)
def test_every_sampled_token_is_trained_once_and_as_it_was_sampled(script: list[Deed]) -> None:
    tree, done = played(script)
    branches = tree.branches()
    trained = [
        (
            tuple(branch.tokens[: branch.num_prompt + i + 1]),
            branch.log_probs[i],
            next(v for v, start, end in branch.spans if start <= i < end),
        )
        for branch in branches
        for i, mask in enumerate(branch.loss_mask)
        if mask
    ]
    sampled = [
        (tuple(asked + list(said.token_ids[: i + 1])), said.log_probs[i], said.spans[i].version)
        for asked, said, _ in done
        for i in range(len(said.token_ids))
    ]
    assert sorted(trained) == sorted(sampled)


@given(deeds)
def test_branches_end_with_answers_and_leave_none_out(script: list[Deed]) -> None:
    tree, done = played(script)
    branches = tree.branches()
    for branch in branches:
        n = len(branch.tokens) - branch.num_prompt
        assert n == len(branch.loss_mask) == len(branch.log_probs)
        assert branch.loss_mask[-1] == 1 and branch.num_prompt > 0
        assert branch.tokens == tokens_of(branch.leaf)
    for asked, said, node in done:  # places stay where they are, whatever was cut
        assert tokens_of(node) == asked + list(said.token_ids)
        whole = asked + list(said.token_ids)
        assert any(branch.tokens[: len(whole)] == whole for branch in branches)


def test_a_long_session_is_walked_without_recursion() -> None:
    tree = TokenTree()
    node = None
    for _ in range(3000):
        node = tree.answer(tree.place([1], behind=node), answer(7))
    assert node is not None
    assert tree.place(tokens_of(node)) is node
    assert len(tree.branches()) == 1


def test_experts_are_known_as_far_as_answers_say() -> None:
    import numpy as np

    tree = TokenTree()
    said = answer(7, 8)
    experts = np.zeros((3, 1, 1), np.uint8)  # of [1, 2, 7]: no router has seen the last
    with_experts = Completion(
        token_ids=said.token_ids,
        log_probs=said.log_probs,
        spans=said.spans,
        finish_reason="stop",
        routed_experts=experts,
    )
    node = tree.answer(tree.place([1, 2]), with_experts)
    assert num_known_experts(node) == 3
    assert num_known_experts(tree.place([1, 2, 7, 5])) == 0  # inside of the answer: asked again
