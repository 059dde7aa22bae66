"""`eval`: which weights and which configuration a command line means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.command_line.preset_files import split_words
from configs.schema import Config
from pipeline.cli.evaluation import evaluation_of
from pipeline.core.errors import CheckpointError, ConfigError
from pipeline.wiring.evaluation_run import Evaluated

DATA = "--eval-prompt-data a a.jsonl --rm-type math --label-key label"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, data, and a run with one checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "1+2=", "label": "3"}\n')
    for model in ("model", "runs/m/checkpoints/rollout_000007/hf"):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.json").write_text("{}")
    run = tmp_path / "runs" / "m"
    (run / "config.yaml").write_text(
        "- --name m\n- --prompt-data gone.jsonl\n- --rollout-temperature 0.7\n- --colocate\n"
        "- --num-rollout-workers 2\n- --use-opd\n- --opd-teacher-load gone\n"
    )
    snapshot = run / "checkpoints" / "rollout_000007"
    clock = {"pushes": 3, "version_offset": 2, "trained": 7}
    (snapshot / "state.json").write_text(json.dumps({"state_version": 2, "clock": clock}))
    (snapshot / "DONE").write_text("7\n")
    (run / "checkpoints" / "latest").symlink_to(snapshot.name)
    return tmp_path


def asked(text: str) -> tuple[Config, Evaluated]:
    return evaluation_of(split_words(text.split()))


@pytest.mark.parametrize("load", ["runs/m", "runs/m/checkpoints", "runs/m/checkpoints/latest"])
def test_a_run_leads_to_its_weights_version_and_flags(load: str, folder: Path) -> None:
    config, weights = asked(f"--load {load} {DATA}")
    hf = folder / "runs" / "m" / "checkpoints" / "rollout_000007" / "hf"
    assert weights == Evaluated(model=str(hf), policy_version=5, num_trained=7)
    assert config.model.hf_checkpoint == str(hf) and config.rollout.rollout_temperature == 0.7
    assert (config.run.name, config.run.load, config.run.debug_rollout_only) == ("eval", None, True)
    assert not config.cluster.colocate and config.cluster.num_rollout_workers == 0
    assert not config.distill.use_opd and config.eval.eval_interval == 1


def test_a_model_of_somebody_elses_has_version_0_and_needs_no_prompts_of_training() -> None:
    config, weights = asked(f"--load model {DATA} --name mine --eval-temperature 0")
    assert weights.policy_version == weights.num_trained == 0
    assert config.run.name == "mine" and config.data.prompt_data is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DATA, "--load CHECKPOINT: expected one"),
        (f"--load a --load b {DATA}", "--load CHECKPOINT: expected one"),
        ("--load model", "nothing to evaluate on: add --eval-prompt-data"),
        (f"--load nowhere {DATA}", "--load nowhere: no such folder"),
        (f"--load model --hf-checkpoint x {DATA}", "--hf-checkpoint x: `eval` says that itself"),
        (f"--load model --eval-interval 3 {DATA}", "--eval-interval 3: `eval` says that itself"),
        (
            f"--load model {DATA} --rollout-external-engine-addrs h:30000",
            "--rollout-external-engine-addrs: engines that run already have weights",
        ),
        (f"--load model {DATA} --eval-top-p 2", "--eval-top-p 2"),
        ("--load model --eval-prompt-data a a.jsonl", "says nothing of rewards"),
        ("--load model --eval-prompt-data a b.jsonl --rm-type random", "b.jsonl: no such file"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        asked(text)
    assert said in str(refused.value)


def test_a_folder_without_a_model_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty holds no model"):
        asked(f"--load empty {DATA}")
