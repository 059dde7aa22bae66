"""slime's launch scripts, as they would be typed here: tests/data/slime_scripts.json has the flags
and values of all 44 (its scripts/ and examples/ at commit 624b824), shell variables expanded.

Those of a model family that we have load; of the others, the answer says what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.command_line.loader import load_config
from configs.command_line.preset_files import GivenFlag, split_words
from configs.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES
from pipeline.wiring.model_checks import check_model
from tests.conftest import ROOT
from tests.unit.model_configs import PUBLISHED

SCRIPTS = json.loads((ROOT / "tests/data/slime_scripts.json").read_text())
LINEAR_ATTENTION = "--spec slime_plugins.models.qwen3"
# What is said of those that do not load.
MISSING = {
    "examples/coding_agent_rl/run_qwen36_35b_a3b_swe_8nodes.sh": LINEAR_ATTENTION,
    "examples/delta_weight_sync/run-glm4.7-30B-A3B-delta.sh": "--update-weight-mode delta",
    "examples/fully_async/run-qwen3.5-9B-fully_async.sh": LINEAR_ATTENTION,
    "examples/geo3k_vlm/run_geo3k_qwen35.sh": LINEAR_ATTENTION,
    "scripts/run-glm4.7-30B-A3B.sh": "--enable-mtp-training",
    "scripts/run-glm5-744B-A40B.sh": "--spec slime_plugins.models.glm5",
    "scripts/run-glm5.2-744B-A40B.sh": "--spec slime_plugins.models.glm5",
    "scripts/run-mimo-7B-rl-eagle.sh": "--enable-mtp-training",
    "scripts/run-minimax-m2.sh": "--spec slime_plugins.models.minimax_m2",
    "scripts/run-qwen3-next-80B-A3B.sh": LINEAR_ATTENTION,
    "scripts/run-qwen3.5-27B.sh": LINEAR_ATTENTION,
    "scripts/run-qwen3.5-35B-A3B-sft.sh": LINEAR_ATTENTION,
}
LOAD = [name for name in SCRIPTS if name not in MISSING]
# The one shape that no preset of ours has, as its authors publish it.
KIMI_K2_THINKING: dict[str, Any] = {
    **PUBLISHED["kimi-k2"].config,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
    "rope_scaling": {**PUBLISHED["kimi-k2"].config["rope_scaling"], "factor": 64.0},
}
TORCH_DIST = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
YAML = {
    "custom-config-path": "tis_upper_bound: 2.0",
    "eval-config": "eval: {datasets: [{name: a, path: a.jsonl, rm_type: math, label_key: b}]}",
}
FUNCTIONS = """
async def generate(args, sample, sampling_params): ...
async def generate_with_multi_agents(args, sample, sampling_params, evaluation=False): ...
async def reward_func(args, sample, **kwargs): ...
def compute_mis_weights_with_cp(args, **kwargs): ...
"""
MODULES = ("generate_with_retool", "generate_with_search", "generate_with_tau")
EXAMPLES = ("multi_agent.rollout_with_multi_agents", "strands_sglang.generate_with_strands")
EXAMPLES = (*EXAMPLES, "train_infer_mismatch_helper.mis")


class Machine:
    """A folder that stands for the root of a machine with all that a script names."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def words(self, script: str) -> list[str]:
        """The script's, every path below our root and there."""
        model = SCRIPTS[script]["model"]
        return [
            word
            for flag in split_words(SCRIPTS[script]["args"])
            for word in (f"--{flag.name}", *self._values(flag, model))
        ]

    def _values(self, flag: GivenFlag, model: str | None) -> Iterator[str]:
        for value in flag.values:
            path = self.root / value.lstrip("./").partition("@[")[0]
            if value.startswith(("/", "./")) or flag.name in YAML:
                self._make(flag.name, path, model)
                yield str(self.root / value.lstrip("./"))
            else:
                yield value

    def _make(self, flag: str, path: Path, model: str | None) -> None:
        if flag == "hf-checkpoint":
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(json.dumps(shape_of(model)))
            for name in ("model.safetensors", "tokenizer.json"):
                (path / name).touch()
        elif flag in ("ref-load", "opd-teacher-load"):
            (path / "release").mkdir(parents=True, exist_ok=True)
            (path / "latest_checkpointed_iteration.txt").write_text("release")
            (path / "release/metadata.json").write_text(json.dumps(TORCH_DIST))
            (path / "release/.metadata").touch()
            (path / "release/common.pt").touch()
        elif flag in ("prompt-data", "eval-prompt-data", *YAML):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".parquet":
                chat = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
                pq.write_table(pa.table({"messages": [chat] * 128}), path)
            else:
                path.write_text(YAML.get(flag, ""))
        elif flag == "load" and path.name == "qwen3-4b_cp8_fp8":  # not where that script saves
            path.mkdir(parents=True, exist_ok=True)
            (path / "metrics.jsonl").touch()


def shape_of(model: str | None) -> dict[str, Any]:
    if model == "kimi-k2-thinking":
        return KIMI_K2_THINKING
    return PUBLISHED[model].config if model else {"model_type": "of_a_family_we_do_not_have"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "PYTHONPATH"
    for module in (*MODULES, *(f"examples.{name}" for name in EXAMPLES)):
        file = folder.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(folder))
    (tmp_path / "a.jsonl").touch()
    return Machine(tmp_path)


def load(machine: Machine, script: str) -> Config:
    return load_config(machine.words(script), FAMILIES)


def test_every_script_of_a_family_that_we_have_is_to_load() -> None:
    assert len(SCRIPTS) == 44
    assert [name for name, script in SCRIPTS.items() if script["model"]] == LOAD


@pytest.mark.parametrize("script", LOAD)
def test_a_script_loads(machine: Machine, script: str) -> None:
    assert load(machine, script).model.hf_checkpoint


@pytest.mark.parametrize("script", LOAD)
def test_its_model_arguments_agree_with_what_the_models_authors_publish(
    machine: Machine, script: str
) -> None:
    config = load(machine, script)
    check_model(config, Path(str(config.model.hf_checkpoint)))


@pytest.mark.parametrize("script", MISSING)
def test_of_the_others_the_answer_says_what_is_missing(machine: Machine, script: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(machine, script)
    said = str(caught.value)
    assert MISSING[script] in said and "did you mean" not in said and "\n" not in said
