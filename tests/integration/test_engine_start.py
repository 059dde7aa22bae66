"""Real SGLang: an engine that does not come up, and what SGLang's own parser says of flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError, EngineError
from stages.engine import server_args as flags
from stages.engine.launch import Engine
from tests.integration.engine_world import engine_spec, make_model

pytestmark = pytest.mark.slow


async def test_an_engine_that_does_not_come_up_shows_its_log_and_a_hint(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    engine = Engine(engine_spec(tmp_path, 0))
    with pytest.raises(EngineError) as caught:
        await engine.start(0, 200.0)
    said = str(caught.value)
    assert "engine 0" in said and "Hint: check the folder --hf-checkpoint names" in said
    assert (
        "Cannot find any model weights" in said and str(tmp_path / "logs" / "engine-0.log") in said
    )
    assert not engine.alive and engine._members() == []


def test_sglangs_parser_gives_types_and_complaints() -> None:
    parsed = flags.parse_server_args(
        ["--mem-fraction-static", "0.5", "--tp-size", "2", "--lora-paths", "a"]
    )
    assert (parsed["mem_fraction_static"], parsed["tp_size"]) == (0.5, 2)
    # what the source says is what the parser has
    assert set(flags.server_args()) == set(parsed) - {"config"}
    with pytest.raises(
        ConfigError, match=r"SGLang refuses --tp-size two: argument --t.*invalid int value: 'two'"
    ):
        flags.parse_server_args(["--tp-size", "two"])
