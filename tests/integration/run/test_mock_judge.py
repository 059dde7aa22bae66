"""A judge that does not answer: the run trains on, and pushes, without the group that waits for it;
and a signal ends the run without it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import read_metrics, read_until, start_entry

ANSWER = {"choices": [{"message": {"content": '{"score": 0.5}'}}]}


class FakeJudge:
    """Answers every question but the first, which waits for `let_go`."""

    def __init__(self) -> None:
        self.let_go, self.asked = threading.Event(), threading.Event()
        self.questions: list[str] = []
        judge, first = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                judge.questions.append(self.path)
                if first.acquire(blocking=False):
                    judge.asked.set()
                    judge.let_go.wait(60)
                body = json.dumps(ANSWER).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    made = FakeJudge()
    yield made
    made.let_go.set()
    made.server.shutdown()
    made.server.server_close()


def flags(judge: FakeJudge, folder: Path) -> list[str]:
    rows = [json.dumps({"prompt": f"{n}+1=", "label": str(n + 1)}) for n in range(20)]
    (folder / "P.jsonl").write_text("\n".join(rows))
    base = "--mock --num-rollout 5 --rollout-batch-size 2 --n-samples-per-prompt 2 --rm-type judge"
    data = ["--prompt-data", str(folder / "P.jsonl"), "--label-key", "label"]
    where = ["--async-buffer-size", "4", "--runs-dir", str(folder), "--name", "m"]
    return [*base.split(), *data, "--judge-url", judge.url, "--judge-model", "fake", *where]


def test_pushes_go_out_while_a_judgement_is_awaited(judge: FakeJudge, tmp_path: Path) -> None:
    process = start_entry(*flags(judge, tmp_path))
    # the third rollout's push waited for the second's to be confirmed
    read_until(process, lambda line: line.startswith("rollout 3/5 "))
    assert judge.asked.is_set()
    judge.let_go.set()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    trained = read_metrics(tmp_path / "m", "train")
    assert [row["reward_mean"] for row in trained] == [0.5] * 5
    kept = (tmp_path / "m" / "judgements.jsonl").read_text().splitlines()
    # equal questions (of equal answers) were asked once
    assert len({json.loads(line)["key"] for line in kept}) == len(kept) == len(judge.questions)


def test_a_signal_does_not_wait_for_the_judge(judge: FakeJudge, tmp_path: Path) -> None:
    process = start_entry(*flags(judge, tmp_path))
    assert judge.asked.wait(60)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)  # the judge is still silent
    assert process.returncode == 128 + signal.SIGTERM, said
