"""A small HTTP server in SGLang's place, for what is about processes and not about models."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from stages.engine import launch
from stages.engine.spec import EngineSpec

SERVE = Path(launch.__file__).with_name("serve.py")

# A server with a child process, a shared-memory file and, as SGLang, no handling of signals worth
# mentioning.
SERVER = """
import http.server, mmap, pathlib, subprocess, sys, tempfile
port, mark = int(sys.argv[1]), pathlib.Path(sys.argv[2])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
shared = open(f"/dev/shm/{mark.name}.shm", "w+b"); shared.truncate(4096)
mapped = mmap.mmap(shared.fileno(), 4096)
tempfile.NamedTemporaryFile(delete=False)
mark.write_text(f"{child.pid} {tempfile.gettempdir()}")
print("it is up", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/ready", "/model_info") else 503); self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""  # noqa: E501


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptSpec(EngineSpec):
    """An engine that runs a Python script: argv is port, then the file in which to leave marks."""

    script: str = SERVER
    mark: Path = Path("unset")

    def command(self, port: int, weight_version: int, inner_port: int) -> list[str]:
        return [
            sys.executable,
            str(SERVE),
            str(os.getpid()),
            "-",
            sys.executable,
            "-c",
            self.script,
            str(port),
            str(self.mark),
        ]

    def environment(self, base: dict[str, str], scratch: Path) -> dict[str, str]:  # type: ignore[override]
        return {**base, "TMPDIR": str(scratch)}


def gone(pid: int) -> bool:
    """Has it ended? Its parent may be one that never asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
