"""Pieces of the Megatron learner that can be looked at alone: flags, packing, attention, the CPU
view."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from stages.learn.megatron.arguments import convert, megatron_flags, owned_by
from tests.conftest import ROOT
from tests.integration.learn import learner_cases as cases


def test_flags_import_neither_torch_nor_megatron() -> None:
    code = (
        "import sys; from stages.learn.megatron.arguments import megatron_flags; flags ="
        " megatron_flags();print(len(flags), [m for m in ('torch', 'megatron', 'numpy') if m in"
        " sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split(maxsplit=1)
    assert int(out[0]) > 300
    assert out[1].strip() == "[]"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flags_are_the_fields_of_the_real_classes() -> None:
    import dataclasses

    from stages.learn.megatron import load

    load()
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    real = {"TransformerConfig": MLATransformerConfig, "OptimizerConfig": OptimizerConfig}
    real["DistributedDataParallelConfig"] = DistributedDataParallelConfig
    flags = megatron_flags()
    for owner, cls in real.items():
        names = {f.name for f in dataclasses.fields(cls) if f.init}
        ours = {name for name, flag in flags.items() if owner in flag.owners}
        assert ours <= names
        assert all(_not_from_text(cls, name) for name in names - ours), names - ours


def _not_from_text(cls: Any, name: str) -> bool:
    annotation = str(
        next(c.__annotations__[name] for c in cls.__mro__ if name in c.__annotations__)
    )
    return any(
        word in annotation for word in ("Callable", "ContextManager", "RecipeConfig")
    ) or name.startswith("_")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-4", 1e-4),
        ("tensor_model_parallel_size", "2", 2),
        ("sequence_parallel", "true", True),
        ("recompute_granularity", "full", "full"),
        ("recompute_modules", "core_attn mlp", ["core_attn", "mlp"]),
        ("moe_layer_freq", "[0,1]", [0, 1]),
        ("moe_layer_freq", "2", 2),
        ("moe_router_load_balancing_type", "aux_loss", "aux_loss"),
        ("moe_router_load_balancing_type", "aux_loss,seq_aux_loss", ["aux_loss", "seq_aux_loss"]),
        ("moe_aux_loss_coeff", "0.1,0.2", [0.1, 0.2]),
        ("params_dtype", "bf16", "bfloat16"),
        ("attention_backend", "fused", "fused"),
        ("recompute_num_layers", "none", None),
        ("optimizer", "sgd", "sgd"),
        ("moe_layer_freq", "([0]*1+[1]*2)", [0, 1, 1]),
        ("q_lora_rank", "none", None),
        ("norm_epsilon", "1e-5", 1e-5),
    ],
)
def test_values_are_converted(name: str, text: str, value: Any) -> None:
    assert convert(name, text) == value
    assert convert(name, value) == value  # as read back from a saved configuration


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lr", "fast", "--lr fast: expected a number"),
        ("num_layers", "2.5", "--num-layers 2.5: expected an integer"),
        ("recompute_granularity", "most", "one of full, selective"),
        ("sequence_parallel", "maybe", "true or false"),
        ("no_such_thing", "1", "--no-such-thing is not a Megatron flag"),
    ],
)
def test_wrong_values_are_named(name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(name, text)
    assert expected in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_flag_reaches_every_owner() -> None:
    import torch
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer.transformer_config import TransformerConfig

    values = {
        "use_distributed_optimizer": "true",
        "params_dtype": "bf16",
        "lr": "3e-4",
        "recompute_granularity": "selective",
    }
    model = TransformerConfig(
        num_layers=2, hidden_size=64, num_attention_heads=4, **owned_by("TransformerConfig", values)
    )
    optimizer = OptimizerConfig(**owned_by("OptimizerConfig", values))
    ddp = DistributedDataParallelConfig(**owned_by("DistributedDataParallelConfig", values))
    assert optimizer.use_distributed_optimizer and ddp.use_distributed_optimizer
    assert model.params_dtype is optimizer.params_dtype is torch.bfloat16
    assert optimizer.lr == 3e-4 and model.recompute_granularity == "selective"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("thd", [False, True])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_packing(multiple_of: int, thd: bool) -> None:
    """Every trained token is predicted from the token before it, at its position; a shared prompt
    is packed once, if the attention can."""
    import torch

    from stages.learn.megatron import load

    load()
    from stages.learn.megatron.packing import pack

    samples = cases.make_samples(cases.LENGTHS)
    packed = pack(cases.numbered(samples), torch.device("cpu"), thd=thd, multiple_of=multiple_of)
    alone = sum(s.num_tokens - 1 for s in samples)
    saved = 0 if thd else 2 * 8 + 30  # three samples share 8 prompt tokens, two share 30
    assert packed.num_inputs == -(-(alone - saved) // multiple_of) * multiple_of
    assert packed.token_counts.sum() == len(packed.rows) == sum(s.response_length for s in samples)
    places = [(s, t) for s in samples for t in range(s.response_length)]
    for k, number in enumerate(packed.rollout_log_probs.long().tolist()):
        s, t = places[number]
        at = s.num_tokens - s.response_length + t
        assert packed.tokens[0, packed.rows[k]] == s.tokens[at - 1]
        assert packed.positions[0, packed.rows[k]] == at - 1
        assert packed.targets[k] == s.tokens[at]
        assert packed.advantages[k] == s.advantages[t]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("thd", [False, True])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_packing_over_context_parallel_ranks(multiple_of: int, thd: bool) -> None:
    """Every trained token is predicted once, on one rank, from the token before it; all ranks know
    all targets."""
    import torch

    from stages.learn.megatron import load

    load()
    from stages.learn.megatron.context import ContextShare
    from stages.learn.megatron.packing import pack

    samples = cases.make_samples(cases.LENGTHS)
    places = [(s, t) for s in samples for t in range(s.response_length)]
    ranks = [
        pack(
            cases.numbered(samples),
            torch.device("cpu"),
            thd=thd,
            multiple_of=multiple_of,
            share=ContextShare(3, r),
        )
        for r in range(3)
    ]
    assert len({p.num_inputs for p in ranks}) == 1 and ranks[0].num_inputs % multiple_of == 0
    owned = []
    for packed in ranks:
        assert torch.equal(packed.targets, ranks[0].targets) and packed.own is not None
        owned += packed.own.tolist()
        for row, k in zip(packed.rows.tolist(), packed.own.tolist(), strict=True):
            s, t = places[int(packed.rollout_log_probs[k])]
            at = s.num_tokens - s.response_length + t
            assert (packed.tokens[0, row], packed.positions[0, row], packed.targets[k]) == (
                s.tokens[at - 1],
                at - 1,
                s.tokens[at],
            )
    assert sorted(owned) == list(range(len(places)))
    # chunks from both ends: nobody is left without work
    assert min(len(p.rows) for p in ranks) > len(places) / 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_packs_for_transformer_engine() -> None:
    """Its documented contract: int32 ends of whole sequences that divide by 2 c, and of each
    sequence slices r and 2c - 1 - r on rank r."""
    import torch

    from stages.learn.megatron import load

    load()
    from stages.learn.megatron.context import ContextShare
    from stages.learn.megatron.packing import pack

    samples = cases.make_samples(cases.LENGTHS)
    alone = pack(samples, torch.device("cpu"), thd=True, multiple_of=8)
    packing = alone.packing
    assert (
        packing.qkv_format == "thd"
        and packing.cu_seqlens_q is packing.cu_seqlens_kv
        and packing.cu_seqlens_q_padded is None
    )
    ends = packing.cu_seqlens_q
    assert ends.dtype == torch.int32 and ends[0] == 0 and ends[-1] == alone.num_inputs
    inputs = sorted(s.num_tokens - 1 for s in samples)
    assert sorted(ends.diff().tolist()) == sorted([*inputs, -sum(inputs) % 8])
    assert packing.max_seqlen_q == packing.max_seqlen_kv == max(inputs) and isinstance(
        packing.max_seqlen_q, int
    )
    parts = [
        pack(samples, torch.device("cpu"), thd=True, multiple_of=8, share=ContextShare(2, r))
        for r in range(2)
    ]
    ends = parts[0].packing.cu_seqlens_q
    assert torch.equal(ends, parts[1].packing.cu_seqlens_q) and (ends.diff() % 4 == 0).all()
    assert ends[-1] == sum(p.num_inputs for p in parts) and parts[0].num_inputs % 8 == 0
    assert parts[0].packing.max_seqlen_q == ends.diff().max()
    for s in range(len(samples)):
        start, length = int(ends[s]) // 2, int(ends[s + 1] - ends[s])
        slices = [p.positions[0, start : start + length // 2].chunk(2) for p in parts]
        whole = torch.cat([slices[0][0], slices[1][0], slices[1][1], slices[0][1]])
        assert torch.equal(whole, torch.arange(length))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_carries_no_loss_is_not_predicted() -> None:
    import torch

    from stages.learn.megatron import load

    load()
    from stages.learn.megatron.packing import pack

    samples = cases.make_samples(cases.LENGTHS)
    packed = pack(samples, torch.device("cpu"), thd=False)
    trained = sorted(
        float(x) for s in samples for x in s.rollout_log_probs[s.loss_mask.astype(bool)]
    )
    assert sorted(packed.rollout_log_probs.tolist()) == trained
    assert sorted(packed.token_counts.tolist()) == sorted(int(s.loss_mask.sum()) for s in samples)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [40, 39, 7, 7, 1], [3, 50, 2]])
def test_blocks_of_similar_length_are_exact(lengths: list[int]) -> None:
    """Packed attention and its gradients against one call a sequence, grouped-query heads
    included."""
    import torch
    import torch.nn.functional as F

    from stages.learn.megatron import load

    load()
    from stages.learn.blocks import MAX_PADDING, cut_blocks
    from stages.learn.megatron.attention import PackedSequences, SdpaCoreAttention

    config = type("Config", (), {"context_parallel_size": 1, "kv_channels": 8})()
    attention = SdpaCoreAttention.__new__(SdpaCoreAttention)
    torch.nn.Module.__init__(attention)
    attention.scale = config.kv_channels**-0.5
    torch.manual_seed(0)
    t = sum(lengths)
    q, k, v = (torch.randn(t, 1, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    blocks = cut_blocks(lengths, torch.device("cpu"))
    assert sum(b.num for b in blocks) == len(lengths)
    at = 0
    for b in blocks:
        work = sum(n * n for n in lengths[at : at + b.num])
        assert work >= (1 - MAX_PADDING) * b.num * b.length**2
        at += b.num
    out = attention(q, k, v, packed_seq_params=PackedSequences(qkv_format="sbhd", blocks=blocks))
    parts = []
    for a, b, c in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        heads = (
            x.permute(1, 2, 0, 3) for x in (a, b.repeat_interleave(2, 2), c.repeat_interleave(2, 2))
        )
        parts.append(
            F.scaled_dot_product_attention(*heads, is_causal=True)
            .permute(2, 0, 1, 3)
            .reshape(len(a), 1, -1)
        )
    want = torch.cat(parts)
    assert (out - want).abs().max() < 1e-5
    weight = torch.randn_like(want)
    got_grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    want_grads = torch.autograd.grad((want * weight).sum(), (q, k, v))
    assert all((g - w).abs().max() < 1e-5 for g, w in zip(got_grads, want_grads, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ranks", [1, 2])
def test_one_kernel_attends_as_blocks_do(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs with shared prompts, on one context-parallel rank and on each of two (to whom the keys
    of both are given); the kernel, which needs a GPU, is stood in for."""
    import torch

    from stages.learn.megatron import load

    load()
    from stages.learn.megatron.attention import SdpaCoreAttention
    from stages.learn.megatron.context import ContextShare
    from stages.learn.megatron.packing import pack
    from tests.flash_attention import varlen_attn

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    attention = SdpaCoreAttention.__new__(SdpaCoreAttention)
    torch.nn.Module.__init__(attention)
    attention.scale = 8**-0.5
    samples = cases.make_samples(cases.LENGTHS)
    for rank in range(ranks):
        blocks, one = (
            pack(
                samples,
                torch.device("cpu"),
                thd=False,
                varlen=varlen,
                multiple_of=8,
                share=ContextShare(ranks, rank),
            )
            for varlen in (False, True)
        )
        assert torch.equal(blocks.tokens, one.tokens) and torch.equal(blocks.rows, one.rows)
        assert one.packing.varlen and not one.packing.blocks and not one.packing.tails
        assert blocks.packing.tails and blocks.packing.varlen is None
        torch.manual_seed(0)
        t = one.num_inputs
        shapes = ((t, 1, 4, 8), (ranks * t, 1, 2, 8), (ranks * t, 1, 2, 8))
        q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
        outs = [attention(q, k, v, packed_seq_params=p.packing) for p in (blocks, one)]
        assert outs[0].shape == outs[1].shape and torch.allclose(*outs, atol=1e-5)
        weight = torch.randn_like(outs[0])
        grads = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in outs]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_only_megatron_sees_cpu_as_cuda() -> None:
    import torch

    from stages.learn.megatron import compat, load

    load()
    if not compat.install():
        pytest.skip("a CUDA device is there: nothing to stand in for")
    from megatron.core.pipeline_parallel import schedules

    assert schedules.torch.zeros(2, device="cuda").device.type == "cpu"
    assert schedules.torch.Tensor is torch.Tensor
    assert schedules.torch.cuda.current_device() == torch.device("cpu")
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")
    with compat.cuda_methods():
        assert torch.zeros(1).cuda().type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1).type() == "torch.FloatTensor"


def _expected_lr(style: str, t: int) -> float:
    """The published shapes: warm-up 3 steps from 1e-4 to 1e-3, decay to 1e-5 by step 10, WSD's last
    phase 4 steps."""
    top, low, first, warmup, end, phase = 1e-3, 1e-5, 1e-4, 3, 10, 4
    if t <= warmup:
        return first + (top - first) * t / warmup
    if style == "constant":
        return top
    if t > end:
        return low
    if style == "inverse-square-root":
        return max(low, top * math.sqrt(warmup / t))
    done = (t - warmup) / (end - warmup)
    if style.startswith("WSD"):
        done = max(0.0, (t - (end - phase)) / phase)
    shapes = {
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "exponential": 2 * 0.5**done - 1,
        "minus_sqrt": 1 - math.sqrt(done),
    }
    return low + (top - low) * shapes[style.removeprefix("WSD-")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "style",
    [
        "constant",
        "linear",
        "cosine",
        "inverse-square-root",
        "WSD-linear",
        "WSD-cosine",
        "WSD-exponential",
        "WSD-minus_sqrt",
    ],
)
def test_learning_rate_and_weight_decay_schedules(style: str) -> None:
    from types import SimpleNamespace

    from configs.schema import OptimConfig
    from stages.learn.megatron import load

    load()
    from stages.learn.megatron.assemble import _make_scheduler
    from stages.learn.schedule import make_schedule

    group: dict[str, float] = {}
    optimizer = SimpleNamespace(
        param_groups=[group], config=SimpleNamespace(lr=1e-3, min_lr=1e-5, weight_decay=0.3)
    )
    name, _, phase = style.partition("-") if style.startswith("WSD") else (style, "", "")
    wsd: Any = {"lr_wsd_decay_iters": 4, "lr_wsd_decay_style": phase} if phase else {}
    wd: Any = (
        {"start_weight_decay": 0.1, "end_weight_decay": 0.2, "weight_decay_incr_style": "linear"}
        if phase
        else {}
    )
    optim = OptimConfig(
        lr_decay_style=name, lr_warmup_fraction=0.3, lr_warmup_init=1e-4, **wsd, **wd
    )  # type: ignore[arg-type]
    scheduler = _make_scheduler(optimizer, optim, 10)
    # the FSDP learner's
    ours = make_schedule(optim, lr=1e-3, min_lr=1e-5, num_steps=10, weight_decay=0.3)
    for t in range(13):
        assert (ours.rate(t), ours.weight_decay(t)) == pytest.approx(
            (group["lr"], group["weight_decay"]), rel=1e-12
        )
        assert group["lr"] == pytest.approx(_expected_lr(style, t), rel=1e-9), t
        assert group["weight_decay"] == pytest.approx(0.1 + 0.1 * min(t, 10) / 10 if wd else 0.3)
        scheduler.step(increment=1)
