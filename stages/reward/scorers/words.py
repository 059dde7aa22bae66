"""Answers that are words: the same text, or how many words are shared."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.core.labels import accepted_answers

# `a` is an article where a word follows; alone, or before a letter, it is an answer (vitamin A)
_ARTICLE = re.compile(r"\b(?:an|the|a(?=\s+\w\w))\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})


def exact_match(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 when response and label (one of its answers) are the same text but for white space around
    them, else 0.0.

    No label: ValueError.
    """
    return float(response.strip() in (answer.strip() for answer in accepted_answers(label)))


def f1(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """The harmonic mean of precision and recall of the response's words against the label's (the
    best of its answers), each word as often as it stands there: SQuAD's F1 (Rajpurkar et al. 2016,
    arXiv 1606.05250), in lower case, without punctuation and articles. Yes, no and noanswer are
    right as a whole or not at all, as in HotpotQA's (Yang et al. 2018, arXiv 1809.09600).

    No label: ValueError.
    """
    return max(shared_words(response, answer)[0] for answer in accepted_answers(label))


def shared_words(response: str, answer: str) -> tuple[float, float, float]:
    """(F1, precision, recall) of `f1`, against one answer."""
    said, truth = _plain(response), _plain(answer)
    if said != truth and not _ALL_OR_NOTHING.isdisjoint((said, truth)):
        return 0.0, 0.0, 0.0
    words, wanted = said.split(), truth.split()
    shared = (Counter(words) & Counter(wanted)).total()
    if not shared:
        return 0.0, 0.0, 0.0
    f1 = 2 * shared / (len(words) + len(wanted))
    return f1, shared / len(words), shared / len(wanted)


def _plain(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def uniform(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """A random number in [0, 1) that depends on the sample only: for benchmarks and null
    experiments."""
    return random.Random(f"{metadata.get('__index__')}:{response}").random()
