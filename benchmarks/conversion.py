"""Conversion between Hugging Face's and Megatron's formats against a plain copy of the same bytes
on the same disk, in the same run.

    python -m benchmarks.conversion [--gigabytes 4] [--layer-megabytes 64] [--shard-size 1GiB] \
        [--rounds 3] [--folder DIR] [--keep]

A Llama of bfloat16 noise of that size is made in DIR. Every round, in turn: a copy of its
safetensors (read, written, fsync), hf-to-torch-dist and torch-dist-to-hf as a user starts them,
each a process of its own. Reads come from the page cache in all three, if it is large enough; what
is written is on the disk at the end of each. GB/s are of the model's bytes over the time of the
conversion itself, without the seconds that Python takes to import torch and Megatron (which
`process_seconds` has). Peak memory is of the process's own pages (anonymous: VmHWM counts the
mapped files too)."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common import ROOT, keep, table

VOCAB = 32_000
COPY_BYTES = 16 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--layer-megabytes", type=int, default=64)
    parser.add_argument("--shard-size", default="1GiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; default: the temporary folder's"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the figures in benchmarks/results"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-", dir=args.folder) as name:
        folder = Path(name)
        num_bytes = make_model(folder / "hf", args.gigabytes, args.layer_megabytes)
        rounds = [one_round(folder, args.shard_size) for _ in range(args.rounds)]
    figures = {
        "gigabytes": num_bytes / 1e9,
        "shard_size": args.shard_size,
        "layer_megabytes": args.layer_megabytes,
        "rounds": rounds,
    }
    rows = []
    for what in rounds[0]:
        rates = [num_bytes / 1e9 / r[what]["seconds"] for r in rounds]
        peaks = [r[what].get("peak_own_mb", 0.0) for r in rounds]
        rows.append([what, statistics.median(rates), min(rates), max(rates), max(peaks)])
    table(["what", "GB/s (median)", "lowest", "highest", "peak MB"], rows)
    if args.keep:
        keep("conversion", figures)


def make_model(folder: Path, gigabytes: float, layer_megabytes: int) -> int:
    """A Llama's folder, written in shards; returns the bytes of its weights."""
    import torch

    from stages.learn.hf_folder import write_hf_folder

    # 12 hidden^2 parameters of two bytes a layer
    hidden = max(256, int((layer_megabytes * 1e6 / 2 / 12) ** 0.5) // 128 * 128)
    inner = hidden * 8 // 3 // 64 * 64
    layers = max(1, round((gigabytes * 1e9 - 4 * VOCAB * hidden) / (layer_megabytes * 1e6)))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
    }
    source = folder.with_name("source")
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    square = {f"self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"}
    layer = {
        **square,
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes = {
        "model.embed_tokens.weight": (VOCAB, hidden),
        "lm_head.weight": (VOCAB, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {
            f"model.layers.{i}.{name}.weight": (hidden,)
            for name in ("input_layernorm", "post_attention_layernorm")
        }
    noise = torch.randn(
        max(a * b for a, b in [(VOCAB, hidden), *layer.values()]), dtype=torch.bfloat16
    )
    weights = (
        (name, noise[: torch.Size(shape).numel()].view(shape).clone())
        for name, shape in shapes.items()
    )
    return write_hf_folder(weights, source, folder, max_shard_bytes=1 << 30)


def one_round(folder: Path, shard_size: str) -> dict[str, dict[str, Any]]:
    hf, megatron, back = folder / "hf", folder / "megatron", folder / "back"
    out: dict[str, dict[str, Any]] = {"disk copy": {"seconds": copy(hf, folder / "copy")}}
    out["hf-to-torch-dist"] = convert(
        "hf-to-torch-dist", "--hf-checkpoint", hf, "--output", megatron, "--overwrite"
    )
    words = (
        "--input",
        megatron,
        "--hf-checkpoint",
        hf,
        "--output",
        back,
        "--overwrite",
        "--max-shard-size",
        shard_size,
    )
    out["torch-dist-to-hf"] = convert("torch-dist-to-hf", *words)
    return out


def copy(source: Path, target: Path) -> float:
    """Seconds to copy the folder's files to the disk."""
    target.mkdir(exist_ok=True)
    began = perf_counter()
    for file in source.iterdir():
        with file.open("rb") as read, (target / file.name).open("wb") as write:
            while chunk := read.read(COPY_BYTES):
                write.write(chunk)
            write.flush()
            os.fsync(write.fileno())
    return perf_counter() - began


def convert(*words: object) -> dict[str, Any]:
    """One conversion as a user starts it."""
    command = [sys.executable, "-m", "pipeline", "convert", *map(str, words)]
    began = perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    said = process.communicate()[0]
    watcher.join()
    found = re.search(r"GB in ([\d.]+) s", said)
    if process.returncode or not found:
        raise RuntimeError(f"{' '.join(command)} failed:\n{said[-3000:]}")
    return {
        "seconds": float(found[1]),
        "process_seconds": perf_counter() - began,
        "peak_own_mb": peak[0] / 1e3,
    }


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """The largest RssAnon (kB) seen until the process ends."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        peak[0] = max(
            peak[0],
            *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")),
            0,
        )
        threading.Event().wait(0.02)


if __name__ == "__main__":
    main()
