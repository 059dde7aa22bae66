"""What is a passage, and whether a folder is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from stages.generate.search.corpus import PASSAGE_WORDS, Corpus


def contents(folder: Path) -> list[str]:
    return [passage["contents"] for passage in Corpus(folder).passages]


def test_lines_of_json_keep_what_they_have(tmp_path: Path) -> None:
    rows = [{"id": "a7", "contents": "Alps\nhigh"}, {"title": "Sea", "text": "wet", "page": 3}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert Corpus(tmp_path).passages == [
        rows[0],
        {"id": "1", "contents": "Sea\nwet", "title": "Sea", "text": "wet", "page": 3},
    ]


def test_text_is_cut_at_blank_lines_and_markdown_at_headings(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("one two\nthree\n\nfour\n")
    (tmp_path / "a.md").write_text("before\n\n# Lakes #\nBaikal\n\nis deep\n\n## Seas\n\nAral")
    assert contents(tmp_path) == [
        "a\nbefore",
        "Lakes\nBaikal is deep",
        "Seas\nAral",
        "notes\none two three four",
    ]


def test_no_passage_is_longer_than_a_passage(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(5 * PASSAGE_WORDS // 2)]
    (tmp_path / "a.txt").write_text("first\n\n" + " ".join(words))
    cut = [text.removeprefix("a\n").split() for text in contents(tmp_path)]
    assert max(map(len, cut)) == PASSAGE_WORDS
    assert [word for words_of_one in cut for word in words_of_one] == ["first", *words]


def test_the_digest_is_of_names_and_bytes_and_of_nothing_hidden(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = Corpus(tmp_path).digest
    (tmp_path / ".search-index").mkdir()
    (tmp_path / ".search-index" / "b.txt").write_text("not a part of it")
    assert Corpus(tmp_path).digest == first
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    second = Corpus(tmp_path).digest
    (tmp_path / "b.txt").write_text("two")
    assert len({first, second, Corpus(tmp_path).digest}) == 3


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"contents": "x"}\n{"contents"', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"content": "x"}', r'a\.jsonl:1: expected .*got \'{"content": "x"}\''),
        ("a.jsonl", b'["x"]', r"a\.jsonl:1: expected"),
        ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8 at byte 3"),
        ("a.txt", b" \n\n ", r"its 1 files hold no passage"),
        ("a.pdf", b"x", r"no \.jsonl, \.md, \.txt file is in it"),
    ],
)
def test_what_is_no_corpus_is_named(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        Corpus(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder of"):
        Corpus(tmp_path / "nowhere")
