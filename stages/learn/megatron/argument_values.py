"""Turns the words of a flag into a value of the field's annotated type."""

from __future__ import annotations

import ast
import json
from typing import Any

DTYPES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}
ENUMS = {
    "AttnBackend": ("flash", "fused", "unfused", "local", "auto"),
    "CudaGraphScope": (),
    "InferenceCudaGraphScope": ("none", "layer", "block"),
}
SCALARS = {"int": "an integer", "float": "a number", "str": "text", "bool": "true or false"}


def parse(node: ast.expr, given: Any) -> tuple[bool, Any]:
    """(does it fit, value) of `given` under an annotation."""
    text = ast.unparse(node)
    if isinstance(node, ast.Constant) and node.value is None:
        return (given is None or str(given).lower() in ("none", "null")), None
    if text in SCALARS:
        return _parse_scalar(text, given)
    if text == "torch.dtype":
        key = str(given).removeprefix("torch.")
        return key in DTYPES, DTYPES.get(key)
    if text in ENUMS:
        return (str(given) in ENUMS[text] or not ENUMS[text]), str(given)
    head, items = text, []
    if isinstance(node, ast.Subscript):
        head = ast.unparse(node.value).split(".")[-1]
        items = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if head == "Literal":
        match = [v for v in map(ast.literal_eval, items) if str(v) == str(given)]
        return bool(match), match[0] if match else None
    if head in ("Optional", "Union"):
        return _parse_union(head, items, given)
    if head.lower() in ("list", "tuple"):
        return _parse_list(items, given)
    return _parse_dict(given) if head == "dict" else (False, None)


def _parse_scalar(kind: str, given: Any) -> tuple[bool, Any]:
    word = str(given).strip()
    if kind == "bool":
        table = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        return word.lower() in table, table.get(word.lower())
    if kind == "str":
        return isinstance(given, str), given
    try:
        return (
            (False, None)
            if isinstance(given, bool)
            else (True, int(word) if kind == "int" else float(word))
        )
    except ValueError:
        return False, None


def _parse_union(head: str, items: list[ast.expr], given: Any) -> tuple[bool, Any]:
    if head == "Optional" and (given is None or str(given).lower() in ("none", "null")):
        return True, None
    # Text fits everything, so a plain string is the last alternative tried; but a single word is no
    # list of one where it may be text.
    if (
        isinstance(given, str)
        and any(ast.unparse(i) == "str" for i in items)
        and given.replace("_", "").isalnum()
    ):
        items = [
            i
            for i in items
            if ast.unparse(i).split("[")[0].split(".")[-1].lower() not in ("list", "tuple")
        ]
    for item in sorted(items, key=lambda i: ast.unparse(i) == "str"):
        ok, value = parse(item, given)
        if ok:
            return True, value
    return False, None


def _parse_list(items: list[ast.expr], given: Any) -> tuple[bool, Any]:
    if isinstance(given, str):
        if given.strip().startswith(("[", "(")):
            try:
                given = ast.literal_eval(given.strip())
            except (ValueError, SyntaxError):
                return False, None
        else:
            given = given.replace(",", " ").split()
    if not isinstance(given, list | tuple):
        return False, None
    if not items:
        return True, list(given)
    parsed = [parse(items[min(i, len(items) - 1)], g) for i, g in enumerate(given)]
    return bool(given) and all(ok for ok, _ in parsed), [v for _, v in parsed]


def _parse_dict(given: Any) -> tuple[bool, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return False, None
    return isinstance(given, dict), given
