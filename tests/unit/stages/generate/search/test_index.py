"""What is found, in which order, and what is kept of it."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from stages.generate.search.corpus import Corpus
from stages.generate.search.index import CACHED_QUERIES, SearchIndex

TEXTS = [
    "Baikal\nBaikal is the deepest lake",
    "Seas\nthe lake near the sea, a lake of salt",
    "Alps\n7 peaks of rock",
    "Twin\nrock and snow",
    "Twin\nrock and snow",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"contents": t}) for t in TEXTS))
    return Corpus(tmp_path)


def ids(index: SearchIndex, *queries: str, count: int = 3) -> list[list[str]]:
    return [[passage["id"] for passage, _ in each] for each in index.search(queries, count)]


def bm25(query: list[str], texts: list[str], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """The formula, written down plainly. Its stop words are only those of TEXTS."""
    stop = {"is", "the", "of", "and", "a"}
    docs = [[w for w in re.findall(r"\w+", t.lower()) if w not in stop] for t in texts]
    mean = sum(map(len, docs)) / len(docs)
    scores = []
    for doc in docs:
        count, score = Counter(doc), 0.0
        for word in query:
            have = sum(word in other for other in docs)
            idf = math.log(1 + (len(docs) - have + 0.5) / (have + 0.5))
            norm = k1 * (1 - b + b * len(doc) / mean)
            score += idf * count[word] / (count[word] + norm)
        scores.append(score)
    return scores


def test_scores_are_those_of_the_formula(corpus: Corpus) -> None:
    (found,) = SearchIndex(corpus).search(["The lake, and rock!"], 5)
    expected = bm25(["lake", "rock"], TEXTS)
    assert {p["id"]: s for p, s in found} == pytest.approx(
        {str(i): s for i, s in enumerate(expected) if s}, rel=1e-5
    )
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)


def test_equals_come_in_the_order_of_the_corpus(corpus: Corpus) -> None:
    assert ids(SearchIndex(corpus), "snow", count=5) == [["3", "4"]]


def test_what_shares_no_word_is_not_found(corpus: Corpus) -> None:
    index = SearchIndex(corpus)
    assert ids(index, "volcano", "", "the of", "7") == [[], [], [], ["2"]]
    assert len(ids(index, "lake rock", count=1)[0]) == 1


def test_a_query_is_looked_up_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    index, asked = SearchIndex(corpus), list[str]()
    look_up = index._look_up

    def counted(queries: list[str], count: int) -> object:
        asked.extend(queries)
        return look_up(queries, count)

    monkeypatch.setattr(index, "_look_up", counted)
    first = index.search(["lake", "rock", "lake"], 2)
    assert first[0] == first[2] and asked == ["lake", "rock"]
    assert index.search(["rock", "lake"], 2) == [first[1], first[0]]
    assert asked == ["lake", "rock"] and index.num_cached == 2
    index.search(["lake"], 1)
    assert asked[2:] == ["lake"]


def test_the_cache_has_a_size(corpus: Corpus) -> None:
    index = SearchIndex(corpus)
    queries = [f"lake {i}" for i in range(CACHED_QUERIES + 10)]
    assert len(index.search(queries, 1)) == len(queries)
    assert len(index._cache) == CACHED_QUERIES


def test_an_index_is_saved_once_and_only_for_its_corpus(corpus: Corpus, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    first, second = SearchIndex(corpus, saved), SearchIndex(corpus, saved)
    assert (first.was_saved, second.was_saved) == (False, True)
    assert first.search(["lake rock"], 5) == second.search(["lake rock"], 5)
    assert [p.name for p in saved.iterdir()] == [first.path.name] if first.path else False
    (tmp_path / "a.jsonl").write_text(json.dumps({"contents": "Alps\nanother lake"}))
    third = SearchIndex(Corpus(tmp_path), saved)
    assert not third.was_saved and ids(third, "another") == [["0"]]


def test_two_that_save_the_same_are_in_nobodys_way(corpus: Corpus, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    one = SearchIndex(corpus)
    one.path = SearchIndex(corpus, saved).path
    assert one.path is not None
    from stages.generate.search.index import _save

    _save(one._bm25, one.path)
    assert len(list(saved.iterdir())) == 1 and SearchIndex(corpus, saved).was_saved


def test_a_place_where_nothing_can_be_saved(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="say another --index-dir"):
        SearchIndex(corpus, tmp_path / "file" / "saved")


def test_a_corpus_without_words(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"contents": "the\n..."}))
    with pytest.raises(ConfigError, match="1 passages has no word"):
        SearchIndex(Corpus(tmp_path))
