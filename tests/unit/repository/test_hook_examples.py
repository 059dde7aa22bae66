"""Every example in examples/hooks is found by its flag's default name and does what its first line
says, on plausible samples."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from buffers.priority import user_priority
from buffers.userfilter import Choice, UserFilter
from configs.hooks import load_hook
from configs.schema import AlgorithmConfig, Config, flat_args
from pipeline.core.time import MonotonicTime
from pipeline.core.types import Completion, Group, Sample, Status, VersionSpan
from stages.advantage import compute_advantages, load_hooks
from stages.advantage.postprocess import load_postprocess
from stages.engine.mock import MockTokenizer
from stages.evaluate import FunctionEvaluator
from stages.filter import build_all_samples_process, build_filter, build_sample_filter
from stages.generate.rollout_function import EvalFunction
from stages.generate.sample_hook import SampleHook
from stages.learn.settings import LearnerSettings
from stages.learn.step_objective import StepObjective
from stages.source import UserSource
from tests.conftest import ROOT
from tests.unit.stages.advantage.test_advantage import make_sample
from tests.unit.stages.gateway.gateway_world import open_world

HOOKS = ROOT / "examples" / "hooks"
ARGS = flat_args(Config())


def hook(name: str) -> str:
    return str(HOOKS / f"{name}.py")


def groups(*rewards: list[float]) -> list[Group]:
    return [
        Group(
            group_index=g,
            deadline=0,
            admitted_version=0,
            samples=tuple(
                make_sample(r, n=2 + i, index=10 * g + i, group_index=g) for i, r in enumerate(rs)
            ),
        )
        for g, rs in enumerate(rewards)
    ]


def own(**paths: str) -> Any:
    config = AlgorithmConfig(**paths)  # type: ignore[arg-type]
    return load_hooks(config, ARGS)


async def test_generate_fans_out() -> None:
    class Client:
        async def generate(
            self, input_ids: Any, sampling_params: Any, *, session_id: str | None = None
        ) -> Completion:
            return Completion(
                token_ids=(65, 66),
                log_probs=(-1.0, -2.0),
                spans=(VersionSpan(4, 0, 2),),
                finish_reason="stop",
            )

    args = SimpleNamespace(
        engine_client=Client(),
        tokenizer=MockTokenizer(),
        max_turns=2,
        context_length=None,
        time=MonotonicTime(),
    )
    function: Any = load_hook("custom_generate_function_path", hook("generate"))
    made = await function(args, Sample(index=7, tokens=[1, 2]), {"max_new_tokens": 8})
    assert [(s.index, s.response, s.status) for s in made] == [(7, "AB", Status.COMPLETED)] * 2
    assert made[0].session_id != made[1].session_id
    assert (
        len(await function(args, Sample(tokens=[1]), {"max_new_tokens": 8}, evaluation=True)) == 1
    )


async def test_an_agent_asks_doubts_and_rewards() -> None:
    function: Any = load_hook("agent_function_path", hook("agent"))
    async with open_world("5", "so 4", "4", "5") as world:
        task = {"prompt": "2+2=", "label": "4", "model": "policy"}
        access = world.access.base_url, world.access.token
        assert [await function(task, *access) for _ in range(2)] == [1.0, 0.0]
        first, second = world.session.tree.branches()  # the same question, asked twice
        assert first.num_prompt == second.num_prompt
        assert [sum(b.loss_mask) for b in (first, second)] == [len("5so 4"), len("45")]


async def test_group_reward_shares_one_point() -> None:
    function: Any = load_hook("custom_rm_path", hook("group_reward"))
    assert await function(ARGS, [Sample(response=r, label="4") for r in ("4", "5", " 4 ")]) == [
        0.5,
        0.0,
        0.5,
    ]


@pytest.mark.parametrize(
    ("rewards", "reason"), [([1.0, 1.0], "too_easy"), ([0.0, 0.0], "too_hard"), ([0.0, 1.0], None)]
)
def test_dynamic_filter(rewards: list[float], reason: str | None) -> None:
    verdict = build_filter(hook("dynamic_filter"), ARGS)([Sample(reward=r) for r in rewards])
    assert (verdict.keep, verdict.reason) == (reason is None, reason)


def test_data_source_goes_on_where_it_was(tmp_path: Path) -> None:
    args = SimpleNamespace(n_samples_per_prompt=2, save=str(tmp_path), runs_dir="runs")
    source = UserSource(hook("data_source"), args, 2)
    source.get_samples(3)
    state = source.state_dict()
    want = [g[0].prompt for g in source.get_samples(2)]
    again = UserSource(hook("data_source"), args, 2)
    again.load_state_dict(state)
    assert [g[0].prompt for g in again.get_samples(2)] == want


def test_reward_post_process_ranks_within_groups() -> None:
    hooks = own(custom_reward_post_process_path=hook("reward_post_process"))
    rows = compute_advantages(groups([0.0, 900.0, 1.0], [5.0, 5.0]), policy_version=3, hooks=hooks)
    assert [float(r.advantages[0]) for r in rows] == [-1.0, 1.0, 0.0, 0.0, 0.0]
    assert [r.reward for r in rows] == [0.0, 900.0, 1.0, 5.0, 5.0]


def test_convert_samples_takes_the_loss_from_the_last_token_of_what_was_cut_off() -> None:
    made = groups([0.0, 1.0], [2.0])
    made[0].samples[1].status = Status.TRUNCATED
    rows = compute_advantages(
        made,
        policy_version=3,
        hooks=own(custom_convert_samples_to_train_data_path=hook("convert_samples")),
    )
    assert [r.loss_mask.tolist() for r in rows] == [[1, 1], [1, 1, 0], [1, 1]]
    assert [float(r.advantages[0]) for r in rows] == [-1.0, 0.0, 1.0]
    assert [(r.index, r.group_index, r.staleness, r.weight) for r in rows] == [
        (0, 0, 0, 1.0),
        (1, 0, 0, 1.0),
        (10, 1, 0, 1.0),
    ]


def test_advantages_grow_towards_the_end() -> None:
    rows = compute_advantages(
        groups([0.0, 1.0, 2.0]),
        policy_version=3,
        hooks=own(custom_advantage_function_path=hook("advantages")),
    )
    np.testing.assert_allclose(rows[0].advantages, [-0.5, -1.0], rtol=1e-5)
    np.testing.assert_allclose(rows[2].advantages, np.linspace(0.5, 1.0, 4), rtol=1e-5)


def test_buffer_filter_takes_the_newest_and_removes_what_was_cut_off() -> None:
    def group(index: int, version: int, *statuses: Status) -> Group:
        samples = [
            Sample(
                status=s,
                response_length=1,
                loss_mask=[1],
                weight_versions=[VersionSpan(version, 0, 1)],
            )
            for s in statuses
        ]
        return Group(
            group_index=index, deadline=9, admitted_version=version, samples=tuple(samples)
        )

    cut, whole = Status.TRUNCATED, Status.COMPLETED
    choose = UserFilter(
        "buffer_filter.py", load_hook("buffer_filter_path", hook("buffer_filter")), ARGS
    )
    got = choose(
        0,
        [group(0, 3, whole), group(1, 5, cut, cut), group(2, 4, cut, whole), group(3, 5, whole)],
        2,
    )
    assert got == Choice(wanted=(3, 2), removed=(1,))


def test_priority_is_largest_where_half_are_right() -> None:
    priority = user_priority(
        "priority.py", load_hook("buffer_priority_path", hook("priority")), ARGS
    )
    got = [
        priority(g)
        for g in groups(
            [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]
        )
    ]
    assert got == [0.0, 3 / 16, 1 / 4, 0.0]


def test_loss_and_correction_are_found_by_their_default_names() -> None:
    """What they do: test_example_custom_loss.py."""
    config = AlgorithmConfig(
        loss_type="custom_loss",
        custom_loss_function_path=hook("custom_loss"),
        custom_tis_function_path=hook("custom_loss"),
    )
    assert StepObjective(LearnerSettings(config=Config(algorithm=config))).has_extra_metrics


def test_sample_filter_spares_groups_that_are_all_cut_off() -> None:
    made = [
        [Sample(status=s) for s in (Status.TRUNCATED, Status.COMPLETED)],
        [Sample(status=Status.TRUNCATED)],
    ]
    apply = build_sample_filter(hook("sample_filter"), ARGS)
    assert apply is not None
    apply(made)
    assert [[s.remove_sample for s in g] for g in made] == [[True, False], [False]]


def test_all_samples_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    process = build_all_samples_process(hook("all_samples"), ARGS, object())
    assert process is not None
    with caplog.at_level("INFO", logger="slipstream.hooks"):
        process([[Sample(response_length=3), Sample(response_length=4)], [Sample()]])
    assert "2 groups, 3 samples, 7 response tokens" in caplog.text


def test_every_example_is_covered_and_listed() -> None:
    page = (ROOT / "docs" / "custom-functions.md").read_text()
    source = inspect.getsource(inspect.getmodule(test_every_example_is_covered_and_listed))  # type: ignore[arg-type]
    for file in HOOKS.glob("*.py"):
        assert f'hook("{file.stem}")' in source, file
        assert f"(../examples/hooks/{file.name})" in page, file


async def test_sample_hook_notes_what_repeats() -> None:
    look = SampleHook(hook("sample_hook"))
    given = Sample(response="a b a b")
    assert await look(ARGS, given, False) is given
    assert given.metadata["distinct_words"] == 0.5


def test_postprocess_takes_the_loss_from_first_tokens() -> None:
    config = AlgorithmConfig(rollout_data_postprocess_path=hook("postprocess"))
    postprocess = load_postprocess(config, ARGS)
    assert postprocess is not None
    rows = compute_advantages(groups([0.0, 1.0]), policy_version=3)
    made = postprocess(7, rows)
    assert [r.loss_mask.tolist() for r in made] == [[0, 1], [0, 1, 1]]
    assert all((a.advantages == b.advantages).all() for a, b in zip(made, rows, strict=True))


def test_megatron_hooks_say_what_a_rank_goes_through(caplog: pytest.LogCaptureFixture) -> None:
    """On a real rank: tests/integration/learn/test_megatron_hooks.py."""
    names = ("init", "before_log_prob_hook", "before_train_step_hook")
    fields = [f"custom_megatron_{name}_path" for name in names]
    init, log_prob, step = (load_hook(field, hook("megatron_hooks")) for field in fields)
    with caplog.at_level("INFO", logger="slipstream.hooks"):
        init(ARGS)
        log_prob(ARGS, [None], "ref_")
        step(ARGS, 3, 1, [None], None, None)
    assert [r.getMessage() for r in caplog.records] == [
        f"Megatron is initialised, seed {ARGS.seed}",
        "log-probs of 1 model parts, 'ref_'",
        "rollout 3, optimizer step 1",
    ]


def test_a_model_provider_freezes_both_ends() -> None:
    """On a real rank: tests/integration/learn/test_megatron_hooks.py."""

    class End:
        weight: Any = 1
        trains = True

        def requires_grad_(self, trains: bool) -> None:
            self.trains = trains

    model = SimpleNamespace(embedding=End(), output_layer=End())
    provide = load_hook("custom_model_provider_path", hook("model_provider"))
    provide(pre_process=True, post_process=False, build=lambda: model)
    assert (model.embedding.trains, model.output_layer.trains) == (False, True)
    model.output_layer.weight = None  # it is the embedding's
    provide(pre_process=False, post_process=True, build=lambda: model)
    assert model.output_layer.trains
    model.output_layer.weight = 1
    provide(pre_process=False, post_process=True, vp_stage=1, build=lambda: model)
    assert not model.output_layer.trains


def test_log_functions_measure_right_answers(caplog: pytest.LogCaptureFixture) -> None:
    train = load_hook("custom_rollout_log_function_path", hook("log_functions"))
    evaluation = load_hook("custom_eval_rollout_log_function_path", hook("log_functions"))
    samples = [Sample(reward=r, response_length=n) for r, n in ((1.0, 4), (0.0, 9), (1.0, 6))]
    with caplog.at_level("INFO", logger="slipstream.hooks"):
        train(2, ARGS, samples, {}, 1.25)
        evaluation(2, ARGS, {"aime": {"samples": samples}}, {})
    assert [r.getMessage() for r in caplog.records] == [
        "rollout 2: right answers have 5.0 tokens, 1.2 s",
        "evaluation aime after 2 rollouts: right answers have 5.0 tokens",
    ]


async def test_rollout_function_evaluates_without_engines() -> None:
    """What generate_rollout does: tests/integration/run/test_rollout_function.py."""
    assert load_hook("rollout_function_path", hook("rollout_function"))
    evaluation = EvalFunction(hook("rollout_function") + ":eval_rollout", ARGS, NoPrompts())
    (result,) = await FunctionEvaluator(evaluation, evaluation.flag).evaluate(3)
    assert (result.name, result.reward_mean, result.num_samples) == ("constant", 0.75, 2)
    assert (result.rollout_id, result.truncated_fraction, result.error) == (3, 0.5, None)


class NoPrompts:
    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        return [[Sample()] for _ in range(num_samples)]

    def add_samples(self, groups: list[list[Sample]]) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
