from __future__ import annotations

import subprocess
import sys

import pytest

from stages.engine import server_args as flags


def test_names_are_found_without_importing_sglang() -> None:
    code = """
import sys
from stages.engine.server_args import server_arg_names
print(len(server_arg_names()), any(name.split(".")[0] in ("sglang", "torch") for name in sys.modules))
"""  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, imported = done.stdout.split()
    assert int(count) > 500 and imported == "False"


@pytest.mark.parametrize(
    ("name", "field", "flag", "is_switch", "takes_list"),
    [
        ("mem_fraction_static", "mem_fraction_static", "--mem-fraction-static", False, False),
        ("tensor-parallel-size", "tp_size", "--tp-size", False, False),
        ("disable_radix_cache", "disable_radix_cache", "--disable-radix-cache", True, False),
        ("lora_paths", "lora_paths", "--lora-paths", False, True),
        # registered by hand in SGLang
        ("reasoning_parser", "reasoning_parser", "--reasoning-parser", False, False),
        ("disable_cuda_graph", "disable_cuda_graph", "--disable-cuda-graph", True, False),
    ],
)
def test_an_option(name: str, field: str, flag: str, is_switch: bool, takes_list: bool) -> None:
    arg = flags.server_arg(name)
    assert (arg.field, arg.flag, arg.is_switch, arg.takes_list) == (
        field,
        flag,
        is_switch,
        takes_list,
    )


def test_fields_without_a_command_line_are_left_out() -> None:
    assert "_radix_eviction_policy_explicitly_set" not in flags.server_arg_names()
    with pytest.raises(KeyError):
        flags.server_arg("no_such_option")


def test_help_is_one_line_of_text() -> None:
    said = flags.server_arg("radix_eviction_policy").help
    assert said.startswith("The eviction policy of radix trees.") and "\n" not in said


def test_values_become_a_command_line() -> None:
    values = {
        "port": 1,
        "disable_radix_cache": True,
        "skip_server_warmup": False,
        "context_length": None,
        "lora_paths": ("a", "b"),
        "radix_eviction_policy_config": {"threshold": 2},
        "lora_strict_loading": False,
    }
    assert flags.to_command_line(values) == [
        "--port",
        "1",
        "--disable-radix-cache",
        "--lora-paths",
        "a",
        "b",
        "--radix-eviction-policy-config",
        '{"threshold": 2}',
        "--no-lora-strict-loading",
    ]
