"""Rollout functions in the shapes of slime's own: whole runs, simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, run_entry

SUPERVISED = """
def generate_rollout(args, rollout_id, data_buffer, evaluation=False):
    assert not evaluation
    groups = data_buffer.get_samples(args.rollout_batch_size)
    for (sample,) in groups:
        answer = args.tokenizer.encode(sample.label, add_special_tokens=False)
        sample.tokens = args.tokenizer.encode(sample.prompt, add_special_tokens=False) + answer
        sample.response_length, sample.reward = len(answer), 0
        sample.loss_mask = [1] * len(answer)
    return groups
"""
# a thread of its own keeps so many groups under way, across rollouts
FULLY_ASYNC = """
import asyncio, queue, threading, time
from slime.rollout.sglang_rollout import GenerateState
from slime.utils.http_utils import post

WORKER = None

class Worker:
    def __init__(self, args, data_buffer):
        self.args, self.data_buffer = args, data_buffer
        self.ready = queue.Queue()
        threading.Thread(target=lambda: asyncio.run(self.loop()), daemon=True).start()

    async def loop(self):
        tasks = set()
        while True:
            while len(tasks) + self.ready.qsize() < 2:
                (group,) = self.data_buffer.get_samples(1)
                tasks.add(asyncio.ensure_future(self.group(group)))
            await asyncio.sleep(0.01)
            for task in [t for t in tasks if t.done()]:
                tasks.discard(task)
                self.ready.put(task.result())

    async def group(self, group):
        await asyncio.gather(*[self.one(s) for s in group])
        return group

    async def one(self, sample):
        state = GenerateState(self.args)
        url = f"http://{self.args.sglang_router_ip}:{self.args.sglang_router_port}/generate"
        sample.tokens = self.args.tokenizer.encode(sample.prompt, add_special_tokens=False)
        payload = {"input_ids": list(sample.tokens), "sampling_params": state.sampling_params,
                   "return_logprob": True}
        answer = await post(url, payload)
        found = answer["meta_info"]["output_token_logprobs"]
        sample.append_response_tokens(self.args, tokens=[f[1] for f in found],
                                      log_probs=[f[0] for f in found],
                                      meta_info=answer["meta_info"])
        sample.response, sample.reward = answer["text"], float(len(found) % 2)

def generate_rollout_fully_async(args, rollout_id, data_buffer, evaluation=False):
    global WORKER
    WORKER = WORKER or Worker(args, data_buffer)
    return [WORKER.ready.get() for _ in range(args.rollout_batch_size)]
"""
FAST = ("--mock", "--rollout-batch-size", "2", "--mock-step-seconds", "0.01", "--label-key")


def prompts(folder: Path) -> str:
    file = folder / "prompts.jsonl"
    rows = [{"prompt": f"{a}+{a}=", "label": str(2 * a)} for a in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def flags(tmp_path: Path, source: str | None, *more: str) -> list[str]:
    file = tmp_path / "rollouts.py"
    if source is None:
        file = ROOT / "examples" / "hooks" / "rollout_function.py"
    else:
        file.write_text(source)
    return [
        *(*FAST, "label", "--prompt-data", prompts(tmp_path)),
        *("--rollout-function-path", str(file), "--runs-dir", str(tmp_path), "--name", "r", *more),
    ]


@pytest.mark.parametrize(
    ("source", "more"),
    [
        (None, ("--n-samples-per-prompt", "4", "--async-buffer-size", "1")),
        (None, ("--n-samples-per-prompt", "4")),
        (SUPERVISED, ("--n-samples-per-prompt", "1", "--loss-type", "sft_loss")),
        (FULLY_ASYNC, ("--n-samples-per-prompt", "4", "--async-buffer-size", "1")),
    ],
)
def test_a_run_trains_on_what_the_function_makes(
    tmp_path: Path, source: str | None, more: tuple[str, ...], nothing_left_behind: None
) -> None:
    done = run_entry(*flags(tmp_path, source, *more, "--num-rollout", "4"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(tmp_path / "r", "train")
    assert [row["rollout_id"] for row in rows] == [0, 1, 2, 3]
    assert all(row["num_groups"] == 2 for row in rows)


def test_a_resumed_run_asks_for_what_is_missing(tmp_path: Path, nothing_left_behind: None) -> None:
    more = ("--n-samples-per-prompt", "4", "--async-buffer-size", "1", "--save-interval", "1")
    first = run_entry(*flags(tmp_path, None, *more, "--num-rollout", "3"))
    assert first.returncode == 0, first.stdout + first.stderr
    again = run_entry("--load", str(tmp_path / "r"), "--num-rollout", "6")
    assert again.returncode == 0, again.stdout + again.stderr
    rows = read_metrics(tmp_path / "r", "train")
    assert [row["rollout_id"] for row in rows] == list(range(6))


def test_a_function_that_raises_ends_the_run_with_one_line(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    source = (
        "def generate_rollout(args, rollout_id, data_buffer, evaluation=False):\n    return 1 / 0"
    )
    done = run_entry(*flags(tmp_path, source, "--rm-type", "exact_match"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ExceptionGroup" not in done.stderr and "Traceback" not in done.stderr
    assert f"(--rollout-function-path, {tmp_path / 'rollouts.py'} line 2)" in done.stderr
