"""Functions as they are written for slime (tests/integration/ported), with its imports and no
others, through whole runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, read_metrics, run_entry

PORTED = ROOT / "tests" / "integration" / "ported"
MOCK = (
    *("--mock", "--num-rollout", "2", "--rollout-batch-size", "2", "--n-samples-per-prompt", "4"),
    *("--async-buffer-size", "1", "--mock-step-seconds", "0.01", "--label-key", "label"),
    *("--mock-seconds-per-token", "0.0001", "--rollout-max-response-len", "96"),
    *("--rollout-all-samples-process-path", f"{PORTED}/batches.py:look"),
)


class SearchServer:
    """Finds a document for every query."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.queries += asked["queries"]
                body = json.dumps({"result": [[{"document": {"contents": "Alps\nhigh"}}]]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/retrieve"


@pytest.fixture
def search_server() -> Iterator[SearchServer]:
    server = SearchServer()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def trained(folder: Path, *flags: str, label: str = "3", **env: str) -> list[dict[str, Any]]:
    """The samples that the hooks behind the buffer saw, of a run that went well."""
    rows = [json.dumps({"prompt": f"{i}+2=", "label": label}) for i in range(8)]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    seen = folder / "seen.jsonl"
    done = run_entry(
        *MOCK,
        *("--prompt-data", str(folder / "prompts.jsonl"), "--runs-dir", str(folder)),
        *("--name", "m", *flags),
        SEEN=str(seen),
        **env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(folder / "m", "train")
    assert len(rows) == 2 and all(r["num_tokens"] > 0 for r in rows)
    (folder / "said").write_text(done.stdout + done.stderr)
    return [json.loads(line) for line in seen.read_text().splitlines()]


def path_of(name: str) -> str:
    return str(PORTED / name)


def test_a_searching_agent(tmp_path: Path, search_server: SearchServer) -> None:
    samples = trained(
        tmp_path,
        *("--custom-generate-function-path", path_of("search.py")),
        *("--custom-rm-path", path_of("search.py:reward_func")),
        label="<search>alps</search>",
        SEARCH_URL=search_server.url,
    )
    assert set(search_server.queries) == {"alps"}
    found = [s for s in samples if "<information>Alps</information>" in s["response"]]
    assert found and all(0 in s["loss_mask"] and s["reward"] == 1.0 for s in found)
    for sample in samples:
        spans, mask = sample["weight_versions"], sample["loss_mask"]
        known = {i for _, start, end in spans for i in range(start, end)}
        assert known == {i for i, m in enumerate(mask) if m}  # each generated token its version


def test_an_agent_with_a_tool_attributes_and_a_reward_dict(tmp_path: Path) -> None:
    samples = trained(
        tmp_path,
        *("--custom-generate-function-path", path_of("tools.py:generate")),
        *("--custom-rm-path", path_of("tools.py:reward_func"), "--reward-key", "score"),
        *("--dynamic-sampling-filter-path", path_of("batches.py")),
        *("--custom-reward-post-process-path", path_of("batches.py")),
    )
    assert samples and all(s["payload_text"].endswith(s["response"]) for s in samples)
    assert {s["tool_call_count"] for s in samples} <= {0, 1} and "lock" not in samples[0]
    assert all(set(s["reward"]) >= {"score", "acc"} for s in samples)
    log = (tmp_path / "m" / "logs" / "run.log", tmp_path / "m" / "run.log", tmp_path / "said")
    said = "".join(path.read_text() for path in log if path.exists())
    assert "sample.lock is gone once its sample is stored" in said


def test_a_team_of_agents_for_one_prompt(tmp_path: Path) -> None:
    samples = trained(
        tmp_path,
        *("--custom-generate-function-path", path_of("team.py:generate_with_team")),
        *("--rm-type", "exact_match"),
    )
    by_rollout: dict[int, list[str]] = {}
    for sample in samples:
        assert sample["rollout_id"] == sample["index"] and sample["reason_content"] is None
        by_rollout.setdefault(sample["index"], []).append(sample["prompt"].partition(":")[0])
    assert len(by_rollout) == 16
    assert all(sorted(k) == ["rewriter", *["solver"] * 3] for k in by_rollout.values())


def test_segments_of_one_rollout_and_slimes_own_conversion(tmp_path: Path) -> None:
    samples = trained(
        tmp_path,
        *("--custom-generate-function-path", path_of("segments.py")),
        *("--custom-convert-samples-to-train-data-path", path_of("batches.py")),
    )
    assert len(samples) == 32
    assert all(s["rollout_id"] == s["index"] and s["weight_versions"] for s in samples)


def test_a_tool_agent_in_an_environment_with_a_user(tmp_path: Path) -> None:
    samples = trained(
        tmp_path,
        *("--custom-generate-function-path", path_of("shop.py")),
        *("--off-policy-correction", "none"),  # it asks for no log-probs
        # one turn in three is cut off before it has said anything, and is no call
        *("--mock-length-mean", "96"),
    )
    assert len(samples) == 16 and {s["reward"] for s in samples} == {0.0, 1.0}
    for sample in samples:
        won = sample["reward"] == 1.0
        assert sample["status"] == ("completed" if won else "truncated")
        assert len(sample["metadata"]["actions"]) == (3 if won else 4)
        mask = "".join(map(str, sample["loss_mask"]))
        turns = [part for part in mask.split("0") if part]
        assert len(turns) == (3 if won else 4) and mask.endswith("1" if won else "0")
    assert {a for s in samples for a in s["metadata"]["actions"]} == {"look", "respond"}


def test_slimes_own_source_and_filter_by_their_names(tmp_path: Path) -> None:
    rollout = "slime.rollout"
    trained(
        tmp_path,
        *("--data-source-path", f"{rollout}.data_source.RolloutDataSourceWithBuffer"),
        "--dynamic-sampling-filter-path",
        f"{rollout}.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",
        *("--rm-type", "random"),
    )


SHAPES = {
    "search": ("search.py", *("--custom-rm-path", path_of("search.py:reward_func"))),
    "tools": (
        *("tools.py:generate", "--custom-rm-path", path_of("tools.py:reward_func")),
        *("--reward-key", "score", "--custom-reward-post-process-path", path_of("batches.py")),
    ),
    "team": ("team.py:generate_with_team", "--rm-type", "exact_match"),
    "segments": (
        *("segments.py", "--custom-convert-samples-to-train-data-path", path_of("batches.py")),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_on_real_engines(
    shape: str, tmp_path: Path, search_server: SearchServer, nothing_left_behind: None
) -> None:
    """Its tokens are trained with the very log-probs that the engine gave."""
    function, *flags = SHAPES[shape]
    done = run_entry(
        *("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"), "--sft-steps", "5"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--num-rollout", "3"),
        *("--eval-interval", "0", "--runs-dir", str(tmp_path), "--name", "s"),
        *("--custom-generate-function-path", path_of(function), *flags),
        timeout=400,
        SEARCH_URL=search_server.url,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "s", "train")
    assert len(train) == 3 and all(abs(r["kl_rollout_old"]) < 0.5 for r in train)
    assert {r["policy_version"] for r in train} == {0, 1, 2}
    assert all(r["num_tokens"] > 0 and r["grad_norm"] >= 0 for r in train)
    each = {"team": 4, "segments": 2}.get(shape, 1)  # samples that one prompt's rollout becomes
    assert {r["num_samples"] for r in train} == {16 * each}
