"""What slime's names do here: requests, shared state, rewards, filters."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from configs.schema import Config, flat_args
from pipeline.core.slime_names import offer_slime_names
from pipeline.core.types import Sample
from stages.engine.mock import MockTokenizer


def names(module: str) -> Any:
    offer_slime_names()
    return importlib.import_module(f"slime.{module}")


class Server:
    """Answers with `statuses`, one a request; the last for good."""

    def __init__(self) -> None:
        self.statuses, self.seen = [200], list[Any]()

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.seen.append((request.method, body, request.headers.get("X-SMG-Routing-Key")))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.json_response({"said": body}, status=status)


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    made = Server()
    runner = web.ServerRunner(web.Server(made))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield made, f"http://127.0.0.1:{runner.addresses[0][1]}/x"
    await runner.cleanup()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names("utils.http_utils"), "RETRY_SECONDS", 0.0)


async def test_many_requests_at_once_leave_no_session_open(server: tuple[Server, str]) -> None:
    http = names("utils.http_utils")
    made, url = server
    answers = await asyncio.gather(
        *(http.post(url, {"n": n}, headers={"X-SMG-Routing-Key": "k"}) for n in range(5))
    )
    assert answers == [{"said": {"n": n}} for n in range(5)]
    assert await http.get(url) == {"said": None}
    assert {(method, key) for method, _, key in made.seen} == {("POST", "k"), ("GET", None)}
    assert not http._SHARED


async def test_a_server_that_fails_is_asked_again(
    server: tuple[Server, str], at_once: None
) -> None:
    post = names("utils.http_utils").post
    made, url = server
    made.statuses = [503, 429, 200]
    assert await post(url, {"a": 1}) == {"said": {"a": 1}} and len(made.seen) == 3
    made.statuses = [503]
    with pytest.raises(aiohttp.ClientResponseError, match="503"):
        await post(url, {}, max_retries=2)
    assert len(made.seen) == 5
    with pytest.raises(aiohttp.ClientError):
        await post("http://127.0.0.1:1/", {}, max_retries=2)


async def test_what_is_refused_is_told_at_once(server: tuple[Server, str]) -> None:
    made, url = server
    made.statuses = [400]
    with pytest.raises(aiohttp.ClientResponseError, match=r'400.*\{"said"'):
        await names("utils.http_utils").post(url, {"a": 1})
    assert len(made.seen) == 1


async def test_functions_of_a_loop_share_one_state() -> None:
    state = names("rollout.sglang_rollout").GenerateState
    args = flat_args(Config())
    args.tokenizer, args.mock, args.rollout_stop = MockTokenizer(), True, ["x"]
    made = state(args)
    assert made is state(args) and made.tokenizer is args.tokenizer and made.processor is None
    assert made.sampling_params["max_new_tokens"] == args.rollout_max_response_len
    assert made.sampling_params["stop"] == ["x"] and not made.aborted and not made.pendings
    assert await asyncio.to_thread(lambda: asyncio.run(_made(state, args))) is not made


async def _made(state: Any, args: Any) -> Any:
    return state(args)


def reward_args(**given: Any) -> SimpleNamespace:
    args = flat_args(Config())
    for name, value in given.items():
        setattr(args, name, value)
    return args


async def test_rewards_are_those_of_the_flags() -> None:
    hub = names("rollout.rm_hub")
    samples = [Sample(response=text, label="3") for text in ("3", "4")]
    assert await hub.batched_async_rm(reward_args(rm_type="exact_match"), samples) == [1.0, 0.0]
    f1 = Sample(response="a b", label="a c", metadata={"rm_type": "f1"})
    assert await hub.async_rm(reward_args(), f1) == hub.f1_score("a b", "a c")[0]
    assert samples[0].reward is None


async def test_rewards_of_another_args_are_its_own(tmp_path: Any) -> None:
    """Two data sets of one run may be scored otherwise."""
    hub = names("rollout.rm_hub")
    sample = Sample(response="3", label="3")
    assert await hub.async_rm(reward_args(rm_type="exact_match"), sample) == 1.0
    assert await hub.async_rm(reward_args(rm_type="dapo"), sample) != 1.0
    (tmp_path / "mine.py").write_text("async def f(args, samples): return [7 for _ in samples]\n")
    mine = reward_args(custom_rm_path=f"{tmp_path}/mine.py:f")
    assert await hub.batched_async_rm(mine, [sample, sample]) == [7, 7]


def test_scorers() -> None:
    grade = names("rollout.rm_hub.math_utils")
    assert grade.extract_answer(r"so \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert grade.grade_answer_verl(r"\boxed{42}", "42") and not grade.grade_answer_verl("42", "43")
    dapo = names("rollout.rm_hub.math_dapo_utils").compute_score
    assert dapo("Answer: 42", "42")["score"] == 1.0
    strict = dapo(r"\boxed{42}", "42", strict_box_verify=True)
    assert strict == {"score": 1.0, "acc": True, "pred": "42"}
    assert dapo("Answer: 42", "42", strict_box_verify=True)["score"] == -1.0
    assert names("rollout.rm_hub.f1").f1_score("b c d", "b c") == (0.8, 2 / 3, 1.0)


@pytest.mark.parametrize(
    "name", ["check_reward_nonzero_std", "check_reward_nonzero_std_with_fallback"]
)
def test_filters(name: str) -> None:
    keep = getattr(names("rollout.filter_hub.dynamic_sampling_filters"), name)
    args = SimpleNamespace(reward_key=None)
    assert keep(args, [Sample(reward=1.0), Sample(reward=0.0)]).keep
    assert not keep(args, [Sample(reward=1.0), Sample(reward=1.0)]).keep


def test_a_processor_gives_ids_as_lists_and_pictures_as_tensors() -> None:
    build = names("utils.processing_utils").build_processor_kwargs
    made = build({"images": ["a"], "images_kwargs": {"size": 3, "return_tensors": "np"}})
    assert made["images"] == ["a"] and made["text_kwargs"]["return_tensors"] is None
    assert (
        made["images_kwargs"]
        == {"size": 3, "return_tensors": "pt"}
        == {"size": 3, **build()["videos_kwargs"]}
    )


def test_a_class_is_made_once() -> None:
    meta = names("utils.misc").SingletonMeta
    made = meta("Made", (), {})
    assert made() is made()
    first = made()
    made.clear_instances()
    assert made() is not first


def test_masks_of_chats() -> None:
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    masks = names("utils.mask_utils").MultiTurnLossMaskGenerator(MockTokenizer(), "qwen3")
    tokens, mask = masks.get_loss_mask(chat)
    assert len(tokens) == len(mask)
    assert masks.get_text_from_loss_mask(tokens, mask) == ["b\n", "d\n"]
    assert masks.get_response_lengths([mask, [0]]) == [len(mask) - mask.index(1), 0]
