"""BM25 over a corpus (Robertson and Zaragoza, 2009; scores as Lucene has them), by `bm25s`.

An index is saved under the digest of its corpus, and used again as long as that is the same."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from stages.generate.search.corpus import Corpus, Passage

# numbers and names of one letter are worth a search
_WORDS = {"token_pattern": r"(?u)\b\w+\b", "stopwords": "english", "show_progress": False}
_FORMAT = "1"  # changes with the way words are taken apart
CACHED_QUERIES = 4096

Found = tuple[Passage, float]


class SearchIndex:
    """`search` may be called by one thread at a time."""

    def __init__(self, corpus: Corpus, saved: Path | None = None) -> None:
        """`saved`: the folder of saved indexes; None keeps it in memory."""
        self.corpus = corpus
        self.was_saved = False
        bm25s = _import_bm25s()
        name = f"{corpus.digest[:32]}-{_FORMAT}-{bm25s.__version__}"
        self.path = saved / name if saved else None
        if self.path is not None and self.path.is_dir():
            self._bm25: Any = bm25s.BM25.load(self.path, mmap=True)
            self.was_saved = True
        else:
            self._bm25 = self._made(bm25s)
            if self.path is not None:
                _save(self._bm25, self.path)
        self._tokenize = bm25s.tokenize
        self._cache: OrderedDict[tuple[str, int], list[Found]] = OrderedDict()
        self.num_cached = 0  # queries that were answered out of the cache

    def search(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        """For every query up to `count` passages that share a word with it and their scores, the
        best first; of equals the earlier one."""
        known = {query: self._cached(query, count) for query in dict.fromkeys(queries)}
        new = [query for query, found in known.items() if found is None]
        if new:
            known |= zip(new, self._look_up(new, count), strict=True)
        for query in known:
            self._cache[query, count] = known[query] or []
        while len(self._cache) > CACHED_QUERIES:
            self._cache.popitem(last=False)
        return [known[query] or [] for query in queries]

    def _cached(self, query: str, count: int) -> list[Found] | None:
        found = self._cache.pop((query, count), None)  # and in again, as the newest
        self.num_cached += found is not None
        return found

    def _look_up(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        passages = self.corpus.passages
        places, scores = self._bm25.retrieve(
            self._tokenize(list(queries), return_ids=False, **_WORDS),
            k=min(count, len(passages)),
            show_progress=False,
            backend_selection="numpy",
        )
        return [
            [
                (passages[place], score)
                for score, place in sorted(
                    zip(row_scores.tolist(), row.tolist(), strict=True),
                    key=lambda pair: (-pair[0], pair[1]),
                )
                if score > 0
            ]
            for row, row_scores in zip(places, scores, strict=True)
        ]

    def _made(self, bm25s: Any) -> Any:
        bm25 = bm25s.BM25()
        texts = [passage["contents"] for passage in self.corpus.passages]
        words = bm25s.tokenize(texts, **_WORDS)
        if not words.vocab:
            raise ConfigError(f"the corpus of {len(texts)} passages has no word to search for")
        bm25.index(words, show_progress=False)
        return bm25


def _save(bm25: Any, path: Path) -> None:
    """Whole, or not at all: others may look for it, or save the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=path.parent))
    except OSError as error:
        raise ConfigError(
            f"the index cannot be saved in {path.parent} ({error}): say another --index-dir"
        ) from error
    try:
        bm25.save(part, show_progress=False)
        with contextlib.suppress(OSError):  # another process was faster
            part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ConfigError(
            f"search needs the package bm25s ({error}): pip install 'slipstream[search]'"
        ) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG
    return bm25s
