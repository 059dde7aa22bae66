"""The user's functions on a real Megatron rank: when they are called, and with what."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.core.errors import UserFunctionError
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
        rank.step(cases.make_batch(*steps, rollout_id=4))
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
            rank.step(cases.make_batch(*steps, rollout_id=9))
    finally:
        rank.close()
