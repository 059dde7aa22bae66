"""Agents with the real openai client, in processes of their own, on a real SGLang server: they are
trained unchanged, and the learner reads the tokens that the engine sampled."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, run_entry

pytestmark = pytest.mark.slow
PRESET = ("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"))
SHORT = (
    *("--sft-steps", "5", "--rollout-batch-size", "2", "--n-samples-per-prompt", "2"),
    *("--num-rollout", "3", "--async-buffer-size", "0", "--eval-interval", "0"),
    *("--rollout-max-response-len", "200", "--rollout-max-context-len", "500"),
)
AGENT = """
import json, os
from openai import OpenAI

task = json.loads(os.environ["SLIPSTREAM_TASK"])
client = OpenAI()
system = {"role": "system", "content": "caf\\u00e9 <|im_end|>"}
chat = [system, {"role": "user", "content": str(task["prompt"])}]
for turn in range(2):
    with client.chat.completions.create(
        model=task["model"], messages=chat, max_tokens=12, stream=True, temperature=0.0
    ) as stream:
        parts = [c.choices[0].delta.content or "" for c in stream if c.choices]
    chat += [{"role": "assistant", "content": "".join(parts)}, {"role": "user", "content": "Sure?"}]
# a sub-agent with a view of its own, and an edited past
client.chat.completions.create(model=task["model"], messages=[chat[1]], max_tokens=8)
edited = [*chat[:2], {"role": "assistant", "content": "other words"}, chat[-1]]
client.chat.completions.create(model=task["model"], messages=edited, max_tokens=8)
raise SystemExit(int(task["index"]) % 2)
"""


def test_an_openai_agent_is_trained_on_the_tokens_that_were_sampled(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    command = shlex.join([sys.executable, str(tmp_path / "agent.py")])
    done = run_entry(
        *PRESET,
        *SHORT,
        *("--agent-command", command, "--agent-reward", "exit_code"),
        *("--num-rollout-workers", "1", "--runs-dir", str(tmp_path), "--name", "a"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "a", "train")
    assert [r["rollout_id"] for r in train] == [0, 1, 2]
    # two turns on one branch, a sub-agent, an edited past
    assert [r["num_samples"] for r in train] == [2 * 2 * 3] * 3
    assert [r["reward_mean"] for r in train] == [0.5] * 3
    assert all(r["train_rollout_logprob_abs_diff_max"] < 1e-4 for r in train)
    assert all(r["num_tokens"] > 0 for r in train)
