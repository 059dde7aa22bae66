"""The user's functions on a real Megatron rank: when they are called, and with what."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.errors import ConfigError, UserFunctionError
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
FUNCTIONS = """
import json
from pathlib import Path

SEEN = Path(__file__).with_name("seen.jsonl")

def say(*what):
    with SEEN.open("a") as file:
        file.write(json.dumps(what) + "\\n")

def megatron_init(args):
    from megatron.core import parallel_state
    say("init", parallel_state.is_initialized(), args.advantage_estimator)

def before_log_prob(args, model, store_prefix):
    say("log_prob", len(model), store_prefix)

def before_train_step(args, rollout_id, step_id, model, optimizer, opt_param_scheduler):
    say("step", rollout_id, step_id, len(list(model[0].parameters())) > 0)
    if rollout_id == 9:
        raise OverflowError("nine")
"""


def test_hooks_are_called_where_slime_calls_them(tmp_path: Path) -> None:
    from stages.learn.megatron import start_rank

    file = tmp_path / "hooks.py"
    file.write_text(FUNCTIONS)
    model = cases.make_model("qwen3", tmp_path / "model", tied=True)
    settings = cases.settings(model, use_kl_loss=True)
    names = ("init", "before_log_prob_hook", "before_train_step_hook")
    paths = {f"custom_megatron_{name}_path": str(file) for name in names}
    config = settings.config
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **paths))  # type: ignore[arg-type]
    rank = start_rank(dataclasses.replace(settings, config=config))
    try:
        steps = [cases.make_step(cases.make_samples(cases.LENGTHS, seed)) for seed in (0, 1)]
        cases.step(rank, cases.make_batch(*steps, rollout_id=4))
        seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
        assert seen[0] == ["init", True, "grpo"]
        # the first step's old log-probs are its own
        assert seen[1:] == [
            ["log_prob", 1, ""],
            ["log_prob", 1, "ref_"],
            ["log_prob", 1, "ref_"],
            ["step", 4, 0, True],
            ["step", 4, 1, True],
        ]
        with pytest.raises(UserFunctionError, match=r"OverflowError: nine .*hooks.py line 21"):
            cases.step(rank, cases.make_batch(*steps, rollout_id=9))
    finally:
        rank.close()


PROVIDERS = """
from megatron.core.models.gpt.gpt_model import GPTModel

class Mine(GPTModel):
    pass

def mine(pre_process, post_process):
    raise NotImplementedError

def changed(*, build, **place):
    model = build()
    assert set(place) == {"pre_process", "post_process", "vp_stage"}
    model.__class__ = Mine  # one that knows nothing of our way to make logits
    return model

def nothing(pre_process, post_process, vp_stage=None):
    return None
"""


def rank_with_provider(model: Path, spec: str) -> object:
    from stages.learn.megatron import start_rank

    settings = cases.settings(model)
    config = settings.config
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, custom_model_provider_path=spec)
    )
    return start_rank(dataclasses.replace(settings, config=config))


def weights_after_a_step(rank: Any) -> dict[str, torch.Tensor]:
    step = cases.make_step(cases.make_samples(cases.LENGTHS, 0))
    try:
        cases.step(rank, cases.make_batch(step))
        return {name: p.detach().clone() for name, p in rank._built.models[0].named_parameters()}
    finally:
        rank.close()


def test_a_model_provider_makes_the_parts(tmp_path: Path) -> None:
    """A part of a foreign class trains as ours does, and what the example freezes stays."""
    from stages.learn.megatron import start_rank

    file = tmp_path / "providers.py"
    file.write_text(PROVIDERS)
    model = cases.make_model("qwen3", tmp_path / "model", tied=False)
    usual = weights_after_a_step(start_rank(cases.settings(model)))
    foreign = weights_after_a_step(rank_with_provider(model, f"{file}:changed"))
    assert usual.keys() == foreign.keys()
    assert all(torch.equal(usual[name], foreign[name]) for name in usual)

    example = Path(__file__).parents[3] / "examples/hooks/model_provider.py"
    frozen = weights_after_a_step(rank_with_provider(model, str(example)))
    same = {name for name in usual if torch.equal(usual[name], frozen[name])}
    ends = {name for name in usual if name.startswith(("embedding", "output_layer"))}
    assert ends and not same & ends  # trained usually, not here
    first = start_rank(cases.settings(model))
    try:
        begun = dict(first._built.models[0].named_parameters())
        assert all(torch.equal(begun[name], frozen[name]) for name in ends)
        assert not any(torch.equal(begun[n], frozen[n]) for n in usual if n not in ends)
    finally:
        first.close()


def test_a_model_provider_that_makes_no_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "providers.py"
    file.write_text(PROVIDERS)
    model = cases.make_model("qwen3", tmp_path / "model", tied=False)
    with pytest.raises(ConfigError, match=r"--custom-model-provider-path .*got NoneType"):
        rank_with_provider(model, f"{file}:nothing")
    with pytest.raises(UserFunctionError, match=r"NotImplementedError.*providers.py line 8"):
        rank_with_provider(model, f"{file}:mine")
