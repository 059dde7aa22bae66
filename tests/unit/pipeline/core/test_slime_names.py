"""slime's module names: found by users' functions, by nobody else, and never before a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.own_files import HOME
from pipeline.core.userfn import check_function, load_function

# what slime's examples import, as they write it
NAMES = {
    "slime.utils.types": ["Sample"],
    "slime.utils.http_utils": ["post", "get"],
    "slime.utils.misc": ["load_function", "SingletonMeta"],
    "slime.utils.mask_utils": ["MultiTurnLossMaskGenerator", "get_response_lengths"],
    "slime.utils.processing_utils": [
        "load_tokenizer",
        "load_processor",
        "build_processor_kwargs",
        "encode_image_for_rollout_engine",
    ],
    "slime.rollout.sglang_rollout": ["GenerateState", "get_model_url"],
    "slime.rollout.rm_hub": ["async_rm", "batched_async_rm", "grade_answer_verl", "math_utils"],
    "slime.rollout.rm_hub.math_utils": ["extract_answer"],
    "slime.rollout.rm_hub.math_dapo_utils": ["compute_score"],
    "slime.rollout.rm_hub.deepscaler": ["get_deepscaler_rule_based_reward"],
    "slime.rollout.rm_hub.f1": ["f1_score"],
    "slime.rollout.rm_hub.gpqa": ["compute_gpqa_reward"],
    "slime.rollout.rm_hub.ifbench": ["compute_ifbench_reward"],
    "slime.rollout.data_source": [
        "DataSource",
        "RolloutDataSource",
        "RolloutDataSourceWithBuffer",
        "pop_first",
    ],
    "slime.rollout.base_types": ["RolloutFnTrainOutput", "RolloutFnEvalOutput"],
    "slime.rollout.filter_hub.base_types": ["DynamicFilterOutput"],
    "slime.rollout.filter_hub.dynamic_sampling_filters": [
        "check_reward_nonzero_std",
        "check_reward_nonzero_std_with_fallback",
    ],
    "slime.backends.megatron_utils.cp_utils": ["all_gather_with_cp", "slice_log_prob_with_cp"],
}


def run(script: str, folder: Path, *path: Path) -> str:
    """What a new process prints, run in `folder`."""
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PYTHONPATH": ":".join(map(str, (*path, HOME)))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def file_of(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:function"


@pytest.mark.parametrize("module", NAMES)
def test_the_names_are_there_at_the_top_and_within_functions(module: str, tmp_path: Path) -> None:
    names = ", ".join(NAMES[module])
    spec = file_of(
        tmp_path,
        f"from {module} import {names}\nimport {module} as m\nabove = [{names}]\n"
        f"def function():\n    from {module} import {names}\n    return [{names}] == above\n",
    )
    assert load_function(spec)()


def test_a_module_and_what_it_imports_find_them_too(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "from deep import Sample\ndef function(): import slime.utils.types as t; return t.Sample\n"
    )
    (tmp_path / "deep.py").write_text("from slime.utils.types import Sample\n")
    script = (
        "from pipeline.core.userfn import load_function; import slipstream;"
        "print(load_function('theirs.function')() is slipstream.Sample)"
    )
    assert run(script, tmp_path, tmp_path) == "True"


def test_nobody_else_finds_them(tmp_path: Path) -> None:
    script = (
        "import train_async, slipstream, pipeline.core.userfn, importlib.util;"
        "print(importlib.util.find_spec('slime'))"
    )
    assert run(script, tmp_path) == "None"


def test_a_real_slime_counts(tmp_path: Path) -> None:
    folder = tmp_path / "installed" / "slime" / "utils"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "types.py").write_text("Sample = 'theirs'\n")
    spec = file_of(
        tmp_path, "from slime.utils.types import Sample\ndef function(): return Sample\n"
    )
    script = f"from pipeline.core.userfn import load_function; print(load_function({spec!r})())"
    assert run(script, tmp_path, tmp_path / "installed") == "theirs"


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("from slime.utils.types import ParamInfo", "slime.utils.types.ParamInfo is not"),
        ("import slime.agent.sandbox", "slime.agent is not .*: slipstream.open_session"),
        ("from slime.utils import ppo_utils", "slime.utils.ppo_utils is not .* hooks"),
        ("from slime.rollout.rm_hub import remote", "rm_hub.remote is not .*--rm-type"),
        ("from slime.rollout.sglang_rollout import eval_rollout", "--custom-generate-function"),
        ("import slime.nowhere", "slime.nowhere is not .*docs/custom-functions.md"),
    ],
)
def test_what_is_not_there_is_answered_in_one_line(
    statement: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says) as told:
        load_function(file_of(tmp_path, f"{statement}\ndef function(): pass\n"))
    assert "\n" not in str(told.value) and "mine.py, line 1" in str(told.value)


def test_who_probes_goes_on(tmp_path: Path) -> None:
    text = "try:\n    import slime.agent\nexcept ImportError:\n    found = False\n"
    assert load_function(file_of(tmp_path, text + "def function(): return found\n"))() is False


def test_a_flag_may_name_slimes_own_function() -> None:
    spec = "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"
    source = check_function(spec)
    assert source is not None and source.file.is_file() and callable(load_function(spec))
