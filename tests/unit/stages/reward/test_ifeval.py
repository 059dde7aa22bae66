"""Each of IFEval's instructions, followed and not; the ids are those of the paper's data."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stages.reward.scorers.ifeval import CHECKS, ifeval
from stages.reward.scorers.ifeval.text import capital_words, sentences

KEYWORD = "keywords:frequency"
LETTER = "keywords:letter_frequency"
WORDS, SENTENCES = "length_constraints:number_words", "length_constraints:number_sentences"
PARAGRAPHS = "length_constraints:number_paragraphs"
FIRST = "length_constraints:nth_paragraph_first_word"
CAPITALS = "change_case:capital_word_frequency"
HIGHLIGHTS = "detectable_format:number_highlighted_sections"
SECTIONS, JSON = "detectable_format:multiple_sections", "detectable_format:json_format"
BULLETS, TITLE = "detectable_format:number_bullet_lists", "detectable_format:title"
POSTSCRIPT, TWO = "detectable_content:postscript", "combination:two_responses"
LESS, LEAST = "less than", "at least"

CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("keywords:existence", {"keywords": ["Cat", "dog"]}, "A cat and DOGS", True),
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A cat", False),
    ("keywords:existence", {"keywords": ["c++"]}, "in C++ it is", True),
    (KEYWORD, {"keyword": "no", "frequency": 2, "relation": LEAST}, "No, nothing", True),
    (KEYWORD, {"keyword": "no", "frequency": 2, "relation": LESS}, "No, nothing", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Concatenate", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "The CAT.", False),
    (LETTER, {"letter": "n", "let_frequency": 3, "let_relation": LEAST}, "Nanny", True),
    (LETTER, {"letter": "n", "let_frequency": 3, "let_relation": LESS}, "Nanny", False),
    (SENTENCES, {"num_sentences": 3, "relation": LEAST}, "Hm. Dr. A. Who? It is 3.5 m!", True),
    (SENTENCES, {"num_sentences": 3, "relation": LESS}, "One. Two. Three.", False),
    (WORDS, {"num_words": 4, "relation": LEAST}, "It's a dog", True),  # It, s, a, dog
    (WORDS, {"num_words": 3, "relation": LESS}, "one two three", False),
    (PARAGRAPHS, {"num_paragraphs": 2}, "a\n***\nb", True),
    (PARAGRAPHS, {"num_paragraphs": 2}, "***\na *** b\n***", True),
    (PARAGRAPHS, {"num_paragraphs": 2}, "a *** *** b", False),
    (PARAGRAPHS, {"num_paragraphs": 2}, "a\n\nb", False),
    (FIRST, {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Yes"}, 'a\n\n"yes, b', True),
    (FIRST, {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "yes"}, "yes\n\nno", False),
    (FIRST, {"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "a"}, "a\n\nb", False),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b]", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and (b)", False),
    (POSTSCRIPT, {"postscript_marker": "P.S."}, "Bye.\np. s. more", True),
    (POSTSCRIPT, {"postscript_marker": "P.P.S"}, "Bye.\nP.S. more", False),
    (BULLETS, {"num_bullets": 2}, "* one\n  - two\n**bold**", True),
    (BULLETS, {"num_bullets": 2}, "* one\n* two\n* three", False),
    ("detectable_format:constrained_response", {}, "Well: My answer is no.", True),
    ("detectable_format:constrained_response", {}, "my answer is no", False),
    (HIGHLIGHTS, {"num_highlights": 2}, "*one* and *two*", True),
    (HIGHLIGHTS, {"num_highlights": 1}, "* one\n* *", False),
    (
        SECTIONS,
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        True,
    ),
    (SECTIONS, {"section_spliter": "SECTION", "num_sections": 2}, "Section 1\nSECTION 2", False),
    (JSON, {}, '```JSON\n{"a": [1]}\n```', True),
    (JSON, {}, 'Here: {"a": 1}', False),
    (TITLE, {}, "<<Joy>>\nText", True),
    (TITLE, {}, "<< >>", False),
    (TWO, {}, "One\n******\nTwo", True),
    (TWO, {}, "One ****** One", False),
    (TWO, {}, "One ****** Two ****** Three", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, " say IT. It.", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Sure: Say it.", False),
    ("startend:end_checker", {"end_phrase": "The end."}, '"So it was. the END."', True),
    ("startend:end_checker", {"end_phrase": "The end."}, "The end. Really", False),
    ("startend:quotation", {}, ' "All of it" ', True),
    ("startend:quotation", {}, '"', False),
    (CAPITALS, {"capital_frequency": 2, "capital_relation": LEAST}, "WELL-KNOWN, I say", True),
    (CAPITALS, {"capital_frequency": 1, "capital_relation": LESS}, "Not ONE", False),
    ("punctuation:no_comma", {}, "None here.", True),
    ("punctuation:no_comma", {}, "One, here", False),
    ("language:response_language", {"language": "de"}, "de Es regnet", True),
    ("language:response_language", {"language": "de"}, "en It rains", False),
    ("language:response_language", {"language": "de"}, "12345", True),
    ("change_case:english_capital", {}, "EN ALL OF IT", True),
    ("change_case:english_capital", {}, "EN Not all", False),
    ("change_case:english_lowercase", {}, "en all of it", True),
    ("change_case:english_lowercase", {}, "de alles", False),
]


@pytest.fixture(autouse=True)
def langdetect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that reads the language from the first two letters."""
    fake: Any = ModuleType("langdetect")
    fake.LangDetectException = type("LangDetectException", (Exception,), {})
    fake.DetectorFactory = SimpleNamespace(seed=None)

    def detect(text: str) -> str:
        if text.isdigit():
            raise fake.LangDetectException
        return text[:2].lower()

    fake.detect = detect
    monkeypatch.setitem(sys.modules, "langdetect", fake)


@pytest.mark.parametrize(("name", "arguments", "response", "followed"), CASES)
def test_an_instruction_is_followed_or_not(
    name: str, arguments: dict[str, Any], response: str, followed: bool
) -> None:
    # padded as in the data sets that are tables
    padded = {**arguments, "num_words_of_another": None}
    row = {"instruction_id_list": [name], "kwargs": [padded]}
    assert ifeval(response, None, row) == {"score": float(followed), "followed": float(followed)}


def test_every_instruction_of_the_paper_is_tried_both_ways() -> None:
    assert len(CHECKS) == 25
    for wanted in (True, False):
        assert {name for name, _, _, followed in CASES if followed is wanted} == CHECKS.keys()


def test_all_must_be_followed_and_the_share_is_told() -> None:
    names = ["punctuation:no_comma", "detectable_format:title", "startend:quotation"]
    row = {"instruction_id_list": names, "kwargs": [{}, {}, {}]}
    assert ifeval("<<T>> x", None, row) == {"score": 0.0, "followed": 2 / 3}
    assert ifeval("<think>a, b</think><<T>>", None, row)["followed"] == 2 / 3
    assert ifeval(" ", None, row) == {"score": 0.0, "followed": 0.0}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "no instruction_id_list"),
        ({"instruction_id_list": ["count:words"]}, "'count:words', which is none of IFEval's"),
        ({"instruction_id_list": [WORDS], "kwargs": [{"num_words": 3}]}, "no 'relation'"),
        (
            {"instruction_id_list": [WORDS], "kwargs": [{"num_words": 3, "relation": "about"}]},
            "the relation 'about'",
        ),
    ],
)
def test_a_row_that_cannot_be_checked_is_an_error_and_no_zero(
    row: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ifeval("a", None, row)


def test_sentences_and_capital_words() -> None:
    assert sentences('He said "No." Then, e.g. at 3 p.m. he left. 1. First… Why?!') == [
        'He said "No."',
        "Then, e.g. at 3 p.m. he left.",
        "1. First…",
        "Why?!",
    ]
    assert len(sentences("I said no. It was 3 p.m. She, Mr. B. Lee and I. \u3042\u3002\u3044")) == 5
    assert capital_words("A WELL-KNOWN NASA's Test X1 42") == ["A", "WELL-KNOWN", "NASA", "X1"]
