"""Several learner ranks, a process each, as tests start them."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def run_ranks(count: int, module: str, *words: object, timeout: float = 400) -> None:
    """Runs `python -m tests.integration.learn.MODULE RANK PORT WORDS...` in `count` processes, to
    their end; fails with what they said when one does. PORT is of their rendezvous store."""
    from stages.learn.rendezvous import serve_store

    store, port = serve_store(count)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", f"tests.integration.learn.{module}"]
    ranks = [
        subprocess.Popen(
            [*command, str(r), str(port), *map(str, words)],
            cwd=ROOT,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(count)
    ]
    try:
        errors = [r.communicate(timeout=timeout)[1] for r in ranks]
    finally:
        for r in ranks:
            r.kill()
        del store
    assert [r.returncode for r in ranks] == [0] * count, "\n".join(errors)[-4000:]
