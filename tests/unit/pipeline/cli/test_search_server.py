"""`python -m pipeline search-server`, as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

from stages.generate.search.tool import search_tool
from tests.conftest import ROOT, read_until, run_module


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"contents": "Alps\nhigh peaks"}))
    command = [sys.executable, "-m", "pipeline", "search-server", str(tmp_path), "--port", "0"]
    for told in ("saved in", "read from"):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            said = read_until(process, lambda text: "/retrieve" in text)
            assert f"1 passages of {tmp_path}; the index is {told}" in said
            url = said.split()[-1]
            assert url.startswith("http://127.0.0.1:")
            assert "high peaks" in asyncio.run(search_tool(url).call({"query": "peaks"}))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()


def test_a_folder_without_passages_is_a_message(tmp_path: Path) -> None:
    answer = run_module("pipeline", "search-server", str(tmp_path))
    assert answer.returncode == 2 and "DataError" in answer.stderr
    assert "Traceback" not in answer.stderr
