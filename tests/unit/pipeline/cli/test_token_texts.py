"""The text beside a token's id: whose tokenizer, and what where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.cli.token_texts import text_of_tokens
from pipeline.run.rundir import RunDir


def run_with(path: Path, config: str) -> RunDir:
    (path / "config.yaml").write_text(config)
    return RunDir(path)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    tokenizer.save(str(folder / "tokenizer.json"))


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


@pytest.mark.parametrize("place", ["checkpoints", "saved", "began"])
def test_the_runs_own_tokenizer(tmp_path: Path, place: str) -> None:
    tokenizer = byte_level()
    flags = {
        "checkpoints": "",
        "saved": f"- --save {tmp_path}/saved\n",
        "began": f"- --hf-checkpoint {tmp_path}/began\n",
    }
    folder = tmp_path / place
    save(tokenizer, folder if place == "began" else folder / "latest" / "hf")
    text_of, source = text_of_tokens(run_with(tmp_path, flags[place]))
    assert text_of is not None and source.startswith(str(folder))
    ids = tokenizer.encode("a \n").ids
    assert [text_of(i) for i in ids] == ["a", " ", "\n"]
    assert text_of(tokenizer.token_to_id("<|im_end|>")) == "<|im_end|>"
    half = tokenizer.encode("é").ids[0]
    assert text_of(half) == tokenizer.id_to_token(half), "a piece of a character has no text"


def test_a_word_that_begins_with_a_space_shows_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"\u2581two": 0, "ly": 1}, "ly"))
    tokenizer.decoder = decoders.Metaspace()
    save(tokenizer, tmp_path / "checkpoints" / "latest" / "hf")
    text_of, _ = text_of_tokens(run_with(tmp_path, ""))
    assert text_of is not None and (text_of(0), text_of(1)) == (" two", "ly")


def test_the_mocks(tmp_path: Path) -> None:
    text_of, source = text_of_tokens(run_with(tmp_path, "- --mock\n"))
    assert text_of is not None and source == "the mock's tokenizer"
    assert (text_of(65), text_of(256)) == ("A", "<think>")


@pytest.mark.parametrize("broken", [False, True])
def test_without_one_it_says_why(tmp_path: Path, broken: bool) -> None:
    if broken:
        save(byte_level(), tmp_path / "m")
        (tmp_path / "m" / "tokenizer.json").write_text("{")
    text_of, source = text_of_tokens(run_with(tmp_path, f"- --hf-checkpoint {tmp_path}/m\n"))
    assert text_of is None and source.startswith("token ids alone: ")
    assert (str(tmp_path / "m") if broken else "no tokenizer on this disk") in source
