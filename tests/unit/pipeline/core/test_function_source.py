"""A function's signature and what it reads, as its source says."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from pipeline.core.function_source import attributes_read, find_source, signature_of


def read_by(source: str, name: str = "f") -> list[tuple[str, int]]:
    found = find_source(Path("mine.py"), ast.parse(source), name)
    assert found is not None
    return [(read.name, read.line) for read in attributes_read(found)]


@pytest.mark.parametrize(
    "parameters", ["", "a", "a, /, b, *, c", "a, b=1, *rest, c=2, d, **more", "a=1, /, b=2, *, c"]
)
def test_a_signature_is_what_inspect_makes_of_the_function(parameters: str) -> None:
    scope: dict[str, object] = {}
    exec(f"def f({parameters}): ...", scope)
    real = inspect.signature(scope["f"])  # type: ignore[arg-type]
    (node,) = ast.parse(f"def f({parameters}): ...").body
    assert isinstance(node, ast.FunctionDef)
    kinds = [(p.name, p.kind, p.default is p.empty) for p in real.parameters.values()]
    made = signature_of(node).parameters.values()
    assert [(p.name, p.kind, p.default is p.empty) for p in made] == kinds


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("def f(args):\n    return args.a + args.b.c", [("a", 2), ("b", 2)]),
        ("def f(args):\n    setattr(args, 'a', 1)\n    return args.a, args.b", [("b", 3)]),
        ("def f(args):\n    for n in N: setattr(args, n, 1)\n    return args.a", []),
        ("def f(args):\n    vars(args).update(N)\n    return args.a", []),
        ("def f(a, b):\n    return b.x, a.y", [("y", 2)]),
        ("def f(args):\n    return g(1, args)\ndef g(n, o):\n    return o.x", [("x", 4)]),
        ("def f(args):\n    return g(o=args)\ndef g(n=1, *, o):\n    return o.x", [("x", 4)]),
        ("def f(args):\n    return g(1)\ndef g(args):\n    return args.x", []),
        ("def f(args):\n    return [args.x for _ in ()]", [("x", 2)]),
        ("def f(args):\n    return lambda: args.x", [("x", 2)]),
        ("def f(args):\n    return lambda args: args.x", []),
        ("def f(args):\n    args = 1\n    return args.x", []),
        ("def f(args):\n    return args.x if hasattr(args, 'x') else 1", []),
        ("def f(args):\n    return getattr(args, 'x', 1)", []),
        ("def f(args):\n    args.x = 1\n    return args.x", []),
        ("def f(args):\n    return args.__dict__", []),
        (
            "def f(args):\n    try:\n        args.x\n    except AttributeError:\n        args.y",
            [("y", 5)],
        ),
        ("def f(args):\n    try:\n        args.x\n    except KeyError:\n        pass", [("x", 3)]),
        ("def f(args):\n    f(args)\n    return args.x", [("x", 3)]),
    ],
)
def test_what_is_read_of_the_first_parameter(source: str, reads: list[tuple[str, int]]) -> None:
    assert read_by(source) == reads


def test_what_a_class_reads_of_the_object_it_keeps() -> None:
    source = (
        "class f:\n"
        "    def __init__(self, args):\n"
        "        self.kept = args\n"
        "        args.a\n"
        "    def later(self):\n"
        "        return self.kept.b, self.other.c\n"
    )
    assert read_by(source) == [("a", 4), ("b", 6)]


def test_a_name_that_is_bound_otherwise_has_no_source() -> None:
    assert find_source(Path("m.py"), ast.parse("f = print"), "f") is None
