"""A teacher that is a torch_dist checkpoint is converted for its engine, weight by weight."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import CheckpointError
from pipeline.wiring.teacher_folder import teacher_folder
from tests.integration.learn import learner_cases as cases
from tests.integration.learn.test_convert import run, same

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_megatron_checkpoint_becomes_a_folder_that_an_engine_reads(tmp_path: Path) -> None:
    policy = cases.make_model("qwen3", tmp_path / "policy", tied=True)
    (policy / "tokenizer.json").write_text("{}")
    run("hf-to-torch-dist", "--hf-checkpoint", policy, "--output", tmp_path / "megatron")
    place = tmp_path / "teacher"
    assert teacher_folder(str(policy), policy, place, seed=0) == policy and not place.exists()
    assert teacher_folder(str(tmp_path / "megatron"), policy, place, seed=0) == place
    assert same(policy, place)
    (place / "mark").touch()
    teacher_folder(str(tmp_path / "megatron"), policy, place, seed=0)
    assert (place / "mark").exists()  # it is not converted again


def test_a_teacher_of_another_shape_is_refused_in_one_line(tmp_path: Path) -> None:
    policy = cases.make_model("qwen3", tmp_path / "policy", tied=True)
    other = cases.make_model("llama", tmp_path / "other", tied=False)
    run("hf-to-torch-dist", "--hf-checkpoint", other, "--output", tmp_path / "megatron")
    with pytest.raises(CheckpointError, match=r"--opd-teacher-load .*does not fit the model of"):
        teacher_folder(str(tmp_path / "megatron"), policy, tmp_path / "teacher", seed=0)
