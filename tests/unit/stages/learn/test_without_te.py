"""What Megatron lacks without TransformerEngine is filled in by whether it is there, not by whether
there is a GPU. Megatron is four modules of ours here."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.core.errors import LearnerError
from stages.learn.megatron import without_te


class Optimizer:
    """Megatron's DistributedOptimizer as far as it is patched."""

    def __init__(self, inner: Any) -> None:
        self.optimizer = inner

    def state_dict(self) -> Any:
        return {p: dict(state) for p, state in self.optimizer.state.items()}

    def load_state_dict(self, state: Any) -> None:
        step = torch.tensor(5.0)
        for entry in self.optimizer.state.values():
            entry["step"] = step

    def _set_main_param_and_optimizer_states(self, model_param: Any, tensors: Any) -> None:
        self.set = tensors


@pytest.fixture
def megatron(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As it is imported on a GPU machine without TransformerEngine and apex."""
    names = {
        "moe": without_te._MOE,
        "latent": without_te._LATENT,
        "extension": without_te._EXTENSION,
        "distributed": without_te._DISTRIBUTED,
    }
    modules: dict[str, Any] = {name: ModuleType(path) for name, path in names.items()}
    for name, path in names.items():
        monkeypatch.setitem(sys.modules, path, modules[name])
    modules["latent"].HAVE_TE = True  # the import of a class made of a mock has worked
    modules["extension"].HAVE_TE = False
    modules["distributed"].HAVE_APEX_OR_TE = False
    modules["distributed"].DistributedOptimizer = type("Own", (Optimizer,), {})
    return SimpleNamespace(**modules)


def found(monkeypatch: pytest.MonkeyPatch, *, te: bool, gpu: bool) -> None:
    spec = ModuleType("spec") if te else None
    monkeypatch.setattr(without_te.importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(without_te, "has_gpu", lambda: gpu)


@pytest.mark.parametrize(
    ("te", "gpu", "filled"),
    [(False, True, True), (False, False, True), (True, False, True), (True, True, False)],
)
def test_mixtures_and_latent_attention_need_no_transformer_engine(
    te: bool, gpu: bool, filled: bool, megatron: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, te=te, gpu=gpu)
    megatron.extension.HAVE_TE = te
    without_te.install()
    assert without_te.uses_transformer_engine() is not filled
    assert hasattr(megatron.moe, "te_general_gemm") is filled
    assert megatron.latent.HAVE_TE is not filled


def test_one_that_cannot_be_imported_is_not_done_without(
    megatron: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, te=True, gpu=True)
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    with pytest.raises(LearnerError, match=r"installed, but cannot be imported .*make setup-te"):
        without_te.install()


def test_torchs_adam_keeps_a_step_for_each_parameter(
    megatron: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, te=False, gpu=True)
    without_te.install()
    patched = megatron.distributed.DistributedOptimizer.state_dict
    without_te.install()
    assert megatron.distributed.DistributedOptimizer.state_dict is patched, "patched twice"
    p, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = megatron.distributed.DistributedOptimizer(torch.optim.AdamW([p, other]))
    fresh = optimizer.state_dict()
    assert {name: float(x.sum()) for name, x in fresh[p].items()} == {
        "step": 0.0,
        "exp_avg": 0.0,
        "exp_avg_sq": 0.0,
    }
    optimizer.load_state_dict({})
    steps = [optimizer.optimizer.state[x]["step"] for x in (p, other)]
    assert steps[0] is not steps[1] and steps == [5.0, 5.0]
    optimizer.model_param_group_index_map = {"w": (0, 1)}
    loaded = {"param": torch.full((2,), 3.0), "exp_avg": torch.ones(2), "step": torch.zeros(())}
    with torch.no_grad():  # as Megatron does
        optimizer._set_main_param_and_optimizer_states("w", loaded)
    assert other.tolist() == [3.0, 3.0] and p.tolist() == [1.0, 1.0]
    assert optimizer.optimizer.state[other]["exp_avg"].tolist() == [1.0, 1.0] and steps[1] == 5.0


@pytest.mark.parametrize("apex", [True, False])
def test_other_optimizers_are_megatrons_business(
    apex: bool, megatron: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, te=False, gpu=True)
    megatron.distributed.HAVE_APEX_OR_TE = apex
    without_te.install()
    optimizer = megatron.distributed.DistributedOptimizer(SimpleNamespace(state={}))
    assert optimizer.state_dict() == {}
    optimizer._set_main_param_and_optimizer_states("w", {"param": 1})
    assert optimizer.set == {"param": 1}
