"""Numbers out of range are refused at load by their own flag's name, other libraries' too."""

from __future__ import annotations

import pytest

from configs.command_line.loader import load_config
from configs.rules.foreign import MEGATRON, SGLANG
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES

EVERY = [("", name) for name in MEGATRON] + [("sglang-", name) for name in SGLANG]


@pytest.mark.parametrize(("prefix", "field"), EVERY)
def test_a_number_out_of_range_is_refused_by_its_flags_name(prefix: str, field: str) -> None:
    """Every name is a flag of the installed library; -5 is below all of the ranges."""
    flag = f"--{prefix}{field.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"^{flag} -5(\.0)?: expected "):
        load_config(["--mock", flag, "-5"], FAMILIES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--lr -1", "--lr -1.0: expected at least 0"),
        ("--lr nan", "--lr nan: expected at least 0"),
        ("--sglang-mem-fraction-static 3", "--sglang-mem-fraction-static 3.0: expected a share"),
        ("--sglang-mem-fraction-static 1", "above 0 and below 1"),
        ("--adam-beta2 1", "--adam-beta2 1.0: expected at least 0 and below 1"),
        ("--sglang-chunked-prefill-size 0", "-1 (off) or at least 1"),
    ],
)
def test_what_is_refused(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["--mock", *words.split()], FAMILIES)
    assert said in str(caught.value)


def test_what_is_in_range_passes() -> None:
    words = (
        "--lr 0 --clip-grad 0 --adam-beta1 0 --sglang-mem-fraction-static 0.5"
        " --sglang-chunked-prefill-size -1 --sglang-tp-size 1 --sglang-context-length none"
    )
    config = load_config(["--mock", *words.split()], FAMILIES)
    assert config.megatron["lr"] == 0 and config.sglang["mem_fraction_static"] == 0.5
