"""Two real SGLang servers of a tiny random Qwen3, and what stands in for the learner: a Hugging
Face model in this process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch

from configs.schema import ClusterConfig
from pipeline.core.types import PreparedWeights, VersionSpan
from stages.engine.launch import Engine
from stages.engine.pool import SGLangPool
from stages.engine.spec import EngineSpec
from stages.publish.buckets import split
from stages.publish.sender import BroadcastSender

CLUSTER = ClusterConfig(
    rollout_num_gpus=2, sglang_server_concurrency=32, update_weight_buffer_size=100_000
)
SHAPE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}


def make_model(seed: int = 0, scale: float = 6.0) -> Any:
    """Weights far from zero, so that other weights give visibly other log-probs."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def engine_spec(folder: Path, index: int, **user: Any) -> EngineSpec:
    return EngineSpec(
        index=index,
        model_path=folder / "model",
        log_path=folder / "logs" / f"engine-{index}.log",
        device="cpu",
        dtype="float32",
        concurrency=CLUSTER.sglang_server_concurrency,
        tokens_per_request=700,
        user={"skip_tokenizer_init": True, **user},
    )


class Threaded:
    """`WeightSender` of one rank, in this process: a BroadcastSender whose blocking calls do not
    hold the loop. It keeps a copy."""

    def __init__(self, sender: BroadcastSender) -> None:
        self._sender = sender

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._sender, name)

        async def call(rank: int, *args: Any) -> Any:
            assert rank == 0
            return await asyncio.to_thread(method, *args)

        return call

    async def prepare(self, max_bucket_bytes: int, max_copy_bytes: int | None) -> PreparedWeights:
        buckets = split(self._sender.describe(), max_bucket_bytes)
        self._sender.begin(buckets, copy=True)
        await asyncio.to_thread(self._sender.gather)
        return PreparedWeights(buckets={0: buckets})

    def sending(self) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def export_hf(self, path: Path) -> None:
        await asyncio.to_thread(self._sender.export_hf, path)


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: list[int]
    tokens: list[int]
    log_probs: torch.Tensor
    spans: list[VersionSpan]
    cached_tokens: int

    @classmethod
    def of(cls, prompt: Sequence[int], body: dict[str, Any]) -> Answer:
        meta = body["meta_info"]
        rows = meta["output_token_logprobs"]
        return cls(
            list(prompt),
            [row[1] for row in rows],
            torch.tensor([row[0] for row in rows]),
            [
                VersionSpan(int(label["version"]), label["start"], label["end"])
                for label in meta["weight_versions"]
            ],
            meta["cached_tokens"],
        )


@dataclass
class World:
    folder: Path
    pool: SGLangPool
    engines: list[Engine]
    model: Any  # the learner's
    http: aiohttp.ClientSession
    sender: Threaded = field(init=False)

    def __post_init__(self) -> None:
        # The iterator is made per push: it must see the weights as they are then.
        export = lambda path: self.model.save_pretrained(path)  # noqa: E731
        self.sender = Threaded(
            BroadcastSender(
                lambda: iter(self.model.state_dict().items()),
                export,
                torch.device("cpu"),
                timeout_seconds=30.0,
            )
        )

    def learn(self) -> None:
        """One step of a learner that learns nothing: other weights, at random."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * parameter.std().nan_to_num() * 0.2)

    def copy(self) -> Any:
        import copy

        return copy.deepcopy(self.model)

    async def post(
        self, endpoint: str, path: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"{endpoint}/{path}", json=body) as response:
            return response.status, await response.json()

    async def generate(
        self, endpoint: str, prompt: Sequence[int], key: str, max_new_tokens: int = 8
    ) -> Answer:
        status, body = await self.post(endpoint, "generate", request(prompt, key, max_new_tokens))
        assert status == 200, body
        return Answer.of(prompt, body)

    @asynccontextmanager
    async def running(
        self, endpoint: str, prompt: Sequence[int], key: str, max_new_tokens: int
    ) -> AsyncIterator[asyncio.Task[Answer]]:
        """A streamed request that has generated a token and goes on, slowly inside the block; the
        task is its end."""
        import json

        await self.post(endpoint, "slow_down", {"forward_sleep_time": 0.01})
        body = request(prompt, key, max_new_tokens) | {"stream": True}
        async with self.http.post(f"{endpoint}/generate", json=body) as response:
            first = await response.content.readline()
            assert first.startswith(b"data:")

            async def rest() -> Answer:
                last: dict[str, Any] = {}
                async for line in response.content:
                    if line.startswith(b"data:") and b"[DONE]" not in line:
                        last = json.loads(line.removeprefix(b"data:"))
                return Answer.of(prompt, last)

            task = asyncio.create_task(rest())
            yield task
            with contextlib.suppress(aiohttp.ClientError):  # the engine may have been killed
                await self.post(endpoint, "slow_down", {"forward_sleep_time": None})
            await asyncio.wait({task})

    async def checksums(self, endpoint: str) -> dict[str, str]:
        """SGLang's own, of every parameter that it holds."""
        status, body = await self.post(endpoint, "weights_checker", {"action": "checksum"})
        assert status == 200, body
        return body["ranks"][0]["checksums"]

    def expected_checksums(self) -> dict[str, str]:
        """The learner's, of the same: q, k, v and gate, up are one parameter each in SGLang."""
        state = dict(self.model.state_dict())
        out = {}
        for name in list(state):
            for part, fused in (("q_proj", "qkv_proj"), ("gate_proj", "gate_up_proj")):
                if f".{part}." in name:
                    others = ("k_proj", "v_proj") if part == "q_proj" else ("up_proj",)
                    parts = [state[name], *(state[name.replace(part, other)] for other in others)]
                    out[name.replace(part, fused)] = torch.cat(parts)
        single = {
            name: t
            for name, t in state.items()
            if not any(f".{p}_proj." in name for p in ("q", "k", "v", "gate", "up"))
        }
        return {
            name: hashlib.sha256(_bytes(t)).digest()[:8].hex() for name, t in (single | out).items()
        }


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def request(prompt: Sequence[int], key: str, max_new_tokens: int) -> dict[str, Any]:
    params = {"max_new_tokens": max_new_tokens, "temperature": 1.0, "ignore_eos": True}
    return {
        "input_ids": list(prompt),
        "sampling_params": params,
        "return_logprob": True,
        "extra_key": key,
    }


def log_probs(model: Any, answer: Answer, *, start: int = 0, before: Any = None) -> torch.Tensor:
    """Of the response tokens [start:] under `model`. With `before`, all KV that precedes the
    sampling of token `start` is computed by that model: what an engine does whose weights change in
    place between two decode steps."""
    tokens = torch.tensor([answer.prompt + answer.tokens])
    first = len(answer.prompt) + start - 1  # the position whose logits gave token `start`
    with torch.no_grad():
        if before is None:
            logits = model(tokens).logits[0, first:-1]
        else:
            cache = before(tokens[:, :first], use_cache=True).past_key_values
            logits = model(tokens[:, first:-1], past_key_values=cache).logits[0]
    return logits.log_softmax(-1).gather(-1, tokens[0, first + 1 :, None]).squeeze(-1)
