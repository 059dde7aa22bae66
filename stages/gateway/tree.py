"""What one session has said and heard, as an append-only tree of tokens.

A request is a way through the tree from its root: it follows what is known as far as the tokens are
the same, and begins a branch where they differ. What was sampled is a node of its own, with its
log-probs and versions, and is never encoded again; two answers to one request are two nodes, even
with the same tokens, for each was drawn for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from pipeline.core.types import Completion, VersionSpan

NO_VERSION = -1  # of a token that was not sampled


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """Consecutive tokens of one kind. Its end is a place of the tree: that never changes, though a
    branch inside of it may move its beginning to a node of its own."""

    parent: Node | None
    tokens: list[int]
    log_probs: list[float] | None = None  # of sampled tokens
    versions: list[int] | None = None  # the policy version of each
    # routed experts [m, layers, top-k] of the tokens of the way from the root from `experts_start`
    experts: np.ndarray | None = None
    experts_start: int = 0
    finish_reason: str = ""  # of an answer, which ends with this node
    matched: int | str | None = None  # the token or the text at which it stopped
    order: int = -1  # of an answer: 0, 1, ... as they came
    withdrawn: bool = False  # an answer that never reached the agent
    children: list[Node] = field(default_factory=list)

    @property
    def is_sampled(self) -> bool:
        return self.log_probs is not None

    @property
    def is_answer(self) -> bool:
        return self.order >= 0 and not self.withdrawn

    @property
    def way(self) -> list[Node]:
        """The nodes from the root to this one."""
        out: list[Node] = []
        node: Node | None = self
        while node is not None:
            out.append(node)
            node = node.parent
        return out[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """The way from the root to one leaf, the newest answer on it."""

    leaf: Node
    num_prompt: int  # tokens before the first sampled one
    tokens: list[int]
    # of the tokens behind the prompt:
    loss_mask: list[int]  # 1: sampled, and trained with this branch
    log_probs: list[float]  # 0.0 of what was not sampled
    spans: list[VersionSpan]


class TokenTree:
    def __init__(self) -> None:
        self.root = Node(parent=None, tokens=[])
        self.num_answers = 0
        self.num_branches = 0  # ways that left a known one

    def place(self, tokens: Sequence[int], behind: Node | None = None) -> Node:
        """The place of the tree that these tokens lead to, from the root or from `behind`, which
        is grown where they leave what is known."""
        node, known = _follow(behind or self.root, list(tokens))
        rest = list(tokens[known:])
        if not rest:
            return node
        self.num_branches += bool(node.children)
        return _grown(node, Node(parent=node, tokens=rest))

    def answer(self, place: Node, completion: Completion) -> Node:
        """Keeps what was sampled at a place; returns the place behind it."""
        versions = [NO_VERSION] * len(completion.token_ids)
        for version, start, end in completion.spans:
            versions[start:end] = [version] * (end - start)
        node = Node(
            parent=place,
            tokens=list(completion.token_ids),
            log_probs=list(completion.log_probs),
            versions=versions,
            experts=completion.routed_experts,
            experts_start=completion.experts_start,
            finish_reason=completion.finish_reason,
            matched=completion.matched,
            order=self.num_answers,
        )
        self.num_answers += 1
        return _grown(place, node)

    def branches(self) -> list[Branch]:
        """One of every answer that no other follows, oldest first. A token on several of them is
        trained with the first alone."""
        leaves = sorted(_leaves(self.root), key=lambda node: node.order)
        taken: set[int] = set()
        return [_branch(leaf, taken) for leaf in leaves]


def tokens_of(place: Node) -> list[int]:
    """All tokens from the root to a place."""
    return [token for node in place.way for token in node.tokens]


def num_known_experts(place: Node) -> int:
    """Of how many tokens from the root on the routed experts are known."""
    known = 0
    for node in place.way:
        if node.experts is not None and node.experts_start <= known:
            known = max(known, node.experts_start + len(node.experts))
    return known


def _grown(parent: Node, child: Node) -> Node:
    parent.children.append(child)
    return child


def _follow(start: Node, tokens: list[int]) -> tuple[Node, int]:
    """The place to which the tokens lead through what is known, as far as they do, and how many
    these are. A node that only shares its beginning is cut in two."""
    longest, place, cut_at = 0, start, 0
    open_ways = [(start, 0)]
    while open_ways:
        node, at = open_ways.pop()
        for child in node.children:
            if at == len(tokens) or child.withdrawn or child.tokens[0] != tokens[at]:
                continue
            shared = _num_shared(child.tokens, tokens, at)
            whole = shared == len(child.tokens)
            if whole:
                open_ways.append((child, at + shared))
            if at + shared > longest:
                longest, place, cut_at = at + shared, child, 0 if whole else shared
    return (_cut(place, cut_at) if cut_at else place), longest


def _num_shared(have: list[int], tokens: list[int], at: int) -> int:
    limit = min(len(have), len(tokens) - at)
    if have[:limit] == tokens[at : at + limit]:
        return limit
    return next(i for i in range(limit) if have[i] != tokens[at + i])


def _cut(node: Node, length: int) -> Node:
    """A new node with the first `length` tokens, of which `node` is then the rest."""
    parent = node.parent
    assert parent is not None and 0 < length < len(node.tokens)
    head = Node(parent=parent, tokens=node.tokens[:length], children=[node])
    if node.log_probs is not None and node.versions is not None:
        head.log_probs, node.log_probs = node.log_probs[:length], node.log_probs[length:]
        head.versions, node.versions = node.versions[:length], node.versions[length:]
    node.tokens, node.parent = node.tokens[length:], head
    parent.children[parent.children.index(node)] = head
    return head


def _leaves(root: Node) -> Iterator[Node]:
    """Answers with no answer behind them."""
    nodes, followed = [root], set()
    for node in nodes:  # parents before their children
        nodes.extend(node.children)
    for node in reversed(nodes):
        has_later = id(node) in followed
        if node.is_answer and not has_later:
            yield node
        if (node.is_answer or has_later) and node.parent is not None:
            followed.add(id(node.parent))


def _branch(leaf: Node, taken: set[int]) -> Branch:
    way = leaf.way
    first = next(i for i, node in enumerate(way) if node.is_sampled)
    num_prompt = sum(len(node.tokens) for node in way[:first])
    tokens = [token for node in way for token in node.tokens]
    mask: list[int] = []
    log_probs: list[float] = []
    versions: list[int] = []
    for node in way[first:]:
        n = len(node.tokens)
        mask += [int(node.is_sampled and id(node) not in taken)] * n
        log_probs += node.log_probs or [0.0] * n
        versions += node.versions or [NO_VERSION] * n
        if node.is_sampled:
            taken.add(id(node))
    return Branch(
        leaf=leaf,
        num_prompt=num_prompt,
        tokens=tokens,
        loss_mask=mask,
        log_probs=log_probs,
        spans=_spans(versions),
    )


def _spans(versions: Sequence[int]) -> list[VersionSpan]:
    out: list[VersionSpan] = []
    at = 0
    for version, run in groupby(versions):
        end = at + len(list(run))
        if version != NO_VERSION:
            out.append(VersionSpan(version, at, end))
        at = end
    return out
