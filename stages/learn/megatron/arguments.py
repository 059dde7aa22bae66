"""Megatron's flags: every field of its configuration dataclasses that a command line can set.

Names, types and help come from the installed source by `ast`, so that neither torch nor Megatron is
imported to parse a command line."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from stages.learn.megatron.argument_values import DTYPES, ENUMS, SCALARS, parse
from stages.learn.megatron.modelflags import MODEL_FLAGS, layer_pattern

# owner shown to the user -> (file below megatron/core, classes whose fields it has, base first)
OWNERS: dict[str, tuple[tuple[str, str], ...]] = {
    "TransformerConfig": (
        ("model_parallel_config.py", "ModelParallelConfig"),
        ("transformer/transformer_config.py", "TransformerConfig"),
        ("transformer/transformer_config.py", "MLATransformerConfig"),
    ),
    "OptimizerConfig": (("optimizer/optimizer_config.py", "OptimizerConfig"),),
    "DistributedDataParallelConfig": (
        ("distributed/distributed_data_parallel_config.py", "DistributedDataParallelConfig"),
    ),
}
MODEL = "Model"  # owner of the words that only restate the checkpoint
ACTIVATIONS = ("silu", "gelu", "relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One field that is a flag. `annotation` is Python source; `type` says the same in words."""

    name: str  # field name; the flag is "--" + name with dashes
    type: str
    annotation: str
    owners: tuple[str, ...]  # each of these gets the value
    help: str
    default: str | None  # Megatron's, as source
    is_bool: bool


@functools.cache
def _source(relative: str) -> ast.Module:
    spec = importlib.util.find_spec("megatron")
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root) / "core" / relative
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    raise ConfigError(
        f"megatron-core is not installed (no megatron/core/{relative}): run `make setup`, or drop"
        " Megatron's flags"
    )


def _fields(relative: str, class_name: str) -> dict[str, tuple[ast.expr, str | None, str]]:
    """name -> (annotation, default's source, docstring below the field)."""
    body = next(
        (
            n.body
            for n in _source(relative).body
            if isinstance(n, ast.ClassDef) and n.name == class_name
        ),
        None,
    )
    if body is None:
        raise ConfigError(
            f"megatron-core has no {class_name} in {relative}: versions 0.16.1 and 0.19.2 are known"
        )
    out = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        doc = (
            after.value.value
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            else ""
        )
        default = ast.unparse(node.value) if node.value is not None else None
        out[node.target.id] = (node.annotation, default, inspect.cleandoc(str(doc)))
    return out


def _describe(node: ast.expr) -> str | None:
    """The annotation in words; None where no command line could give such a value (functions,
    process groups)."""
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    text = ast.unparse(node)
    if text in SCALARS:
        return SCALARS[text]
    if text == "torch.dtype":
        return "one of " + ", ".join(DTYPES)
    if text in ENUMS:
        return "one of " + ", ".join(ENUMS[text]) if ENUMS[text] else "text"
    if isinstance(node, ast.Subscript):
        head = ast.unparse(node.value).split(".")[-1]
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if head == "Literal":
            return "one of " + ", ".join(str(ast.literal_eval(i)) for i in items)
        if head in ("Optional", "Union"):
            words = [w for w in map(_describe, items) if w is not None]
            return " or ".join(dict.fromkeys(words)) or None
        if head.lower() in ("list", "tuple"):
            return "a list, e.g. [1,2]"
    return (
        "a list, e.g. [1,2]"
        if text in ("list", "tuple")
        else "a JSON object"
        if text == "dict"
        else None
    )


@functools.cache
def megatron_flags() -> dict[str, Flag]:
    """Every settable field by name, in Megatron's order.

    A name that several classes have lists them all as owners.
    """
    flags: dict[str, Flag] = {}
    for owner, classes in OWNERS.items():
        merged: dict[str, tuple[ast.expr, str | None, str]] = {}
        for relative, class_name in classes:
            merged.update(_fields(relative, class_name))
        for name, (annotation, default, doc) in merged.items():
            words = (
                "one of " + ", ".join(ACTIVATIONS)
                if name == "activation_func"
                else _describe(annotation)
            )
            if words is None or name.startswith("_"):
                continue
            if name in flags:
                old = flags[name]
                flags[name] = Flag(
                    **{
                        **{f: getattr(old, f) for f in Flag.__slots__},
                        "owners": (*old.owners, owner),
                    }
                )
                continue
            source = ast.unparse(annotation)
            is_bool = source in ("bool", "Optional[bool]")
            flags[name] = Flag(
                name=name,
                type=words,
                annotation=source,
                owners=(owner,),
                help=doc,
                default=default,
                is_bool=is_bool,
            )
    for name, (source, doc) in MODEL_FLAGS.items():
        words = _describe(ast.parse(source, mode="eval").body) or ""
        flag = Flag(
            name=name,
            type=words,
            annotation=source,
            owners=(MODEL,),
            help=doc,
            default=None,
            is_bool=source == "bool",
        )
        assert name not in flags, name
        flags[name] = flag
    return flags


def convert(name: str, text: Any) -> Any:
    """The value of flag `name` from the command line's text: bool, int, float, str, list or dict
    (dtypes and enums stay names).

    Values that are not text (from YAML, say) are checked the same way. Raises ConfigError with
    flag, value and what was expected."""
    flags = megatron_flags()
    if name not in flags:
        raise ConfigError(f"--{name.replace('_', '-')} is not a Megatron flag")
    flag = flags[name]
    node: ast.expr = ast.parse(flag.annotation, mode="eval").body
    if name == "activation_func":
        node = ast.parse(f"Literal{list(ACTIVATIONS)}", mode="eval").body
    # annotated as int; Megatron's attention takes None for a query without low rank
    if name == "q_lora_rank":
        node = ast.parse("Optional[int]", mode="eval").body
    if name == "moe_layer_freq" and isinstance(text, str):
        text = layer_pattern(text) or text
    ok, value = parse(node, text)
    if not ok:
        raise ConfigError(f"--{name.replace('_', '-')} {text}: expected {flag.type}")
    return value


def model_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in `values` that speaks of the model: TransformerConfig's fields, and the words
    that restate the checkpoint."""
    return {**owned_by("TransformerConfig", values), **owned_by(MODEL, values)}


def owned_by(owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that `owner` (a key of OWNERS, or MODEL) takes, converted and resolved to
    torch and enum objects.

    Imports torch and Megatron. Raises ConfigError for a name that is no Megatron flag.
    """
    flags = megatron_flags()
    out = {}
    for name, given in values.items():
        value = convert(name, given)
        if owner in flags[name].owners:
            out[name] = _resolve(name, flags[name].annotation, value)
    return out


def _resolve(name: str, annotation: str, value: Any) -> Any:
    import torch

    if value is None:
        return None
    if "torch.dtype" in annotation:
        return getattr(torch, value)
    for enum in ("AttnBackend", "InferenceCudaGraphScope"):
        if enum in annotation:
            return getattr(importlib.import_module("megatron.core.transformer.enums"), enum)[value]
    return getattr(torch.nn.functional, value) if name == "activation_func" else value
