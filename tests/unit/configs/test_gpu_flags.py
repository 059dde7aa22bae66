"""Flags about GPUs, checked on a machine without one."""

from __future__ import annotations

import pytest

from configs.command_line.loader import load_config
from configs.rules import sizes
from configs.schema import flat_args
from pipeline.core.errors import ConfigError


def test_variables_of_the_ranks_are_read_as_slime_reads_them() -> None:
    config = load_config(["--mock", "--train-env-vars", '{"NCCL_DEBUG": "INFO", "N": 2}'])
    assert config.cluster.train_environment == {"NCCL_DEBUG": "INFO", "N": "2"}
    assert flat_args(config).train_env_vars == {"NCCL_DEBUG": "INFO", "N": "2"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("A=1", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"A": {}}', "expected a JSON object"),
        ('{"CUDA_VISIBLE_DEVICES": "1"}', "what Ray gave a rank"),
        ('{"NCCL_CUMEM_ENABLE": 1}', "export NCCL_CUMEM_ENABLE=1"),
        ('{"NCCL_NVLS_ENABLE": "0"}', "export NCCL_NVLS_ENABLE=0"),
    ],
)
def test_variables_that_cannot_be_a_ranks_alone_are_refused(given: str, named: str) -> None:
    with pytest.raises(ConfigError, match="--train-env-vars") as caught:
        load_config(["--mock", "--train-env-vars", given])
    assert named in str(caught.value)


def test_without_a_group_in_common_a_rank_may_have_its_own() -> None:
    words = ["--mock", "--weight-transport", "disk", "--train-env-vars", '{"NCCL_NVLS_ENABLE": 1}']
    assert load_config(words).cluster.train_environment == {"NCCL_NVLS_ENABLE": "1"}


def test_gpus_that_cannot_be_used_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "why_unused", lambda: "8 GPUs are here, and torch is not for them")
    words = ["--hf-checkpoint", "tiny:qwen3"]
    with pytest.raises(ConfigError, match=r"^--device auto: 8 GPUs are here.*--device cpu"):
        load_config(words)
    for given in (["--device", "cpu"], ["--mock"]):
        with pytest.raises(ConfigError) as caught:  # for something else
            load_config([*words, *given, "--eps-clip", "0"])
        assert "--device" not in str(caught.value)
