"""A tiny mixture of experts, routed experts for its tests, and transformers' model made to take
them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.core.types import TrainSample
from tests.integration.learn import learner_cases as cases

LAYERS, EXPERTS, TOP_K = 4, 8, 2


def make_moe(
    path: Path, *, seed: int = 0, num_experts: int = EXPERTS, loudness: float = 1.0
) -> Path:
    """A Qwen3-MoE of random weights, saved as transformers saves it.

    `loudness`: how much of what it says comes from experts.
    """
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        **cases._SHAPE,
        "num_hidden_layers": LAYERS,
        "head_dim": 32,
        "moe_intermediate_size": 48,
    }
    shape |= {
        "num_experts": num_experts,
        "num_experts_per_tok": TOP_K,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    }
    model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p)) if "norm" in name else p.mul_(
                4.0 * loudness if "down_proj" in name else 4.0
            )
    model.save_pretrained(path)
    (path / "tokenizer_config.json").write_text("{}")
    return path


def with_random_experts(
    samples: Sequence[TrainSample], seed: int = 0, *, num_layers: int = LAYERS
) -> list[TrainSample]:
    """Experts drawn at random: far from what any router would take.

    Equal prompts of a group have equal ones.
    """
    rng = np.random.default_rng(seed)
    prompts: dict[tuple[int, int], np.ndarray] = {}
    out = []
    for s in samples:
        length = s.num_tokens - s.response_length
        prompt = prompts.setdefault((s.group_index, length), _draw(rng, length, num_layers))
        out.append(
            dataclasses.replace(
                s,
                routed_experts=np.concatenate(
                    [prompt, _draw(rng, s.response_length - 1, num_layers)]
                ),
            )
        )
    return out


def _draw(rng: np.random.Generator, num_tokens: int, num_layers: int) -> np.ndarray:
    return rng.random((num_tokens, num_layers, EXPERTS)).argsort(-1)[..., :TOP_K].astype(np.uint8)


class RoutedModel:
    """transformers' model, whose routers take the samples' experts where they have some, and write
    down what they took.

    Written as the formulas read: what an expert weighs is the softmax over all (its sigmoid, for
    DeepSeek's kind), of those chosen, made to add up to one where the model does so."""

    def __init__(self, path: Path, samples: Sequence[TrainSample] = ()) -> None:
        self.model = cases.load_hf(path)
        self.force(samples)
        self._now: np.ndarray | None = None
        self._took: list[torch.Tensor] = []
        self._own: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []  # [T, experts] a layer of the last pass
        for i, layer in enumerate(self.model.model.layers):
            if hasattr(layer.mlp, "route_tokens_to_experts"):
                layer.mlp.route_tokens_to_experts = lambda logits, moe=layer.mlp, i=i: (
                    self._route_by_bias(moe, i, logits)
                )
            elif hasattr(layer.mlp, "gate"):
                layer.mlp.gate.forward = lambda hidden, gate=layer.mlp.gate, i=i: self._route(
                    gate, i, hidden
                )

    def force(self, samples: Sequence[TrainSample]) -> None:
        self._experts = {
            s.tokens.tobytes(): s.routed_experts for s in samples if s.routed_experts is not None
        }

    def __call__(self, ids: torch.Tensor) -> Any:
        self._now, self._took = self._experts.get(ids[0].numpy().tobytes()), []
        self._own, self.scores = [], []
        return self.model(ids)

    def took(self, sample: TrainSample) -> np.ndarray:
        """[T - 1, layers, top-k] of a pass that is made now."""
        with torch.no_grad():
            self(torch.from_numpy(sample.tokens)[None])
        return torch.stack(self._took, 1)[:-1].numpy()

    def own(self) -> np.ndarray:
        """[T - 1, layers, top-k] that the routers would have taken in that pass."""
        return torch.stack(self._own, 1)[:-1].numpy()

    def _route(
        self, gate: Any, layer: int, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(hidden.reshape(-1, gate.hidden_dim), gate.weight)
        scores = torch.softmax(logits, -1)
        self.scores.append(scores)
        experts = self._choose(scores.topk(TOP_K).indices, layer)
        chosen = scores.gather(1, experts)
        return (
            logits,
            chosen / chosen.sum(-1, keepdim=True) if gate.norm_topk_prob else chosen,
            experts,
        )

    def _route_by_bias(
        self, moe: Any, layer: int, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = logits.sigmoid()
        experts = self._choose(type(moe).route_tokens_to_experts(moe, logits)[0], layer)
        chosen = scores.gather(1, experts)
        return experts, moe.routed_scaling_factor * chosen / chosen.sum(-1, keepdim=True)

    def _choose(self, own: torch.Tensor, layer: int) -> torch.Tensor:
        experts = own.clone()
        if self._now is not None:
            forced = torch.from_numpy(self._now[:, layer].astype(np.int64))
            known = (forced >= 0).all(-1)
            experts[: len(forced)][known] = forced[known]
        self._own.append(own)
        self._took.append(experts)
        return experts
