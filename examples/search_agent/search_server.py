"""A search server for trying things out: a handful of documents, found by the words they share with
the query. It speaks as Search-R1's retriever does, so that a real one takes its place by its URL.

`python examples/search_agent/search_server.py 8000` serves until it is interrupted.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DOCUMENTS = [
    json.loads(line)
    for line in Path(__file__).with_name("documents.jsonl").read_text("utf-8").splitlines()
]


def retrieve(query: str, count: int) -> list[dict[str, Any]]:
    """The documents that share most words with the query, the best first."""
    asked = _words(query)
    scored = [(len(asked & _words(d["contents"])), d) for d in DOCUMENTS]
    best = sorted(scored, key=lambda pair: -pair[0])[:count]
    return [{"document": document, "score": score} for score, document in best if score]


def serve_beside() -> str:
    """In a thread of this process; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, name="search server", daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/retrieve"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [retrieve(query, asked.get("topk", 3)) for query in asked["queries"]]
        body = json.dumps({"result": found}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the run has a log of its own."""


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    print(f"http://127.0.0.1:{port}/retrieve", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), _Handler).serve_forever()
