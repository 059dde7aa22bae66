"""Conversion: bit-exact round trips between Hugging Face's and Megatron's formats, and refusals
that name what does not fit."""

from __future__ import annotations

import argparse
import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.__main__ import main
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MODELS: dict[str, tuple[str, bool, torch.dtype]] = {
    "qwen3-tied": ("qwen3", True, torch.float32),
    "llama-bf16": ("llama", False, torch.bfloat16),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), str(request.param))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), "qwen3-tied")


def make(parent: Path, name: str) -> Path:
    kind, tied, dtype = MODELS[name]
    path = cases.make_model(kind, parent / name, tied=tied)
    weights = {k: t.to(dtype) for k, t in load_file(path / "model.safetensors").items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


def same(a: Path, b: Path) -> bool:
    x, y = weights_in(a), weights_in(b)
    return x.keys() == y.keys() and all(
        x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x
    )


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


def test_round_trip_is_bit_exact(folder: Path, tmp_path: Path) -> None:
    assert (
        run("hf-to-torch-dist", "--hf-checkpoint", folder, "--output", tmp_path / "megatron") == 0
    )
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").read_text() == "release"
    words = (
        "--input",
        tmp_path / "megatron",
        "--hf-checkpoint",
        folder,
        "--output",
        tmp_path / "hf",
    )
    assert run("torch-dist-to-hf", *words, "--max-shard-size", "100kB") == 0
    assert same(folder, tmp_path / "hf")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "hf").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 1
    assert index["metadata"]["total_size"] == sum(
        t.numel() * t.element_size() for t in weights_in(folder).values()
    )
    # no weight of these models is larger
    assert all((tmp_path / "hf" / f).stat().st_size <= 110_000 for f in files)
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "hf" / name).read_bytes() == (folder / name).read_bytes()
    assert cases.load_hf(tmp_path / "hf") is not None
    assert not list(tmp_path.glob("*.part"))


def test_float8_in_blocks_comes_back_as_bfloat16(qwen3: Path, tmp_path: Path) -> None:
    """As DeepSeek publishes; the configuration must not say any more that it is quantised."""
    stored, wanted = {}, {}
    for name, tensor in weights_in(qwen3).items():
        stored[name] = wanted[name] = tensor.bfloat16()
        if "_proj" in name:
            rows, columns = (-(-n // 128) for n in tensor.shape)
            scale = torch.full((rows, columns), 2.0**-12)
            stored[name], stored[name + "_scale_inv"] = (
                (tensor * 2.0**12).clamp(-448, 448).to(torch.float8_e4m3fn),
                scale,
            )
            wanted[name] = (stored[name].float() * 2.0**-12).bfloat16()
    published = tmp_path / "fp8"
    shutil.copytree(qwen3, published)
    save_file(stored, published / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((qwen3 / "config.json").read_text())
    (published / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "fp8"}})
    )
    assert run("hf-to-torch-dist", "--hf-checkpoint", published, "--output", tmp_path / "m") == 0
    assert (
        run(
            "torch-dist-to-hf",
            "--input",
            tmp_path / "m",
            "--hf-checkpoint",
            published,
            "--output",
            tmp_path / "back",
        )
        == 0
    )
    back = weights_in(tmp_path / "back")
    assert back.keys() == wanted.keys() and all(torch.equal(back[n], t) for n, t in wanted.items())
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_megatron_reads_what_is_written(folder: Path, tmp_path: Path) -> None:
    """By Megatron's own loader into the model of a learner, whose weights were all zero."""
    from stages.learn.megatron import checkpoint, start_rank

    assert (
        run("hf-to-torch-dist", "--hf-checkpoint", folder, "--output", tmp_path / "megatron") == 0
    )
    rank = start_rank(
        cases.settings(folder, dtype="bfloat16" if "bf16" in folder.name else "float32")
    )
    try:
        with torch.no_grad():
            for p in rank._built.models[0].parameters():
                p.zero_()
        checkpoint.load_models(rank._built.models, tmp_path / "megatron" / "release")
        assert all(
            torch.equal(rank_w, weights_in(folder)[name]) for name, rank_w in rank.hf_weights()
        )
    finally:
        rank.close()


def test_snapshots_of_a_run_convert(qwen3: Path, tmp_path: Path) -> None:
    """With optimizer, reference and all beside the weights; every form of --input that leads to
    them."""
    from stages.learn.megatron import start_rank

    rank = start_rank(cases.settings(qwen3))
    snapshot = tmp_path / "run" / "checkpoints" / "rollout_000001"
    samples = cases.make_samples(cases.LENGTHS)
    try:
        cases.step(rank, cases.make_batch(cases.make_step(samples)))
        rank.save(snapshot)
        rank.export_hf(tmp_path / "want")
    finally:
        rank.close()
    (snapshot / "DONE").write_text("1\n")
    (snapshot.parent / "latest").symlink_to(snapshot.name)
    for given in (tmp_path / "run", snapshot.parent, snapshot, snapshot / "torch_dist"):
        assert (
            run(
                "torch-dist-to-hf",
                "--input",
                given,
                "--hf-checkpoint",
                qwen3,
                "--output",
                tmp_path / "hf",
                "--overwrite",
            )
            == 0
        )
        assert same(tmp_path / "want", tmp_path / "hf") and not same(qwen3, tmp_path / "hf")


# ---- what other releases of Megatron write


def megatron_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Megatron's names and layouts of a folder's weights, written out here: what mbridge and the
    learner do must come to the same."""
    hf = weights_in(folder)
    config = json.loads((folder / "config.json").read_text())
    groups = config["num_key_value_heads"]
    out = {
        "embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
    }
    if "lm_head.weight" in hf:
        out["output_layer.weight"] = hf["lm_head.weight"]
    for i in range(config["num_hidden_layers"]):
        a, b = f"decoder.layers.{i}.", f"model.layers.{i}."
        q, k, v = (
            hf[f"{b}self_attn.{n}_proj.weight"].reshape(groups, -1, config["hidden_size"])
            for n in "qkv"
        )
        out[a + "self_attention.linear_qkv.weight"] = torch.cat([q, k, v], 1).reshape(
            -1, config["hidden_size"]
        )
        out[a + "self_attention.linear_qkv.layer_norm_weight"] = hf[b + "input_layernorm.weight"]
        out[a + "self_attention.linear_proj.weight"] = hf[b + "self_attn.o_proj.weight"]
        out[a + "mlp.linear_fc1.weight"] = torch.cat(
            [hf[b + "mlp.gate_proj.weight"], hf[b + "mlp.up_proj.weight"]]
        )
        out[a + "mlp.linear_fc1.layer_norm_weight"] = hf[b + "post_attention_layernorm.weight"]
        out[a + "mlp.linear_fc2.weight"] = hf[b + "mlp.down_proj.weight"]
        for n in "qk":
            if f"{b}self_attn.{n}_norm.weight" in hf:
                out[a + f"self_attention.{n}_layernorm.weight"] = hf[
                    f"{b}self_attn.{n}_norm.weight"
                ]
    return out


def of_tensor_rank(name: str, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    if name.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    # padded to a multiple of 128, as Megatron-LM does
    if name.endswith(("word_embeddings.weight", "output_layer.weight")):
        padded = torch.zeros(128, tensor.shape[1], dtype=tensor.dtype)
        padded[: len(tensor)] = tensor
        return padded.chunk(size)[rank]
    if name.endswith("linear_qkv.weight"):
        return tensor.chunk(size)[rank]
    return (
        tensor.chunk(size, 1)[rank]
        if name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        else tensor
    )


def local_name(name: str) -> str:
    """The local spec's: norms stand alone."""
    name = name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
    return name.replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")


def write_legacy(
    folder: Path,
    out: Path,
    *,
    tp: int,
    pp: int,
    virtual: bool = False,
    rename: Callable[[str], str] = str,
) -> None:
    """As Megatron-LM's --ckpt-format torch does: the two layers on as many stages, or on one
    stage's two virtual ones."""
    weights = megatron_weights(folder)
    for t in range(tp):
        for p in range(pp):
            chunks: list[dict[str, Any]] = [{} for _ in range(2 if virtual else 1)]
            for name, tensor in weights.items():
                part = of_tensor_rank(name, tensor, t, tp).clone()
                if name.startswith("decoder.layers."):
                    layer = int(name.split(".")[2])
                    stage, chunk = (0, layer) if virtual else (layer, 0) if pp == 2 else (0, 0)
                    own = (
                        name.replace(f"layers.{layer}.", "layers.0.")
                        if virtual or pp == 2
                        else name
                    )
                    if stage == p:
                        chunks[chunk][rename(own)] = part
                        chunks[chunk][rename(own).rsplit(".", 1)[0] + "._extra_state"] = None
                elif p == (0 if name.startswith("embedding") else pp - 1):
                    chunks[0 if name.startswith("embedding") else -1][name] = part
            path = out / "iter_0000100" / (f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else ""))
            path.mkdir(parents=True)
            model = (
                {f"model{i}": c for i, c in enumerate(chunks)} if virtual else {"model": chunks[0]}
            )
            args = argparse.Namespace(tensor_model_parallel_size=tp, params_dtype=torch.bfloat16)
            rng = [
                {
                    "random_rng_state": random.getstate(),
                    "np_rng_state": np.random.get_state(),
                    "torch_rng_state": torch.get_rng_state(),
                }
            ]
            state = {
                "args": args,
                "checkpoint_version": 3.0,
                "iteration": 100,
                "rng_state": rng,
                **model,
            }
            torch.save(state, path / "model_optim_rng.pt")
    (out / "latest_checkpointed_iteration.txt").write_text("100")


@pytest.mark.parametrize(
    ("layout", "rename"),
    [
        ({"tp": 1, "pp": 1}, str),
        ({"tp": 2, "pp": 2}, local_name),
        ({"tp": 2, "pp": 1, "virtual": True}, str),
    ],
    ids=["one", "tp2-pp2-local", "tp2-virtual"],
)
def test_the_older_format_converts(
    folder: Path, layout: dict[str, Any], rename: Callable[[str], str], tmp_path: Path
) -> None:
    write_legacy(folder, tmp_path / "old", **layout, rename=rename)
    words = ("--input", tmp_path / "old", "--hf-checkpoint", folder, "--output", tmp_path / "hf")
    assert run("megatron-to-hf", *words) == 0
    assert same(folder, tmp_path / "hf")


def test_torch_dist_with_other_names_converts(folder: Path, tmp_path: Path) -> None:
    """Layer by layer instead of stacked, gate and up apart, with the local spec's norms; a
    vocabulary padded to 128."""
    from stages.learn.megatron.torch_dist import Writer

    writer = Writer(tmp_path / "iter_0000007")
    for name, tensor in megatron_weights(folder).items():
        pieces = {name: of_tensor_rank(name, tensor, 0, 1)}
        if name.endswith("linear_fc1.weight"):
            pieces = {
                f"{name}_{half}": part for half, part in zip("wv", tensor.chunk(2), strict=True)
            }
        for key, piece in pieces.items():
            half = len(piece) // 2  # saved by two ranks
            for start, rows in ((0, piece[:half]), (half, piece[half:])):
                writer.add(
                    local_name(key),
                    rows,
                    offset=(start,) + (0,) * (piece.dim() - 1),
                    shape=piece.shape,
                )
    writer.add("optimizer.state.exp_avg.embedding", torch.zeros(3), offset=(0,), shape=(3,))
    writer.finish({"args": None})
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert (
        run(
            "megatron-to-hf",
            "--input",
            tmp_path,
            "--hf-checkpoint",
            folder,
            "--output",
            tmp_path / "hf",
        )
        == 0
    )
    assert same(folder, tmp_path / "hf")


# ---- refusals


class Poison:
    """A pickle that runs code when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_code_in_a_pickle_does_not_run(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_legacy(qwen3, tmp_path / "old", tp=1, pp=1)
    file = tmp_path / "old" / "iter_0000100" / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    torch.save({**state, "args": Poison(tmp_path / "ran")}, file)
    words = ("--input", tmp_path / "old", "--hf-checkpoint", qwen3, "--output", tmp_path / "hf")
    assert run("megatron-to-hf", *words) == 2
    assert "--trust-pickle" in (said := capsys.readouterr().err) and "builtins.getattr" in said, (
        said
    )
    assert not (tmp_path / "ran").exists()
    assert run("megatron-to-hf", *words, "--trust-pickle") == 0
    assert (tmp_path / "ran").exists() and same(qwen3, tmp_path / "hf")
    assert run("hf-to-torch-dist", "--hf-checkpoint", qwen3, "--output", tmp_path / "new") == 0
    (tmp_path / "new" / "release" / ".metadata").write_bytes(
        pickle.dumps(Poison(tmp_path / "again"))
    )
    assert (
        run(
            "megatron-to-hf",
            "--input",
            tmp_path / "new",
            "--hf-checkpoint",
            qwen3,
            "--output",
            tmp_path / "hf2",
        )
        == 2
    )
    assert not (tmp_path / "again").exists()


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (
        lambda w: w.pop("model.layers.1.mlp.up_proj.weight"),
        r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "surplus": (lambda w: w.update(extra=torch.zeros(2)), r"1 surplus: extra"),
    "shape": (
        lambda w: w.update({"model.norm.weight": torch.ones(63)}),
        r"1 of another shape: model\.norm\.weight is \[63\], expected \[64\]",
    ),
    "many": (lambda w: [w.pop(k) for k in list(w)[:9]], r"9 missing: .* and 4 more"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_folders_that_do_not_fit_are_refused_by_name(
    qwen3: Path, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    change, said = BROKEN[what]
    (tmp_path / "model").mkdir()
    for file in qwen3.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    edit(tmp_path / "model", change)
    assert (
        run(
            "hf-to-torch-dist",
            "--hf-checkpoint",
            tmp_path / "model",
            "--output",
            tmp_path / "megatron",
        )
        == 2
    )
    assert re.search(said, err := capsys.readouterr().err), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_the_learner_refuses_them_too(qwen3: Path, tmp_path: Path) -> None:
    from pipeline.core.errors import CheckpointError
    from stages.learn.megatron import start_rank

    for file in qwen3.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    edit(tmp_path, BROKEN["surplus"][0])
    with pytest.raises(CheckpointError, match=r"1 surplus: extra"):
        start_rank(cases.settings(tmp_path))


def test_megatron_checkpoints_that_do_not_fit_are_refused_by_name(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another architecture, of another depth, cut off half way."""
    llama = cases.make_model("llama", tmp_path / "llama", tied=False)
    assert run("hf-to-torch-dist", "--hf-checkpoint", qwen3, "--output", tmp_path / "megatron") == 0

    def convert(origin: Path) -> str:
        assert (
            run(
                "torch-dist-to-hf",
                "--input",
                tmp_path / "megatron",
                "--hf-checkpoint",
                origin,
                "--output",
                tmp_path / "hf",
            )
            == 2
        )
        assert not list(tmp_path.glob("hf*"))
        return capsys.readouterr().err

    said = convert(llama)
    assert (
        "1 missing: output_layer.weight" in said
        and "2 surplus: decoder.layers.self_attention.q_layernorm.weight" in said
    ), said
    assert (
        "decoder.layers.self_attention.linear_qkv.weight is [2, 256, 64], expected [2, 128, 64]"
        in said
    )
    deeper = tmp_path / "deeper"
    deeper.mkdir()
    config = json.loads((qwen3 / "config.json").read_text())
    (deeper / "config.json").write_text(
        json.dumps({**config, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3})
    )
    assert (
        "decoder.layers.self_attention.k_layernorm.weight is [2, 32], expected [3, 32]"
        in convert(deeper)
    )
    data = tmp_path / "megatron" / "release" / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:200_000])
    assert "is cut off" in convert(qwen3)


def test_the_command_line_is_checked_first(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--output", tmp_path / "out")
    hf = ("--hf-checkpoint", qwen3)
    (tmp_path / "zarr").mkdir()
    (tmp_path / "zarr" / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    (tmp_path / "empty").mkdir()
    for words, said in [
        (("torch-dist-to-hf", "--input", tmp_path / "no", *hf, *out), "no: no such folder"),
        (("torch-dist-to-hf", "--input", tmp_path / "empty", *hf, *out), "no checkpoint found"),
        (("torch-dist-to-hf", "--input", tmp_path / "zarr", *hf, *out), "'zarr'"),
        (("torch-dist-to-hf", "--input", qwen3, *hf, *out), "is a Hugging Face folder already"),
        (("hf-to-torch-dist", "--hf-checkpoint", tmp_path / "empty", *out), "config.json"),
        (("hf-to-torch-dist", *hf, "--output", qwen3), "is there already"),
        (("hf-to-torch-dist", *hf, "--output", qwen3.parent, "--overwrite"), "which is read"),
        (
            ("megatron-to-hf", "--input", tmp_path / "zarr", *hf, *out, "--max-shard-size", "0"),
            "zarr",
        ),
    ]:
        assert run(*words) == 2
        assert said in (err := capsys.readouterr().err), err
    assert qwen3.is_dir() and not (tmp_path / "out").exists()
