"""How IFEval's instructions count: words, sentences, languages."""

from __future__ import annotations

import re

# behind these no sentence ends
_TITLES = frozenset({"mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "e.g", "i.e"})
# behind these one may: where a capital follows
_ABBREVIATIONS = frozenset({"etc", "inc", "ltd", "corp", "a.m", "p.m", "u.s", "u.k", "approx"})
_CLOSING = "\"'\u201d\u2019)\\]"  # quotes and brackets behind the end of a sentence
_WIDE = "\u3002\uff01\uff1f"  # Chinese and Japanese ends, which no white space follows
_END = re.compile(rf"[.!?\u2026{_WIDE}]+[{_CLOSING}]*(?=\s|$)|[{_WIDE}]")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Cut at full stops, question and exclamation marks before white space; not behind
    abbreviations, initials and the numbers of lists. IFEval itself has NLTK's trained splitter cut,
    with which this agrees on plain prose."""
    found, begin = [], 0
    for mark in _END.finditer(text):
        if mark[0] == "." and _goes_on(text[begin : mark.start()], text[mark.end() :][:2]):
            continue
        found.append(text[begin : mark.end()])
        begin = mark.end()
    return [piece.strip() for piece in (*found, text[begin:]) if piece.strip()]


def capital_words(text: str) -> list[str]:
    """Words of capitals only; what hyphens join is one word."""
    return [word for word in re.findall(r"\w+(?:-\w+)*", text) if word.isupper()]


def is_in_language(text: str, code: str) -> bool:
    """Is the text in the language of this ISO 639-1 code (zh-cn, zh-tw for Chinese), as langdetect
    (Nakatani 2010) judges? Text in which it finds no language (only digits, say) is taken for any,
    as in IFEval.

    ModuleNotFoundError where langdetect is not installed."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it samples: the same answer must get the same reward
    try:
        return bool(detect(text) == code)
    except LangDetectException:
        return True


def _goes_on(before: str, after: str) -> bool:
    """Does the sentence go on behind this full stop? `after`: the white space and the letter that
    follow."""
    last = before.split()[-1] if before.split() else ""
    word = last.strip("\"'([*\u201c\u2018")
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    is_number_of_list = word.isdigit() and before.strip() == last
    is_short = word.lower() in _ABBREVIATIONS and after.strip().islower()
    return word.lower() in _TITLES or is_short or is_initial or is_number_of_list
