"""--rollout-external-engine-addrs: addresses that are none are refused before anything starts."""

from __future__ import annotations

import pytest

from configs.command_line.dump import dump_config
from configs.command_line.loader import load_config
from configs.command_line.preset_files import GivenFlag
from configs.rules.external_engines import external_endpoints
from configs.schema import flags_of, flat_args
from pipeline.core.engine_auth import engine_headers
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES

FLAG = "--rollout-external-engine-addrs"


def load(words: str) -> object:
    return load_config(["--mock", *words.split()], FAMILIES)


def test_engines_are_as_many_as_addresses() -> None:
    words = f"{FLAG} a:1 http://b:2/ [::1]:3 --rollout-num-gpus 8 --rollout-num-gpus-per-engine 2"
    config = load_config(["--mock", *words.split()], FAMILIES)
    assert external_endpoints(config) == ["http://a:1", "http://b:2", "http://[::1]:3"]
    assert config.num_engines == 3
    args = flat_args(config)
    assert args.rollout_external and args.rollout_num_engines == 3
    assert not flat_args(load_config(["--mock"])).rollout_external


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("10.0.0.7", f"{FLAG} 10.0.0.7: it has no port. Expected host:port"),
        (":30000", f"{FLAG} :30000: it has no host"),
        ("a:x", "its port is no number"),
        ("a:70000", "its port is no number"),
        ("https://a:1", "it begins with https://"),
        ("a:1/v1", "more than a host and a port"),
        ("a:1 b:1 http://a:1", f"{FLAG} names http://a:1 twice (a:1 and http://a:1)"),
        ("a:1 --colocate --async-buffer-size 0", f"{FLAG} with --colocate"),
        ("a:1 --offload-rollout", f"{FLAG} with --offload-rollout"),
    ],
)
def test_mistakes(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(f"{FLAG} {words}")
    assert said in str(caught.value)


def test_one_key_opens_generation_and_control() -> None:
    assert engine_headers({}) == {}
    for given in ({"api_key": "k"}, {"admin_api_key": "k"}, {"api_key": "k", "admin_api_key": "k"}):
        assert engine_headers(given) == {"Authorization": "Bearer k"}
    with pytest.raises(ConfigError, match="Drop --sglang-admin-api-key"):
        load("--sglang-api-key a --sglang-admin-api-key b")


def test_the_key_is_shown_nowhere_and_kept_nowhere() -> None:
    words = ["--mock", "--sglang-api-key", "sesame", "--sglang-admin-api-key", "sesame"]
    config = load_config(words, FAMILIES)
    assert engine_headers(config.sglang) == {"Authorization": "Bearer sesame"}
    assert "sesame" not in dump_config(config) and "sesame" not in str(flags_of(config))
    assert str(GivenFlag(name="sglang-api-key", values=("sesame",))) == "--sglang-api-key ***"
    assert str(GivenFlag(name="sglang-log-level", values=("info",))) == "--sglang-log-level info"
