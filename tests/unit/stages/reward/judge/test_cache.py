"""Judgements outlive the process, are bounded, and a broken file costs nothing but itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from stages.reward.judge.cache import FILE_NAME, JudgementCache, digest


def test_the_digest_knows_content_and_not_order() -> None:
    assert digest({"a": 1, "b": "ü\ud800"}) == digest({"b": "ü\ud800", "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


async def test_another_process_finds_what_was_judged(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    await JudgementCache(file, 9).put("k", {"score": 1.0})
    with file.open("a") as lines:
        lines.write('{"key": "torn", "rew')
    assert await JudgementCache(file, 9).get("k") == {"score": 1.0}
    assert await JudgementCache(file, 9).get("torn") is None


async def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = JudgementCache(None, 2)
    await cache.put("a", 1.0)
    await cache.put("b", 2.0)
    await cache.get("a")
    await cache.put("c", 3.0)
    assert [await cache.get(key) for key in "abc"] == [1.0, None, 3.0]


async def test_the_file_is_bounded_and_two_writers_lose_nothing(tmp_path: Path) -> None:
    file, size = tmp_path / FILE_NAME, 8
    one, other = JudgementCache(file, size), JudgementCache(file, size)
    await one.get("")
    await other.get("")
    for number in range(100):
        await asyncio.gather(one.put(f"a{number}", 0.0), other.put(f"b{number}", 1.0))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        # each writer knows of its own lines only
        assert len(lines) <= 4 * size + 2
        assert {f"a{number}", f"b{number}"} <= {line["key"] for line in lines}


async def test_without_room_nothing_is_kept(tmp_path: Path) -> None:
    cache = JudgementCache(tmp_path / FILE_NAME, 0)
    await cache.put("a", 1.0)
    assert await cache.get("a") is None and not (tmp_path / FILE_NAME).exists()


async def test_a_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = JudgementCache(tmp_path / "nowhere" / FILE_NAME, 9)
    for key in "ab":
        await cache.put(key, 1.0)
    assert [await cache.get(key) for key in "ab"] == [1.0, 1.0]
    assert len(caplog.records) == 1 and "in memory only" in caplog.text
