"""The texts of a run's token ids, for people to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.command_line.loader import parse_config
from configs.schema import Config
from pipeline.core.errors import SlipstreamError
from pipeline.run.rundir import RunDir
from pipeline.wiring.foreign_flags import FAMILIES

TextOf = Callable[[int], str]
_REPLACEMENT = "\ufffd"  # what a piece of a character decodes to
_WORD_BEGIN = "\u2581"  # how SentencePiece writes the space ahead of a word


def text_of_tokens(run: RunDir) -> tuple[TextOf | None, str]:
    """(the text of a token id, or None where no tokenizer can be loaded; where it is from, or why
    there is none)."""
    try:
        config, _ = parse_config(["--config", str(run.config)], families=FAMILIES)
        if config.run.mock:
            return _of_mock(config), "the mock's tokenizer"
    except (SlipstreamError, OSError) as e:
        return None, f"token ids alone: {e}"
    failures = []
    for folder in _folders(run, config):
        try:
            return _of_folder(folder), str(folder)
        except Exception as e:  # of a library or of a user's own code: ids are still worth showing
            failures.append(f"{folder}: {type(e).__name__}: {e}")
    tried = "; ".join(failures) or f"{run.path} and --hf-checkpoint have no tokenizer on this disk"
    return None, f"token ids alone: {tried}"


def _of_mock(config: Config) -> TextOf:
    from pipeline.wiring.mock import make_tokenizer

    tokenizer = make_tokenizer(config)
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)


def _folders(run: RunDir, config: Config) -> list[Path]:
    """Where a tokenizer may lie: the run's own checkpoint first, then the model that it began
    with."""
    saved = (Path(config.run.save) if config.run.save else run.checkpoints) / "latest" / "hf"
    began = config.model.hf_checkpoint
    folders = [saved, *([Path(began).expanduser()] if began else [])]
    return [folder for folder in folders if (folder / "config.json").is_file()]


def _of_folder(folder: Path) -> TextOf:
    """The folder's tokenizer. Where there is a tokenizer.json it is loaded without transformers,
    which saves seconds."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda t: _text(fast.decode([t], skip_special_tokens=False), fast.id_to_token(t))
    from transformers import AutoTokenizer

    slow: Any = AutoTokenizer.from_pretrained(str(folder))
    return lambda t: _text(slow.decode([t]), slow.convert_ids_to_tokens(t))


def _text(decoded: str, name: str | None) -> str:
    """The text of one id. A piece of a character is written as the vocabulary's name for it."""
    if name is None:
        return decoded
    if not decoded or _REPLACEMENT in decoded:
        return name
    begins_word = name.startswith(_WORD_BEGIN) and not decoded.startswith(" ")
    return f" {decoded}" if begins_word else decoded
