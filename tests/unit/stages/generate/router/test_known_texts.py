"""Conversations in text keep the tokens that were sampled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.generate.router.known_texts import KnownTexts


def encode(text: str) -> list[int]:
    return list(text.encode())


def known(*texts: str, **limits: int) -> KnownTexts:
    """Every text is one token, its place and a thousand."""
    out = KnownTexts(encode, **limits)
    for place, text in enumerate(texts):
        out.remember(text, [1000 + place])
    return out


def test_the_longest_known_beginning_keeps_its_tokens() -> None:
    texts = known("a", "ab", "abd", "b")
    assert texts.tokens_of("abc") == [1001, 99]
    assert texts.tokens_of("abd") == [1002]
    assert texts.tokens_of("c") == [99]


def test_of_two_answers_with_one_text_the_later_counts() -> None:
    texts = known("a", "b")
    texts.remember("a", [7])
    assert texts.tokens_of("a") == [7]


def test_the_oldest_are_forgotten_and_those_asked_for_are_not() -> None:
    texts = known("a", "b", max_texts=2)
    assert texts.tokens_of("a") == [1000]
    texts.remember("c", [7])
    assert texts.tokens_of("b") == [98] and texts.tokens_of("a") == [1000]
    texts = known("aa", "bb", "cc", max_characters=4)
    assert texts.tokens_of("aa") == [97, 97] and texts.tokens_of("cc") == [1002]


@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=12), st.text("ab", max_size=8))
def test_it_is_the_longest_of_all(texts: list[str], text: str) -> None:
    kept = {one: [1000 + i] for i, one in enumerate(texts)}
    best = max((one for one in kept if text.startswith(one)), key=len, default="")
    expected = [*kept.get(best, []), *encode(text[len(best) :])]
    assert known(*texts).tokens_of(text) == expected
