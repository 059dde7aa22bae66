"""Functions that POST to the router, as slime's do, in a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, run_entry

FUNCTION = """
import copy

import httpx

from slipstream import Sample


async def generate(args, sample, sampling_params):
    args = copy.deepcopy(args)
    assert (args.context_parallel_size, args.partial_rollout) == (1, False)
    if not args.mock:
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(args.hf_checkpoint)
        assert own.encode("ab") == args.tokenizer.encode("ab") and args.num_layers > 0
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    params = {**sampling_params, "max_new_tokens": args.turn_tokens}
    sample.tokens = args.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    text = sample.prompt
    async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
        for turn in range(2):
            payload = {"text": text, "sampling_params": params, "return_logprob": True}
            output = (await client.post(url, json=payload)).raise_for_status().json()
            meta = output["meta_info"]
            sample.append_response_tokens(
                args,
                tokens=[token for _, token, _ in meta["output_token_logprobs"]],
                log_probs=[log_prob for log_prob, _, _ in meta["output_token_logprobs"]],
                trainable=True,
                meta_info=meta,
                text=output["text"],
            )
            if turn == 0:
                seen = args.tokenizer("; ", add_special_tokens=False)["input_ids"]
                sample.append_response_tokens(args, tokens=seen, trainable=False, text="; ")
                text += output["text"] + "; "
    assert sample.status in (Sample.Status.COMPLETED, Sample.Status.TRUNCATED)
    assert {span.version for span in sample.weight_versions} <= set(range(100))
    return sample
"""


PLAIN = """
import json
import urllib.request


def generate(args, sample, sampling_params):
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    sample.tokens = args.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    params = {**sampling_params, "max_new_tokens": args.turn_tokens}
    payload = {"input_ids": sample.tokens, "sampling_params": params, "return_logprob": True}
    request = urllib.request.Request(
        url, json.dumps(payload).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        output = json.load(answer)
    meta = output["meta_info"]
    sample.append_response_tokens(
        args,
        tokens=[token for _, token, _ in meta["output_token_logprobs"]],
        log_probs=[log_prob for log_prob, _, _ in meta["output_token_logprobs"]],
        meta_info=meta,
        text=output["text"],
    )
    return sample
"""


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "turns.py").write_text(FUNCTION, encoding="utf-8")
    (tmp_path / "turns.yaml").write_text("turn_tokens: 4\n", encoding="utf-8")
    words = f"""--custom-generate-function-path {tmp_path}/turns.py --rollout-batch-size 4
        --custom-config-path {tmp_path}/turns.yaml --n-samples-per-prompt 4 --async-buffer-size 1
        --runs-dir {tmp_path} --name r"""
    return words.split()


@pytest.mark.parametrize(
    "source", [FUNCTION, PLAIN], ids=["async", "plain, with a blocking client"]
)
def test_with_simulated_engines(
    tmp_path: Path, flags: list[str], nothing_left_behind: None, source: str
) -> None:
    (tmp_path / "turns.py").write_text(source, encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+2=", "label": "3"}\n' * 8, encoding="utf-8")
    data = f"--prompt-data {tmp_path}/p.jsonl --label-key label --rm-type exact_match".split()
    done = run_entry("--mock", "--num-rollout", "3", *data, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "r", "train")
    assert [r["num_samples"] for r in train] == [16] * 3
    assert max(r["staleness_max"] for r in train) >= 1  # versions came along


@pytest.mark.slow
def test_the_learner_agrees_with_what_came_through_the_router(
    tmp_path: Path, flags: list[str], nothing_left_behind: None
) -> None:
    """An untrained model says bytes that are no text: encoded again, a second turn would go on from
    other tokens than those that are trained."""
    preset = ("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"))
    done = run_entry(
        *preset, "--sft-steps", "1", "--num-rollout", "3", "--eval-interval", "0", *flags
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "r", "train")
    assert [r["num_samples"] for r in train] == [16] * 3
    assert train[0]["train_rollout_logprob_abs_diff_max"] < 1e-3
    assert max(r["staleness_max"] for r in train) >= 1
