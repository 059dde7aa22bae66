"""The generate stage: single-turn, custom functions in slime's signatures, failures as data."""

from __future__ import annotations

import asyncio
import copy
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs.hooks import HOOKS
from configs.schema import EvalConfig, RolloutConfig
from pipeline.core.errors import ConfigError, EngineError
from pipeline.core.types import Sample, Status, VersionSpan
from stages.engine.mock import MockTokenizer
from stages.generate.check import check_sample
from stages.generate.generate import GenerateStage, default_sampling_params
from stages.generate.user_function import wrap
from tests.unit.fake_engine import FakeEngineClient, completion, sample

FUNCTIONS = '''
import threading

from pipeline.core.types import Sample, VersionSpan
from stages.generate.session import open_session

async def generate(args, sample, sampling_params):
    async with open_session(args, sample, sampling_params) as session:
        await session.generate(stop=["!"])
    sample.metadata["seen"] = [args.rollout_batch_size, sampling_params["temperature"]]
    return sample

async def told(args, sample, sampling_params):
    sample.metadata["args"] = list(vars(args))
    return await generate(args, sample, sampling_params)

async def with_evaluation(args, sample, sampling_params, evaluation):
    sample.metadata["evaluation"] = evaluation
    return await generate(args, sample, sampling_params)

async def whole_group(args, samples, evaluation=False):
    for sample in samples:
        sample.metadata["group"] = [len(samples), evaluation]
        await generate(args, sample, {"max_new_tokens": 8, "temperature": 1.0})
    return samples

async def fan_out(args, sample, sampling_params):
    out = []
    for text in ("a", "bb"):
        leaf = Sample(prompt=sample.prompt, tokens=list(sample.tokens), status=Sample.Status.COMPLETED)
        leaf.append_response_tokens(list(text.encode()), log_probs=[-1.0] * len(text), spans=[VersionSpan(0, 0, len(text))])
        out.append(leaf)
    return out

async def ported(args, sample, sampling_params):
    """As written for slime: no version spans."""
    turn = await args.engine_client.generate(sample.tokens, sampling_params)
    sample.tokens += list(turn.token_ids)
    sample.response_length += len(turn.token_ids)
    sample.rollout_log_probs = list(turn.log_probs)
    sample.weight_versions = ["default"]
    sample.status = Sample.Status.COMPLETED
    return sample

async def raises(args, sample, sampling_params):
    raise KeyError("tool")

async def nothing(args, sample, sampling_params):
    return None

async def foreign(args, sample, sampling_params):
    return type("Sample", (), {"__module__": "slime.utils.types"})()

async def pending(args, sample, sampling_params):
    return sample

async def no_log_probs(args, sample, sampling_params):
    sample.tokens, sample.response_length = [*sample.tokens, 1, 2], 2
    sample.weight_versions = [VersionSpan(0, 0, 2)]
    sample.status = Sample.Status.COMPLETED
    return sample

async def short_mask(args, sample, sampling_params):
    sample.append_response_tokens([1, 2], log_probs=[-1.0, -1.0], spans=[VersionSpan(0, 0, 2)])
    sample.loss_mask = [1]
    sample.status = Sample.Status.COMPLETED
    return sample

async def nan(args, sample, sampling_params):
    sample.append_response_tokens([1], log_probs=[float("nan")], spans=[VersionSpan(0, 0, 1)])
    sample.status = Sample.Status.COMPLETED
    return sample

async def no_versions(args, sample, sampling_params):
    sample.append_response_tokens([1, 2], log_probs=[-1.0, -1.0], spans=[VersionSpan(0, 0, 1)])
    sample.status = Sample.Status.COMPLETED
    return sample

async def aborted(args, sample, sampling_params):
    sample.status = Sample.Status.ABORTED
    return sample

def plain(args, sample, sampling_params, evaluation=False):
    assert threading.current_thread() is not threading.main_thread()
    sample.metadata["evaluation"] = evaluation
    n = sampling_params["max_new_tokens"]
    sample.append_response_tokens([1] * n, log_probs=[-1.0] * n, spans=[VersionSpan(0, 0, n)])
    sample.status = Sample.Status.COMPLETED
    return sample

def plain_group(args, samples, evaluation=False):
    return [plain(args, sample, {"max_new_tokens": 2}, evaluation) for sample in samples]

def plain_wrapper(args, sample, sampling_params):
    return coroutine(args, sample, sampling_params)

async def coroutine(args, sample, sampling_params):
    assert threading.current_thread() is threading.main_thread()
    sample.append_response_tokens([1], log_probs=[-1.0], spans=[VersionSpan(0, 0, 1)])
    sample.status = Sample.Status.COMPLETED
    return sample

def plain_raises(args, sample, sampling_params):
    raise KeyError("tool")

def plain_exits(args, sample, sampling_params):
    raise SystemExit(3)

def plain_blocks(args, sample, sampling_params):
    sample.metadata["blocked"] = True
    args.held.wait()
    sample.status = Sample.Status.COMPLETED
    return sample

async def too_few(args):
    return args

def plain_too_few(args):
    return args
'''  # noqa: E501


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("custom") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


def stage(client: FakeEngineClient, path: str | None = None, **more: Any) -> GenerateStage:
    config = RolloutConfig(custom_generate_function_path=path, rollout_max_response_len=16)
    args = SimpleNamespace(**{name: getattr(config, name) for name in config.__slots__})
    return GenerateStage(client, MockTokenizer(), config, args, **more)


@pytest.mark.parametrize("tokens", [[], list(b"2+2=")])
async def test_single_turn_fills_copies_and_leaves_the_prompts_alone(tokens: list[int]) -> None:
    client = FakeEngineClient(completion("four", version=2))
    given = [sample("2+2=", tokens=list(tokens), index=i) for i in range(3)]
    given[0].notes = "mine"
    before = copy.deepcopy(given)
    made = await stage(client)(given)
    assert given == before
    assert [s.index for s in made] == [0, 1, 2] and made[0].attributes() == {"notes": "mine"}
    for s in made:
        assert bytes(s.tokens) == b"2+2=four" and s.response == "four" and s.response_length == 4
        assert (
            s.loss_mask == [1] * 4
            and s.weight_versions == [VersionSpan(2, 0, 4)]
            and s.status is Status.COMPLETED
        )
    assert client.asked[0][1] == default_sampling_params(RolloutConfig(rollout_max_response_len=16))


async def test_chat_prompts_are_rendered() -> None:
    (made,) = await stage(FakeEngineClient("hi"))(
        [Sample(prompt=[{"role": "user", "content": "yo"}])]
    )
    assert bytes(made.tokens) == b"user: yo\nassistant: hi"


async def test_length_means_truncated() -> None:
    (made,) = await stage(FakeEngineClient(completion("abc", finish="length")))([sample()])
    assert made.status is Status.TRUNCATED


async def test_flags_become_sampling_parameters() -> None:
    params = default_sampling_params(
        RolloutConfig(
            rollout_temperature=0.7,
            rollout_top_p=0.9,
            rollout_top_k=5,
            rollout_stop=("\n",),
            rollout_stop_token_ids=(2,),
            rollout_skip_special_tokens=False,
        )
    )
    assert (
        params["temperature"] == 0.7
        and params["top_p"] == 0.9
        and params["top_k"] == 5
        and params["max_new_tokens"] == 128
    )
    assert (
        params["stop"] == ["\n"]
        and params["stop_token_ids"] == [2]
        and params["skip_special_tokens"] is False
    )


async def test_evaluation_has_its_own_temperature_and_length() -> None:
    client = FakeEngineClient("a")
    generate = stage(client, evaluation=EvalConfig(eval_temperature=0.0, eval_max_response_len=5))
    await generate([sample()], evaluation=True)
    await generate([sample()])
    assert [(asked[1]["temperature"], asked[1]["max_new_tokens"]) for asked in client.asked] == [
        (0.0, 5),
        (1.0, 16),
    ]


async def test_the_context_length_bounds_the_response() -> None:
    client = FakeEngineClient("a")
    ok, failed = await stage(client, context_length=10)([sample("0123456"), sample("0123456789")])
    assert client.asked[0][1]["max_new_tokens"] == 3 and ok.status is Status.COMPLETED
    assert failed.status is Status.FAILED and "10 tokens leaves no room" in (failed.error or "")


async def test_a_failed_request_fails_its_sample_only() -> None:
    client = FakeEngineClient("a", EngineError("engine is gone"), "b")
    made = await stage(client)([sample(index=i) for i in range(3)])
    assert [s.status for s in made] == [Status.COMPLETED, Status.FAILED, Status.COMPLETED]
    assert made[1].error == "engine is gone" and made[1].index == 1


async def test_cancellation_passes() -> None:
    class Stuck(FakeEngineClient):
        async def generate(self, *args: Any, **more: Any) -> Any:
            asked.set()
            await asyncio.Event().wait()

    asked = asyncio.Event()
    task = asyncio.create_task(stage(Stuck())([sample()]))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_custom_function_gets_slimes_arguments(functions: Path) -> None:
    client = FakeEngineClient("ok!")
    given = sample(metadata={"k": [1]})
    (made,) = await stage(client, str(functions))([given])
    assert made.response == "ok!" and made.metadata == {"k": [1], "seen": [8, 1.0]}
    assert given.metadata == {"k": [1]} and given.status is Status.PENDING
    assert client.asked[0][1]["stop"] == ["!"]


async def test_evaluation_has_its_own_sampling_and_a_data_set_goes_before_it() -> None:
    client = FakeEngineClient(*"xxxx")
    asked = EvalConfig(eval_top_p=0.7, eval_top_k=20, eval_min_new_tokens=2)
    generate = stage(client, evaluation=asked)
    await generate([sample()], evaluation=True)
    await generate([sample()], evaluation=True, sampling={"top_k": 5, "repetition_penalty": 1.1})
    await generate([sample()])
    names = ("top_p", "top_k", "min_new_tokens", "repetition_penalty")
    assert [tuple(params.get(n) for n in names) for _, params, _ in client.asked] == [
        (0.7, 20, 2, None),
        (0.7, 5, 2, 1.1),
        (1.0, -1, None, None),
    ]


async def test_evaluation_has_its_own_context(functions: Path) -> None:
    client = FakeEngineClient(*"xxxx")
    generate = stage(client, evaluation=EvalConfig(eval_max_context_len=5))
    await generate([sample("abc")], evaluation=True)
    await generate([sample("abc")])
    first, second = (params["max_new_tokens"] for _, params, _ in client.asked)
    assert first == 2 < second
    (late,) = await generate([sample("abcdef")], evaluation=True)
    assert late.error is not None and "--eval-max-prompt-len" in late.error


@pytest.mark.parametrize("evaluation", [False, True])
async def test_the_other_signatures(functions: Path, evaluation: bool) -> None:
    (made,) = await stage(FakeEngineClient("x"), f"{functions}:with_evaluation")(
        [sample()], evaluation=evaluation
    )
    assert made.metadata["evaluation"] is evaluation
    made, other = await stage(FakeEngineClient("x"), f"{functions}:whole_group")(
        [sample(), sample(index=1)], evaluation=evaluation
    )
    assert made.metadata["group"] == other.metadata["group"] == [2, evaluation] and other.index == 1


async def test_fan_out_keeps_the_number_of_its_origin(functions: Path) -> None:
    made = await stage(FakeEngineClient("x"), f"{functions}:fan_out")(
        [sample(index=4, group_index=2), sample(index=5, group_index=2)]
    )
    assert [(s.index, s.group_index, s.response_length) for s in made] == [
        (4, 2, 1),
        (4, 2, 2),
        (5, 2, 1),
        (5, 2, 2),
    ]
    assert {s.status for s in made} == {Status.COMPLETED}
    assert [s.rollout_id for s in made] == [4, 4, 5, 5]  # which slime's conversion looks at


async def test_a_sample_may_name_its_own_function(functions: Path) -> None:
    own = sample(generate_function_path=f"{functions}:fan_out", index=1)
    made = await stage(FakeEngineClient("plain"))([sample(), own])
    assert [s.response_length for s in made] == [5, 1, 2]
    bad = sample(generate_function_path=f"{functions}:nowhere")
    (made_bad,) = await stage(FakeEngineClient("plain"))([bad])
    assert made_bad.status is Status.FAILED and "nowhere" in (made_bad.error or "")


async def test_args_has_what_the_check_at_load_takes(functions: Path) -> None:
    (out,) = await stage(FakeEngineClient("abc"), f"{functions}:told")([sample()])
    added = set(out.metadata["args"]) - set(RolloutConfig.__slots__)
    assert added == set(HOOKS["custom_generate_function_path"].extra_args)


async def test_a_ported_function_without_spans_is_stamped_with_the_oldest_version(
    functions: Path,
) -> None:
    (made,) = await stage(
        FakeEngineClient("abc"), f"{functions}:ported", current_version=lambda: 7
    )([sample()])
    assert made.status is Status.COMPLETED, made.error
    assert made.weight_versions == [VersionSpan(7, 0, 3)] and made.loss_mask == [1, 1, 1]
    (unknown,) = await stage(FakeEngineClient("abc"), f"{functions}:ported")([sample()])
    assert unknown.status is Status.FAILED and "weight_versions holds 'default'" in (
        unknown.error or ""
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "KeyError: 'tool'"),
        ("nothing", "returned NoneType None; expected a Sample"),
        ("foreign", "not slime.utils.types.Sample: write `from slipstream import Sample`"),
        ("pending", "PENDING sample"),
        ("short_mask", "loss_mask has 1 entries for response_length 2"),
        ("nan", "rollout_log_probs[0] = nan"),
        ("no_log_probs", "no rollout_log_probs for 2 response tokens: the off-policy correction"),
        ("no_versions", "trained tokens from 1 to 2 have no policy version"),
        ("aborted", "returned it as aborted"),
        ("plain_raises", "KeyError: 'tool' (--custom-generate-function-path, "),
        ("plain_exits", "SystemExit: 3"),
    ],
)
async def test_a_broken_function_fails_its_sample_and_says_why(
    functions: Path, name: str, why: str
) -> None:
    (made,) = await stage(FakeEngineClient("x"), f"{functions}:{name}")([sample()])
    assert made.status is Status.FAILED and why in (made.error or ""), made.error


@pytest.mark.parametrize("evaluation", [False, True])
async def test_a_plain_function_runs_in_a_thread(functions: Path, evaluation: bool) -> None:
    for name, num in (("plain", 16), ("plain_group", 2), ("plain_wrapper", 1)):
        given = [sample(index=i) for i in range(2)]
        made = await stage(FakeEngineClient("x"), f"{functions}:{name}")(
            given, evaluation=evaluation
        )
        assert [(s.error, s.index, s.response_length) for s in made] == [
            (None, 0, num),
            (None, 1, num),
        ]
        assert all(s.metadata.get("evaluation", evaluation) == evaluation for s in made)
        assert all(s.status is Status.PENDING and not s.response_length for s in given)


async def test_a_plain_function_that_blocks_is_given_up_at_its_deadline(functions: Path) -> None:
    held = threading.Event()
    config = RolloutConfig(
        custom_generate_function_path=f"{functions}:plain_blocks", episode_timeout_seconds=0.2
    )
    args = SimpleNamespace(held=held)
    late = GenerateStage(FakeEngineClient("x"), MockTokenizer(), config, args)
    try:
        (made,) = await late([sample()])
        assert "blocked" not in made.metadata  # it wrote into a sample of its own
    finally:
        held.set()
    assert made.status is Status.FAILED and "--episode-timeout-seconds" in (made.error or "")


async def test_log_probs_that_nobody_asks_for_may_be_left_out(functions: Path) -> None:
    path = f"{functions}:no_log_probs"
    client = FakeEngineClient("x")
    (made,) = await stage(client, path, log_probs_for=None)([sample()])
    assert made.status is Status.COMPLETED
    assert np.isnan(made.rollout_log_probs).all() and len(made.rollout_log_probs or ()) == 2
    check_sample(made, fallback_version=None, log_probs_for=None)  # once more, as a hook's
    (made,) = await stage(client, path, log_probs_for="--use-tis")([sample()])
    assert "--use-tis needs them" in (made.error or "")
    (made,) = await stage(client, path)([sample()], evaluation=True)  # of which none is trained on
    assert made.status is Status.COMPLETED


@pytest.mark.parametrize(
    ("name", "why"),
    [("too_few", "fits no known signature"), ("plain_too_few", "fits no known signature")],
)
def test_a_function_of_no_known_form_is_a_configuration_error(
    functions: Path, name: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        stage(FakeEngineClient("x"), f"{functions}:{name}")


def test_a_callable_object_is_a_function_too() -> None:
    class Agent:
        async def __call__(self, args: Any, sample: Sample, sampling_params: Any) -> Sample:
            return sample

    assert not wrap(Agent(), "agent").takes_list


async def test_every_sample_has_a_seed_of_its_own_that_no_order_changes() -> None:
    async def seeds(
        order: list[int], evaluation: bool = False, seed: int | None = 5
    ) -> dict[int, Any]:
        client = FakeEngineClient("x")
        stage = GenerateStage(client, MockTokenizer(), RolloutConfig(), sampling_seed=seed)
        await stage([sample(index=i, tokens=[i]) for i in order], evaluation=evaluation)
        return {ids[0]: params.get("sampling_seed") for ids, params, _ in client.asked}

    first = await seeds([0, 1, 2, 3])
    assert first == await seeds([3, 1, 0, 2])
    assert len(set(first.values())) == 4 and all(0 <= s < 2**63 for s in first.values())
    assert not set(first.values()) & set((await seeds([0, 1, 2, 3], evaluation=True)).values())
    assert not set(first.values()) & set((await seeds([0, 1, 2, 3], seed=6)).values())
    assert set((await seeds([0, 1], seed=None)).values()) == {None}
