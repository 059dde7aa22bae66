"""Rules across flags: each broken on its own, with everything else in order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configs.command_line.loader import load_config
from configs.flags import NEVER, own_flags
from configs.rules.ranges import RANGES
from configs.rules.validate import validate
from configs.schema import Config, ModelConfig
from pipeline.core.errors import ConfigError
from tests.flags import later_wins


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, data and user functions, as far as names go."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name in ("data.jsonl", "data.parquet", "data.csv", "shape.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "mine.py").write_text(
        "import os\nasync def generate(args, sample, sampling_params): ...\ndef score(args,"
        " sample): ...\ndef hook(args, x, *more): ...\n"
    )
    (tmp_path / "loss.py").write_text(
        "def loss_function(args, batch, logits, reduce): ...\ndef tis_function(args, **kwargs):"
        " ...\ndef get_pg_loss_reducer(total, response, masks, per_token): ...\n"
    )
    (tmp_path / "broken.py").write_text("def score(:\n")
    (tmp_path / "bare.py").write_text("def other(): ...\n")
    return tmp_path


BASE = [
    "--hf-checkpoint",
    "model",
    "--prompt-data",
    "data.jsonl",
    "--rm-type",
    "math",
    "--label-key",
    "answer",
]


JUDGE = "--rm-type judge --judge-url http://h/v1 --judge-model big"


def words(text: str) -> list[str]:
    return later_wins([*BASE, *text.split()])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--colocate",
        "--colocate --offload-train",
        "--micro-batch-size 4 --no-use-dynamic-batch-size",
        (
            "--use-dynamic-batch-size --max-tokens-per-gpu 9000 --log-probs-max-tokens-per-gpu 9000"
            " --balance-data"
        ),
        "--no-use-dynamic-batch-size --no-balance-data --log-probs-chunk-size -1",
        "--async-buffer-size 4 --update-weights-interval 2 --max-staleness 2",
        "--async-buffer-size 3 --update-weights-interval 2",
        "--num-steps-per-rollout 4 --global-batch-size 16",
        "--prompt-data data.parquet@[10:20]",
        "--prompt-data data.jsonl@[:20]",
        "--prompt-data data.jsonl@[5:]",
        "--prompt-data data.jsonl@[:-1]",
        "--prompt-data data.jsonl@[-20:-10]",
        "--hf-checkpoint tiny:shape.yaml",
        "--hf-checkpoint pypi-gguf:yaml",
        "--prompt-data reasoning_gym:chain_sum?min_terms=2&max_terms=3 --rm-type none",
        "--custom-generate-function-path mine.py --custom-rm-path mine.py:score --rm-type none",
        "--custom-generate-function-path mine.py --n-samples-per-prompt 1",
        "--dynamic-sampling-filter-path zero_std",
        "--rm-type remote_rm --rm-url http://localhost:8000",
        JUDGE,
        "--rm-type gpqa --label-key none",
        "--eval-interval 5 --eval-prompt-data data.jsonl",
        "--eval-interval 5 --eval-prompt-data a data.jsonl b data.jsonl@[0:5]",
        "--rollout-top-k -1 --rollout-top-p 1 --eval-temperature 0 --eps-clip-high 0.28",
        "--actor-num-nodes 2 --actor-num-gpus-per-node 4",
        "--train-backend fsdp --gradient-checkpointing --kl-coef 0.1 --actor-num-gpus-per-node 2",
        "--max-times-sampled 2",
        "--max-times-sampled 4 --samples-per-insert 2 --async-buffer-size 2",
        "--min-size-to-sample 24 --async-buffer-size 2",
        "--buffer-selector prioritized --buffer-priority-path mine.py:score",
        "--stale-policy retry --async-buffer-size 1",
        "--loss-type custom_loss --custom-loss-function-path loss.py",
        "--loss-type sft_loss",
        "--use-tis --tis-level sequence --tis-mode mask --custom-tis-function-path loss.py",
        (
            "--get-mismatch-metrics --custom-tis-function-path loss.py --correction-mean-over kept"
            " --custom-pg-loss-reducer-function-path loss.py"
        ),
        "--off-policy-correction mis --correction-mean-over all",
        "--use-tis --off-policy-correction geo-rs --correction-low 0.99",
        "--use-tis --tis-mode mask --off-policy-correction k3-rs --correction-high 0.1",
        (
            "--off-policy-correction tis --correction-reject seq_mean_k3:0.01 token_k1:0.5:2"
            " --correction-kl-tau 0.001"
        ),
        "--off-policy-correction icepop --use-rollout-logprobs",
        "--off-policy-correction m2po-clip --correction-high 0.1",
        "--off-policy-correction dppo-kl --correction-kl-tau 0",
        "--off-policy-correction two-sided --correction-low 0.5 --correction-high 5",
        "--advantage-estimator sapo --sapo-tau-neg 1.5 --use-tis",
        "--advantage-estimator vespo --vespo-k-pos 1 --use-rollout-logprobs",
        (
            "--use-kl-loss --kl-loss-coef 0.01 --kl-loss-type k3 --use-unbiased-kl --ref-load model"
            " --ref-update-interval 5"
        ),
        "--kl-coef 0.1",
        (
            "--off-policy-correction geo-rs --use-rollout-logprobs --correction-low 0.99"
            " --correction-high 1.01"
        ),
        (
            "--off-policy-correction seq-tis --correction-batch-normalize --ess-lr-scaling"
            " --correction-veto-threshold 1e-4"
        ),
        "--off-policy-correction m2po --correction-high 0.1",
        "--off-policy-correction dppo --correction-low 0.1 --correction-high 0.3",
        "--off-policy-correction opsm --correction-low 0.99",
        (
            "--advantage-estimator gspo --off-policy-correction tis --staleness-clip-decay 0.5"
            " --eps-clip-c 3"
        ),
        "--true-on-policy-mode --use-kl-loss",
        "--advantage-estimator gspo --disable-grpo-std-normalization --normalize-advantages",
        "--advantage-estimator dr_grpo --disable-grpo-std-normalization --calculate-per-token-loss",
        "--advantage-estimator rloo",
        "--advantage-estimator max_rl",
        "--proximal loglinear --use-tis",
        "--advantage-estimator opob --off-policy-correction seq-tis --ess-lr-scaling",
        "--disable-rewards-normalization --n-samples-per-prompt 1",
        (
            "--advantage-estimator reinforce_plus_plus --normalize-advantages"
            " --n-samples-per-prompt 1 --gamma 0.99"
        ),
        "--advantage-estimator reinforce_plus_plus_baseline --normalize-advantages",
        "--custom-advantage-function-path mine.py:hook --gamma 0.9 --n-samples-per-prompt 1",
        "--custom-reward-post-process-path mine.py:hook --rollout-sample-filter-path mine.py:hook",
        (
            "--custom-convert-samples-to-train-data-path mine.py:hook"
            " --rollout-all-samples-process-path mine.py:hook"
        ),
        (
            "--advantage-estimator ppo --lambd 0.95 --gamma 0.99 --critic-lr 1e-5"
            " --num-critic-only-steps 5 --critic-load model"
        ),
        "--advantage-estimator ppo --n-samples-per-prompt 1 --normalize-advantages",
        "--advantage-estimator ppo --kl-coef 0.1 --kl-loss-type k3 --ref-load model",
        "--over-sampling-batch-size 24 --mask-offpolicy-in-partial-rollout",
        "--use-rollout-routing-replay --use-rollout-logprobs --use-routing-replay",
        "--use-routing-replay --num-steps-per-rollout 2",
    ],
)
def test_what_is_allowed(folder: Path, text: str) -> None:
    load_config(words(text))


@pytest.mark.parametrize(
    "text",
    [
        "--hf-checkpoint /models/nowhere",
        "--hf-checkpoint pypi-gguf:llm_nowhere",
        "--ref-load nowhere --kl-coef 0.1",
        "--initial-megatron-checkpoint nowhere",
        "--advantage-estimator ppo --critic-load nowhere",
    ],
)
def test_a_mock_run_tries_a_configuration_whose_models_are_elsewhere(text: str) -> None:
    load_config(["--mock", *text.split()])


def test_a_mock_run_still_reads_the_words_of_a_tiny_model() -> None:
    with pytest.raises(ConfigError, match=r"tiny:nowhere\.yaml"):
        load_config(["--mock", "--hf-checkpoint", "tiny:nowhere.yaml"])


def test_a_mock_run_needs_no_model_and_no_data() -> None:
    assert load_config(["--mock"]).run.mock


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "--async-buffer-size 2 --colocate",
            ["--colocate", "--async-buffer-size 2", "--async-buffer-size 0", "turns"],
        ),
        ("--offload-rollout", ["--offload-rollout", "--colocate"]),
        (
            "--micro-batch-size 2 --log-probs-max-tokens-per-gpu 8192",
            ["--log-probs-max-tokens-per-gpu 8192", "--micro-batch-size"],
        ),
        (
            "--log-probs-max-tokens-per-gpu 100",
            ["--log-probs-max-tokens-per-gpu 100", "--max-tokens-per-gpu 4096"],
        ),
        (
            "--async-buffer-size 3 --fixed-staleness --max-staleness 6",
            ["--max-staleness 6 with --fixed-staleness", "is --async-buffer-size, 3"],
        ),
        (
            "--async-buffer-size 3 --fixed-staleness --update-weights-interval 2",
            ["--update-weights-interval 2 with --fixed-staleness", "must be 1"],
        ),
        (
            "--async-buffer-size 3 --fixed-staleness --max-times-sampled 2",
            ["--max-times-sampled 2 with --fixed-staleness"],
        ),
        (
            "--async-buffer-size 3 --max-staleness 1",
            ["--async-buffer-size 3", "--max-staleness to 3", "to 1"],
        ),
        (
            "--async-buffer-size 3 --max-staleness 0 --update-weights-interval 9",
            ["--max-staleness 0", "--max-staleness to 1", "to 0"],
        ),
        (
            "--num-steps-per-rollout 4 --global-batch-size 32",
            ["--num-steps-per-rollout 4", "--global-batch-size 32", "64", "16"],
        ),
        (
            "--num-steps-per-rollout 3",
            ["--num-steps-per-rollout 3", "64", "1, 2, 4, 8, 16, 32, 64"],
        ),
        ("--global-batch-size 48", ["--global-batch-size 48", "64"]),
        ("--global-batch-size 128", ["--global-batch-size 128", "64"]),
        (
            "--num-steps-per-rollout 64 --actor-num-gpus-per-node 2",
            ["--actor-num-gpus-per-node", "1 samples", "2 data-parallel"],
        ),
        ("--n-samples-per-prompt 1", ["--n-samples-per-prompt 1", "grpo", "always 0"]),
        (
            "--n-samples-per-prompt 1 --advantage-estimator rloo",
            ["--n-samples-per-prompt 1", "rloo", "reinforce_plus_plus"],
        ),
        (
            "--advantage-estimator rloo --disable-rewards-normalization",
            ["--disable-rewards-normalization", "rloo", "by definition", "reinforce_plus_plus"],
        ),
        (
            (
                "--advantage-estimator reinforce_plus_plus --normalize-advantages"
                " --disable-rewards-normalization"
            ),
            ["--disable-rewards-normalization", "raw rewards anyway"],
        ),
        (
            "--advantage-estimator rloo --disable-grpo-std-normalization",
            ["--disable-grpo-std-normalization", "rloo", "Drop"],
        ),
        (
            "--advantage-estimator reinforce_plus_plus",
            ["reinforce_plus_plus", "Add --normalize-advantages"],
        ),
        (
            "--advantage-estimator reinforce_plus_plus_baseline",
            ["reinforce_plus_plus_baseline", "Add --normalize-advantages"],
        ),
        ("--gamma 0.99", ["--gamma 0.99", "grpo", "discounted"]),
        ("--lambd 0.95", ["--lambd 0.95", "grpo", "critic"]),
        (
            (
                "--custom-convert-samples-to-train-data-path mine.py:hook"
                " --custom-reward-post-process-path mine.py:hook"
            ),
            [
                "--custom-reward-post-process-path mine.py:hook",
                "--custom-convert-samples-to-train-data-path",
                "never be used",
            ],
        ),
        ("--critic-lr 1e-5", ["--critic-lr 1e-05", "grpo", "only ppo has a critic"]),
        ("--value-clip 0.5 --advantage-estimator rloo", ["--value-clip 0.5", "rloo", "only ppo"]),
        ("--num-critic-only-steps 3", ["--num-critic-only-steps 3", "only ppo"]),
        ("--critic-load model", ["--critic-load model", "only ppo"]),
        ("--critic-lr-warmup-iters 3", ["--critic-lr-warmup-iters 3", "only ppo"]),
        (
            "--advantage-estimator ppo --critic-load nowhere",
            ["--critic-load nowhere", "no such folder"],
        ),
        (
            "--advantage-estimator ppo --num-critic-only-steps 100",
            ["--num-critic-only-steps 100", "--num-rollout 100"],
        ),
        (
            "--advantage-estimator ppo --critic-lr-warmup-iters 9 --lr-decay-iters 9",
            ["--critic-lr-warmup-iters 9", "--lr-decay-iters 9"],
        ),
        (
            "--advantage-estimator ppo --custom-advantage-function-path mine.py:hook",
            ["--custom-advantage-function-path mine.py:hook", "ppo", "never be asked"],
        ),
        (
            "--advantage-estimator ppo --disable-rewards-normalization",
            ["--disable-rewards-normalization", "raw rewards anyway"],
        ),
        (
            "--over-sampling-batch-size 7",
            ["--over-sampling-batch-size 7", "--rollout-batch-size 8", "at least that many"],
        ),
        (
            "--rollout-sample-filter-path mine.py",
            ["--rollout-sample-filter-path", "filter_samples"],
        ),
        (
            "--rollout-all-samples-process-path bare.py",
            ["--rollout-all-samples-process-path", "process_all_samples"],
        ),
        (
            "--custom-reward-post-process-path mine.py",
            ["--custom-reward-post-process-path", "post_process_rewards"],
        ),
        (
            "--custom-convert-samples-to-train-data-path mine.py",
            ["--custom-convert-samples-to-train-data-path", "convert_samples"],
        ),
        (
            "--custom-advantage-function-path mine.py",
            ["--custom-advantage-function-path", "compute_advantages"],
        ),
        ("--use-tis --use-rollout-logprobs", ["--use-tis", "--use-rollout-logprobs", "twice"]),
        ("--tis-clip-low 3", ["--tis-clip-low 3", "--tis-clip 2"]),
        ("--tis-level sequence", ["--tis-level", "--use-tis"]),
        ("--tis-mode mask", ["--tis-mode", "--use-tis"]),
        ("--custom-tis-function-path loss.py", ["--custom-tis-function-path loss.py", "--use-tis"]),
        (
            "--use-tis --custom-tis-function-path mine.py",
            ["--custom-tis-function-path", "tis_function"],
        ),
        (
            "--use-tis --custom-tis-function-path loss.py --correction-batch-normalize",
            ["loss.py", "--correction-batch-normalize"],
        ),
        ("--get-mismatch-metrics", ["--get-mismatch-metrics", "--custom-tis-function-path"]),
        (
            "--off-policy-correction tis --correction-mean-over kept",
            ["--correction-mean-over kept", "nothing drops"],
        ),
        (
            "--off-policy-correction mis --correction-mean-over kept --calculate-per-token-loss",
            ["--correction-mean-over kept", "--calculate-per-token-loss"],
        ),
        ("--use-tis --off-policy-correction two-sided", ["--use-tis", "two-sided", "twice"]),
        (
            "--use-rollout-logprobs --off-policy-correction geo-rs-tis",
            ["--use-rollout-logprobs", "geo-rs-tis", "twice"],
        ),
        ("--advantage-estimator vespo --use-tis", ["vespo", "--use-tis", "twice"]),
        ("--advantage-estimator sapo --eps-clip-c 3", ["--eps-clip-c 3", "sapo"]),
        ("--advantage-estimator vespo --staleness-clip-decay 1", ["vespo", "no clip"]),
        ("--off-policy-correction m2po-clip --advantage-estimator sapo", ["m2po-clip", "sapo"]),
        ("--off-policy-correction m2po-clip --correction-low 0.1", ["one bound"]),
        ("--off-policy-correction k3-rs --correction-low 0.1", ["one bound", "k3"]),
        ("--correction-reject token_k3:0", ["--correction-reject token_k3:0", "above 0"]),
        (
            "--use-tis --custom-tis-function-path loss.py --correction-reject token_k3:1",
            ["--correction-reject", "decides alone"],
        ),
        (
            "--use-tis --off-policy-correction icepop",
            ["--use-tis", "--off-policy-correction icepop"],
        ),
        (
            "--use-rollout-logprobs --off-policy-correction seq-mis",
            ["--use-rollout-logprobs", "seq-mis", "twice"],
        ),
        ("--correction-low 0.5", ["--correction-low 0.5", "--off-policy-correction"]),
        ("--use-tis --correction-high 3", ["--correction-high 3", "--tis-clip"]),
        (
            "--off-policy-correction icepop --correction-high 0.9",
            ["--correction-high 0.9", "icepop", "ratio 1"],
        ),
        (
            "--off-policy-correction m2po --correction-low 0.1",
            ["--correction-low 0.1", "m2po", "--correction-high"],
        ),
        (
            "--off-policy-correction dppo --correction-high 2",
            ["--correction-high 2", "dppo", "at most 1"],
        ),
        (
            "--advantage-estimator opob --normalize-advantages",
            ["opob", "--normalize-advantages", "Drop one"],
        ),
        (
            "--proximal loglinear --use-rollout-logprobs",
            ["--proximal loglinear", "--use-rollout-logprobs", "Drop one"],
        ),
        ("--proximal loglinear --off-policy-correction m2po", ["--proximal loglinear", "m2po"]),
        ("--opsm-delta 0.1", ["--opsm-delta 0.1", "--use-opsm"]),
        (
            "--use-opsm --off-policy-correction opsm",
            ["--use-opsm", "--off-policy-correction opsm", "Drop one"],
        ),
        ("--off-policy-correction opsm --correction-high 2", ["--correction-high 2", "opsm"]),
        ("--off-policy-correction m2po --advantage-estimator gspo", ["m2po", "gspo"]),
        (
            "--off-policy-correction dppo --staleness-clip-decay 1",
            ["--staleness-clip-decay 1", "dppo"],
        ),
        (
            "--off-policy-correction geo-rs --correction-batch-normalize",
            ["--correction-batch-normalize", "weights"],
        ),
        ("--eps-clip-c 1", ["--eps-clip-c 1", "above 1"]),
        ("--eps-clip-c 3 --advantage-estimator cispo", ["--eps-clip-c 3", "cispo"]),
        (
            "--n-samples-per-prompt 1 --advantage-estimator gspo",
            ["--n-samples-per-prompt 1", "gspo"],
        ),
        ("--kl-loss-coef 0.1", ["--kl-loss-coef 0.1", "--use-kl-loss"]),
        (
            "--use-kl-loss --kl-loss-coef 0.1",
            ["--kl-loss-type k1", "gradient of 0", "low_var_kl", "--use-unbiased-kl"],
        ),
        ("--use-unbiased-kl --kl-coef 0.1", ["--use-unbiased-kl", "--use-kl-loss"]),
        (
            "--use-kl-loss --kl-loss-coef 0.1 --kl-loss-type k2 --kl-coef 0.1",
            ["--kl-coef 0.1", "--kl-loss-coef 0.1"],
        ),
        ("--ref-load nowhere --kl-coef 0.1", ["--ref-load nowhere", "no such folder"]),
        ("--ref-update-interval 3", ["--ref-update-interval 3", "--kl-coef"]),
        ("--loss-type custom_loss", ["--loss-type custom_loss", "--custom-loss-function-path"]),
        (
            "--custom-loss-function-path loss.py",
            ["--custom-loss-function-path loss.py", "--loss-type custom_loss"],
        ),
        ("--loss-type sft_loss --use-tis", ["--loss-type sft_loss", "--use-tis"]),
        (
            "--loss-type custom_loss --custom-loss-function-path loss.py --entropy-coef 1",
            ["--entropy-coef", "custom_loss"],
        ),
        (
            "--true-on-policy-mode --async-buffer-size 1",
            ["--true-on-policy-mode", "--async-buffer-size 1"],
        ),
        ("--true-on-policy-mode --use-tis", ["--true-on-policy-mode", "--use-tis"]),
        (
            "--rollout-num-gpus 3 --rollout-num-gpus-per-engine 2",
            ["--rollout-num-gpus 3", "--rollout-num-gpus-per-engine 2", "Use 4"],
        ),
        ("--rollout-num-gpus 1 --rollout-num-gpus-per-engine 2", ["--rollout-num-gpus 1", "Use 2"]),
        (
            "--rollout-max-prompt-len 64 --rollout-max-context-len 64",
            ["--rollout-max-prompt-len 64", "--rollout-max-context-len 64"],
        ),
        (
            "--gradient-checkpointing",
            ["--gradient-checkpointing", "--train-backend fsdp", "--recompute-granularity"],
        ),
        (
            "--train-backend fsdp --advantage-estimator ppo",
            ["--train-backend fsdp", "ppo", "no critic"],
        ),
        ("--hf-checkpoint none", ["--hf-checkpoint is missing", "--mock"]),
        ("--hf-checkpoint nowhere", ["--hf-checkpoint nowhere", "no such folder"]),
        ("--hf-checkpoint empty", ["--hf-checkpoint empty", "config.json"]),
        ("--hf-checkpoint tiny:none.yaml", ["tiny:none.yaml", "configs/models/"]),
        (
            "--hf-checkpoint pypi-gguf:llm_nowhere",
            ["pypi-gguf:llm_nowhere", "pip install llm-nowhere"],
        ),
        ("--prompt-data none", ["--prompt-data is missing"]),
        (
            "--prompt-data nowhere.jsonl",
            ["--prompt-data nowhere.jsonl", "no such file", "data.jsonl"],
        ),
        ("--prompt-data model", ["--prompt-data model", "folder"]),
        ("--prompt-data data.csv", ["--prompt-data data.csv", ".jsonl or .parquet"]),
        ("--prompt-data data.jsonl@[5:5]", ["data.jsonl@[5:5]", "a < b"]),
        ("--prompt-data data.jsonl@[5-9]", ["data.jsonl@[5-9]", "path@[a:b]"]),
        ("--prompt-data data.jsonl[5:9]", ["path@[a:b]"]),
        ("--prompt-data reasoning_gym:", ["reasoning_gym:TASK"]),
        ("--prompt-data reasoning_gym:chain_sum?terms", ["'terms'", "param=value"]),
        ("--sft-data nowhere.jsonl", ["--sft-data nowhere.jsonl"]),
        ("--load nowhere", ["--load nowhere"]),
        ("--rm-type none", ["--rm-type", "--custom-rm-path", "data.jsonl"]),
        ("--rm-type reasoning_gym", ["--rm-type reasoning_gym", "data.jsonl"]),
        ("--label-key none", ["--rm-type math", "--label-key"]),
        ("--group-rm", ["--group-rm", "--custom-rm-path"]),
        (
            "--custom-rm-path mine.py:scor --rm-type none",
            ["--custom-rm-path", "mine.py:scor", "did you mean 'score'"],
        ),
        ("--custom-rm-path mine.py --rm-type none", ["--custom-rm-path", "reward_func"]),
        (
            "--custom-rm-path mine.py:score",
            ["--rm-type math", "--custom-rm-path mine.py:score", "--rm-type none"],
        ),
        ("--mock --rm-type none", ["--rm-type", "--custom-rm-path", "data.jsonl"]),
        ("--mock --label-key none", ["--rm-type math", "--label-key"]),
        (
            "--custom-rm-path broken.py:score --rm-type none",
            ["--custom-rm-path", "broken.py line 1"],
        ),
        (
            "--custom-generate-function-path nowhere.py",
            ["--custom-generate-function-path", "nowhere.py"],
        ),
        ("--custom-generate-function-path no_such_package.f", ["no_such_package"]),
        ("--dynamic-sampling-filter-path one_std", ["--dynamic-sampling-filter-path", "one_std"]),
        ("--samples-per-insert 2", ["--samples-per-insert 2", "--max-times-sampled to 2"]),
        (
            "--max-times-sampled 3",
            [
                "--max-times-sampled 3",
                "--rollout-batch-size 8",
                "2.66667 fresh",
                "may be 1, 1.14286",
                "2, 2.66667",
            ],
        ),
        ("--max-times-sampled 2 --max-staleness 0", ["--max-times-sampled 2", "--max-staleness 0"]),
        ("--min-size-to-sample 9", ["--min-size-to-sample 9", "only 8 groups"]),
        ("--buffer-priority-path mine.py:score", ["--buffer-priority-path", "prioritized"]),
        ("--stale-policy drop", ["--stale-policy drop", "--async-buffer-size"]),
        ("--buffer-filter-path bare.py", ["--buffer-filter-path", "buffer_filter"]),
        ("--rm-type remote_rm", ["--rm-type remote_rm without --rm-url", "http://HOST:PORT"]),
        ("--rm-type remote_rm --rm-url localhost:8000", ["--rm-url localhost:8000", "http://"]),
        ("--rm-type judge", ["--rm-type judge: set --judge-url"]),
        (
            "--rm-type judge --judge-url 127.0.0.1:30000",
            ["--judge-url 127.0.0.1:30000", "http://HOST:PORT/v1"],
        ),
        ("--rm-type judge --judge-url http://h/v1", ["set --judge-model"]),
        (f"{JUDGE} --judge-prompt-path nowhere.txt", ["nowhere.txt", "expected a text file"]),
        (f"{JUDGE} --judge-prompt-path mine.py", ["mine.py has neither {response} nor {answer}"]),
        (f"{JUDGE} --judge-score-pattern (", ["--judge-score-pattern (", "no regular expression"]),
        (f"{JUDGE} --judge-score-pattern [0-9]", ["expected a group around the number"]),
        (f"{JUDGE} --judge-sampling-params 0", ["--judge-sampling-params 0", "JSON object"]),
        (f"{JUDGE} --judge-api-key-env NO_SUCH_KEY", ["NO_SUCH_KEY; export it"]),
        (f"{JUDGE} --judge-concurrency 0", ["--judge-concurrency 0", "at least 1"]),
        ("--rm-type ifbench", ["--rm-type ifbench", "git clone", "PYTHONPATH"]),
        ("--rm-type dapo --label-key none", ["--rm-type dapo without --label-key"]),
        ("--eval-interval 5", ["--eval-interval 5", "--eval-prompt-data"]),
        (
            "--use-routing-replay --use-rollout-logprobs",
            ["--use-routing-replay", "--use-rollout-logprobs"],
        ),
        ("--eval-interval 5 --eval-prompt-data a data.jsonl b", ["pairs", "3 words"]),
        ("--eval-interval 5 --eval-prompt-data a data.jsonl a data.jsonl", ["a twice"]),
        (
            "--eval-interval 5 --eval-prompt-data data.jsonl --eval-prompt-data data.jsonl",
            ["data.jsonl stands where a name belongs"],
        ),
        (
            "--eval-interval 5 --eval-prompt-data a nowhere.jsonl",
            ["--eval-prompt-data nowhere.jsonl"],
        ),
    ],
)
def test_what_is_refused(folder: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words(text))
    message = str(caught.value)
    assert [p for p in parts if p not in message] == [], message
    assert "\n" not in message


def megatron(**values: int) -> Config:
    return Config(run=load_config(["--mock"]).run, megatron=values)


@pytest.mark.parametrize(("name", "value"), [("moe_router_fusion", 1)])
def test_what_cannot_replay_experts_is_refused(name: str, value: int) -> None:
    flags = dataclasses.replace(Config().algorithm, use_routing_replay=True)
    with pytest.raises(ConfigError, match=f"--use-routing-replay with --{name.replace('_', '-')}"):
        validate(dataclasses.replace(megatron(**{name: value}), algorithm=flags))
    validate(dataclasses.replace(megatron(**{name: 0}), algorithm=flags))


def test_model_parallel_sizes_must_fit_the_learner_ranks() -> None:
    validate(megatron(tensor_model_parallel_size=1, context_parallel_size=1))
    with pytest.raises(ConfigError, match=r"--tensor-model-parallel-size 2"):
        validate(megatron(tensor_model_parallel_size=2))
    with pytest.raises(ConfigError, match="at least 1"):
        validate(megatron(pipeline_model_parallel_size=-1))


OUTSIDE = {
    "rollout_top_p": ["0", "1.1", "-0.5"],
    "rollout_top_k": ["0", "-2"],
    "eval_top_k": ["0", "-2"],
    "eval_top_p": ["0", "1.1"],
    "mock_failure_rate": ["-0.1", "1.1"],
    "eps_clip": ["0", "1.1"],
    "eps_clip_c": ["1", "0.5"],
    "correction_veto_threshold": ["0", "1"],
    "gamma": ["0", "1.1"],
    "lambd": ["-0.1", "1.1"],
    "rollout_temperature": ["0", "-1"],
    "log_probs_chunk_size": ["0", "-2"],
    **{name: ["-2"] for name in NEVER},
}


@pytest.mark.parametrize("field", sorted(RANGES))
def test_numbers_out_of_range_are_refused_by_name(field: str) -> None:
    flag = own_flags()[field.replace("_", "-")]
    for word in OUTSIDE.get(field, ["-1"]):
        with pytest.raises(ConfigError, match=rf"^--{flag.name} {float(word):g}(\.0)?: expected "):
            load_config(["--mock", f"--{flag.name}", word])


@pytest.mark.parametrize("mock", [True, False])
def test_prompts_without_a_scorer_are_refused_in_any_run(folder: Path, mock: bool) -> None:
    given = ["--hf-checkpoint", "model", "--prompt-data", "data.jsonl", *["--mock"] * mock]
    with pytest.raises(ConfigError, match=r"set --rm-type \(math, .*\) or --custom-rm-path"):
        load_config(given)


@pytest.mark.parametrize("word", ["0", "-1", "none"])
@pytest.mark.parametrize("field", NEVER)
def test_an_interval_may_be_never(field: str, word: str) -> None:
    flag = own_flags()[field.replace("_", "-")]
    config = load_config(["--mock", f"--{flag.name}", word])
    assert getattr(getattr(config, flag.section), field) == (None if word == "none" else 0)


def test_a_presets_evaluation_can_be_turned_off(folder: Path) -> None:
    preset = folder / "evaluates.yaml"
    preset.write_text("- --mock\n- --eval-prompt-data data.jsonl\n- --eval-interval 5\n")
    config = load_config(["--config", str(preset), "--eval-interval", "0"])
    assert config.eval.eval_interval == 0


def test_a_gpu_that_is_not_there_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"^--device cuda: .*--device cpu"):
        validate(dataclasses.replace(Config(), model=ModelConfig(device="cuda")))
    load_config(["--mock", "--device", "cuda"])


def test_every_number_has_a_range() -> None:
    free = {flag.field for flag in own_flags().values() if flag.kind in (int, float)} - set(RANGES)
    assert free == {"rollout_stop_token_ids", "reward_threshold", "eval_pass_reward"}


def test_a_function_that_rewards_its_samples_needs_no_scorer(folder: Path) -> None:
    agent = "async def generate(args, sample, sampling_params): sample.reward = 1\n"
    (folder / "agent.py").write_text(agent)
    load_config(words("--custom-generate-function-path agent.py --rm-type none"))
    with pytest.raises(ConfigError, match="set --rm-type"):
        load_config(words("--custom-generate-function-path mine.py --rm-type none"))
