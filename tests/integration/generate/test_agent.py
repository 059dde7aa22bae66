"""The calculator agent on a real SGLang server, with a tiny Qwen3 that has really learned to call
the calculator.

The model is trained here, on CPU, in seconds: a few prompts, overfitted. So the tool calls, the
answers that use what the tool said, and the log-probs of both come from the model itself; nothing
is forced on it by a grammar or a bias."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from configs.schema import Config, RolloutConfig, flat_args
from pipeline.core.types import Completion, Sample, Status
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
IM_END = 259  # the byte-level tokenizer's last special token
# tells no more of tools than their names: the model is tiny
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION = [{"role": "user", "content": "6*7"}]
TOOL_TURNS = (
    '<tool_call>{"name":"multiply","arguments":{"a":6,"b":7}}</tool_call><|im_end|>',
    "42<|im_end|>",
)
DIALOGUES = {  # prompt -> turns; the calculator speaks after each but the last
    "12+34=": ("<calc>12+34</calc>", "46"),
    "(2+3)*4=": ("<calc>2+3</calc>", "<calc>5*4</calc>", "20"),
    "7=": ("7",),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from examples.calculator_agent import answer, find_call
    from examples.tool_agent import generate
    from pipeline.models.resolve import resolve_checkpoint
    from tests.unit.stages.generate.tools.chatml import Model, agent_args

    out = tmp_path_factory.mktemp("agent") / "model"
    folder = resolve_checkpoint(f"tiny:{ROOT}/configs/models/tiny-qwen3.yaml", out.parent / "cache")
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows, masks = [], []
    for prompt, turns in DIALOGUES.items():
        ids, mask = list(prompt.encode()), [0] * len(prompt)
        for turn in turns:
            call = find_call(turn)
            said = [*turn.encode()] if call is not None else [*turn.encode(), IM_END]
            tool = f"<result>{answer(call)}</result>".encode() if call is not None else b""
            ids, mask = [*ids, *said, *tool], [*mask, *[1] * len(said), *[0] * len(tool)]
        rows.append(ids)
        masks.append(mask)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    taught = agent_args(Model(tokenizer, *TOOL_TURNS), tokenizer, tool_call_parser="hermes")
    (shown,) = asyncio.run(
        generate(taught, Sample(prompt=QUESTION, index=0), {"max_new_tokens": 200})
    )
    rows.append(list(shown.tokens))
    masks.append([0] * shown.prompt_length + list(shown.loss_mask or ()))
    width = max(map(len, rows))
    tokens = torch.tensor([row + [IM_END] * (width - len(row)) for row in rows])
    targets = torch.tensor(
        [
            [t if m else -100 for t, m in zip(r, k, strict=True)] + [-100] * (width - len(r))
            for r, k in zip(rows, masks, strict=True)
        ]
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(300):
        logits = policy(tokens).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 5e-4:
            break
    assert loss.item() < 1e-2, (
        "the model has not learned to call the tool: the test would see nothing of what it is for"
    )
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


class Recording:
    """An engine client that keeps what went through it, and lets a test act before a request."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.turns: dict[str | None, list[tuple[list[int], Completion]]] = {}
        self.before: Any = None

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        *,
        session_id: str | None = None,
    ) -> Completion:
        if self.before is not None:
            await self.before(len(self.turns.get(session_id, ())))
        done = await self._client.generate(input_ids, sampling_params, session_id=session_id)
        self.turns.setdefault(session_id, []).append((list(input_ids), done))
        return done


@pytest.fixture
async def engine(
    model: Path, tmp_path: Path, nothing_left_behind: None
) -> AsyncIterator[tuple[Any, Any]]:
    """(pool of one real server, client)"""
    from stages.engine.launch import Engine
    from stages.engine.pool import SGLangPool
    from stages.engine.spec import EngineSpec
    from stages.generate.client import SGLangClient

    spec = EngineSpec(
        index=0,
        model_path=model,
        log_path=tmp_path / "engine.log",
        device="cpu",
        dtype="float32",
        tokens_per_request=512,
    )
    pool = SGLangPool([Engine(spec)], concurrency=64, max_restarts=0, start_timeout_seconds=240)
    try:
        await pool.start()
        async with SGLangClient(pool, RolloutConfig()) as client:
            yield pool, client
    finally:
        await pool.close()


def stage_of(client: Any, model: Path, example: str = "calculator_agent.py") -> Any:
    from transformers import AutoTokenizer

    from stages.generate.generate import GenerateStage

    rollout = RolloutConfig(
        custom_generate_function_path=str(ROOT / "examples" / example),
        rollout_max_response_len=200,
        max_turns=4,
        tool_call_parser="hermes",
    )
    args = flat_args(Config(rollout=rollout))
    return GenerateStage(
        client, AutoTokenizer.from_pretrained(model), rollout, args, context_length=512
    )


def group_of(prompt: str, n: int, first: int = 0) -> list[Sample]:
    return [Sample(prompt=prompt, index=first + i, group_index=0) for i in range(n)]


def reference_log_probs(model: Path, sample: Sample) -> np.ndarray:
    """Of all response tokens, by Hugging Face in one pass over the whole trajectory."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        log_probs = policy(torch.tensor([sample.tokens])).logits[0].log_softmax(-1)
    at = sample.prompt_length
    return log_probs[range(at - 1, len(sample.tokens) - 1), sample.tokens[at:]].numpy()


def check_trajectory(
    model: Path, sample: Sample, turns: list[tuple[list[int], Completion]]
) -> None:
    """Tokens, mask, log-probs and spans of `sample` are those of the requests that made it."""
    from examples.calculator_agent import answer, find_call

    assert sample.status is Status.COMPLETED, sample.error
    mask: list[int] = []
    expected = list(str(sample.prompt).encode())
    for asked, done in turns:
        # token-in-token-out: each turn starts from exactly what is in the sample
        assert asked == expected
        tool = b""
        if (call := find_call(done.text)) is not None:
            tool = f"<result>{answer(call)}</result>".encode()
        expected += [*done.token_ids, *tool]
        mask += [1] * len(done.token_ids) + [0] * len(tool)
    assert sample.tokens == expected and sample.loss_mask == mask
    assert sample.rollout_log_probs is not None
    trained = np.asarray(mask, bool)
    np.testing.assert_allclose(
        np.asarray(sample.rollout_log_probs)[trained],
        reference_log_probs(model, sample)[trained],
        atol=TOLERANCE,
    )
    covered = np.zeros(len(mask), bool)
    for span in sample.weight_versions:
        covered[span.start : span.end] = True
    assert (covered == trained).all()


async def test_the_agent_calls_its_tool_and_every_token_is_accounted_for(
    model: Path, engine: tuple[Any, Any]
) -> None:
    pool, client = engine
    recording = Recording(client)
    generate = stage_of(recording, model)
    samples = [
        s
        for place, prompt in enumerate(DIALOGUES)
        for s in await generate(group_of(prompt, 3, 3 * place))
    ]
    for sample in samples:
        check_trajectory(model, sample, recording.turns[sample.session_id])
    for prompt, turns in DIALOGUES.items():
        mine = [s for s in samples if s.prompt == prompt]
        right = [
            s
            for s in mine
            if s.metadata["num_calls"] == len(turns) - 1 and s.response.endswith(turns[-1])
        ]
        # sampled at temperature 1: a slip is possible, two are not
        assert len(right) >= 2, [s.response for s in mine]
    assert client.statistics.cached_tokens > 0  # later turns stood on the KV of earlier ones
    await pushed_between_turns(model, pool, client)
    await aborts_reach_the_server(pool, client)


async def pushed_between_turns(model: Path, pool: Any, client: Any) -> None:
    """A new version arrives while the calculator calculates: the next turn has its label, and none
    of the old version's KV."""
    recording = Recording(client)
    (endpoint,) = pool.endpoints

    async def push(turn: int) -> None:
        if turn == 1 and pool.version_of(endpoint) == 0:
            pool.begin_push(endpoint)
            async with aiohttp.ClientSession() as http:
                body = {"model_path": str(model), "weight_version": "1", "flush_cache": False}
                async with http.post(f"{endpoint}/update_weights_from_disk", json=body) as response:
                    assert response.status == 200, await response.text()
            pool.end_push(endpoint, 1)

    recording.before = push
    (sample,) = await stage_of(recording, model)(group_of("12+34=", 1))
    turns = recording.turns[sample.session_id]
    check_trajectory(model, sample, turns)
    assert [{s.version for s in done.spans} for _, done in turns] == [{0}, {1}]
    assert turns[0][1].cached_tokens > 0 == turns[1][1].cached_tokens
    assert sample.oldest_version() == 0


async def aborts_reach_the_server(pool: Any, client: Any) -> None:
    """What the client does when it is cancelled ends the request at the engine, long before its
    length limit."""
    (endpoint,) = pool.endpoints
    params = {"max_new_tokens": 500, "ignore_eos": True}
    body = {"rid": "long", "input_ids": [50, 61], "sampling_params": params, "stream": True}
    said: dict[str, Any] = {}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{endpoint}/generate", json=body) as response,
    ):
        async for line in response.content:
            text = line.decode().strip().removeprefix("data: ")
            if text in ("", "[DONE]"):
                continue
            if not said:  # its first token: it is under way, with hundreds to go
                await client._abort(endpoint, "long")
            said = json.loads(text)
    assert said["meta_info"]["finish_reason"]["type"] == "abort"
    assert said["meta_info"]["completion_tokens"] < 500


async def test_tools_of_python_functions_are_called_by_the_chat_template(
    model: Path, engine: tuple[Any, Any]
) -> None:
    _, client = engine
    recording = Recording(client)
    group = [Sample(prompt=QUESTION, index=i, group_index=0) for i in range(2)]
    made = await stage_of(recording, model, "tool_agent.py")(group)
    for sample in made:
        assert sample.status is Status.COMPLETED, sample.error
        assert sample.metadata["agent"]["calls"] == 1
        assert sample.metadata["agent"]["errors"] == {}
        (_, call), (context, answer) = recording.turns[sample.session_id]
        assert bytes(t for t in answer.token_ids if t < 256) == b"42"
        assert context[: -len(b"\ntool: 42.\nassistant: ")][-len(call.token_ids) :] == [
            *call.token_ids
        ]
        assert sample.tokens == [*context, *answer.token_ids]
        trained = np.asarray(sample.loss_mask, bool)
        assert np.asarray(sample.tokens[sample.prompt_length :])[trained].tolist() == [
            *call.token_ids,
            *answer.token_ids,
        ]
        assert sample.rollout_log_probs is not None
        np.testing.assert_allclose(
            np.asarray(sample.rollout_log_probs)[trained],
            reference_log_probs(model, sample)[trained],
            atol=TOLERANCE,
        )
