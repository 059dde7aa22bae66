"""The passages of a folder: what a search can find.

FILE.jsonl has one passage a line, {"contents": "TITLE\\ntext"} as Search-R1's corpora have it, or
{"title": ..., "text": ...}; what else stands in a line is handed out with it. FILE.txt and FILE.md
are cut at blank lines into passages of up to `PASSAGE_WORDS` words, titled by the file's name, or
in Markdown by the heading above."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import DataError

PASSAGE_WORDS = 100  # Search-R1's passages of Wikipedia have as many
SUFFIXES = (".jsonl", ".md", ".txt")
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")

Passage = dict[str, Any]  # has "id" and "contents": the title, a line break, the text


class Corpus:
    """`passages` in the order of the files' names; `digest` changes with any byte or name."""

    def __init__(self, folder: Path) -> None:
        """Reads all of it. Raises DataError for a folder without passages, or a line that is
        none."""
        files = _files(folder)
        digest = hashlib.sha256()
        self.passages: list[Passage] = []
        for path in files:
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
            for passage in _lines(path, text) if path.suffix == ".jsonl" else _cut(path, text):
                passage.setdefault("id", str(len(self.passages)))
                self.passages.append(passage)
        self.digest = digest.hexdigest()
        if not self.passages:
            raise DataError(f"{folder}: its {len(files)} files hold no passage")


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of {', '.join(SUFFIXES)} files")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise DataError(f"{folder}: no {', '.join(SUFFIXES)} file is in it")
    return found


def _lines(path: Path, text: str) -> Iterator[Passage]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not valid JSON: {error}") from None
        if isinstance(said, dict) and "contents" not in said and isinstance(said.get("text"), str):
            said["contents"] = f"{said.get('title') or path.stem}\n{said['text']}"
        if not isinstance(said, dict) or not isinstance(said.get("contents"), str):
            raise DataError(
                f'{path}:{number}: expected {{"contents": "TITLE\\ntext"}} or {{"title": "...",'
                f' "text": "..."}}, got {line[:80]!r}'
            )
        yield said


def _cut(path: Path, text: str) -> Iterator[Passage]:
    title, words = path.stem, list[str]()
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip().split("\n")
        heading = _HEADING.match(lines[0]) if path.suffix == ".md" else None
        if heading:
            yield from _passages(title, words)
            title, words, lines = heading[1], [], lines[1:]
        more = " ".join(lines).split()
        if len(words) + len(more) > PASSAGE_WORDS:
            yield from _passages(title, words)
            words = []
        words += more
    yield from _passages(title, words)


def _passages(title: str, words: list[str]) -> Iterator[Passage]:
    for start in range(0, len(words), PASSAGE_WORDS):
        yield {"contents": f"{title}\n{' '.join(words[start : start + PASSAGE_WORDS])}"}
