"""Real SGLang: an engine that does not come up, and what SGLang's own parser says of flags."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compat import engine_environment
from pipeline.core.errors import ConfigError, EngineError
from stages.engine import server_args as flags
from stages.engine.launch import Engine
from tests.integration.engine.engine_world import engine_spec, make_model

pytestmark = pytest.mark.slow

_ASK = """
import argparse, contextlib, json, sys
with contextlib.redirect_stdout(sys.stderr):
    from sglang.srt.server_args import ServerArgs
    parser = argparse.ArgumentParser(prog="sglang", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    parsed = vars(parser.parse_args(["--model-path", "none", *json.loads(sys.argv[1])]))
json.dump(parsed, sys.stdout, default=str)
"""


def parse_server_args(arguments: Sequence[str], timeout_seconds: float = 120.0) -> dict[str, Any]:
    """What SGLang's own parser makes of these arguments: every field with its typed value
    (JSON-able; others as text).

    Takes about ten seconds, in a process of its own. Raises ConfigError with SGLang's complaint.
    """
    command = [sys.executable, "-c", _ASK, json.dumps(list(arguments))]
    environment = {**engine_environment(os.environ), "SGLANG_USE_CPU_ENGINE": "1"}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode != 0:
        complaint = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()),
            f"exit code {done.returncode}",
        )
        raise ConfigError(
            f"SGLang refuses {' '.join(arguments)}: {complaint.removeprefix('sglang: error: ')}"
        )
    return dict(json.loads(done.stdout))


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
    parsed = parse_server_args(
        ["--mem-fraction-static", "0.5", "--tp-size", "2", "--lora-paths", "a"]
    )
    assert (parsed["mem_fraction_static"], parsed["tp_size"]) == (0.5, 2)
    # what the source says is what the parser has
    assert set(flags.server_args()) == set(parsed) - {"config"}
    with pytest.raises(
        ConfigError, match=r"SGLang refuses --tp-size two: argument --t.*invalid int value: 'two'"
    ):
        parse_server_args(["--tp-size", "two"])
