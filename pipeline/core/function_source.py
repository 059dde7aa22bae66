"""A user's function as its source describes it, read without running any of it: how it can be
called, and what it reads from its first parameter."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSource:
    """A function or class at the top level of a file that was read."""

    file: Path
    node: Function | ast.ClassDef
    tree: ast.Module

    @property
    def where(self) -> str:
        return f"{self.file} line {self.node.lineno}"

    @property
    def is_decorated(self) -> bool:
        """A decorated function may have to be called otherwise than its source says."""
        return bool(self.node.decorator_list)

    def method(self, name: str) -> Function | None:
        """A method of the class, which it or a base class in the same file defines."""
        return _method(self.tree, self.node, name) if isinstance(self.node, ast.ClassDef) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeRead:
    """`args.name` on a line of the file, in a function."""

    name: str
    line: int
    function: str


def find_source(file: Path, tree: ast.Module, name: str) -> FunctionSource | None:
    """The function or class of this name; None where the name is bound in another way, by an import
    or a call, say."""
    for node in reversed(tree.body):
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return FunctionSource(file=file, node=node, tree=tree)
    return None


def signature_of(node: Function, *, bound: bool = False) -> inspect.Signature:
    """As `inspect.signature` would give it, defaults aside; `bound`: of a method, without self."""
    a, kind = node.args, inspect.Parameter
    positional = [*a.posonlyargs, *a.args]
    parameters = [
        kind(
            arg.arg,
            kind.POSITIONAL_ONLY if i < len(a.posonlyargs) else kind.POSITIONAL_OR_KEYWORD,
            default=kind.empty if i < len(positional) - len(a.defaults) else None,
        )
        for i, arg in enumerate(positional)
    ]
    if a.vararg:
        parameters.append(kind(a.vararg.arg, kind.VAR_POSITIONAL))
    parameters += [
        kind(arg.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else None)
        for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]
    if a.kwarg:
        parameters.append(kind(a.kwarg.arg, kind.VAR_KEYWORD))
    return inspect.Signature(parameters[1:] if bound else parameters)


def attributes_read(source: FunctionSource, place: int = 0) -> Iterator[AttributeRead]:
    """Every `args.NAME` that a call reads, where `args` is the function's parameter at `place` (of
    a class: its constructor's first, and the attribute that keeps it): in it and in the functions
    of its file that it hands `args` to.

    Left out is what the code is prepared not to find: under `hasattr(args, "NAME")`, assigned in
    the file, or read where an AttributeError is caught. Of a file that sets names which it computes
    nothing can be said."""
    reader = _Reader(source.tree)
    if not isinstance(source.node, ast.ClassDef):
        yield from reader.reads(source.node, _first(source.node, place))
        return
    constructor = source.method("__init__")
    if constructor is None:
        return
    parameter = _first(constructor, 1)
    yield from reader.reads(constructor, parameter)
    for kept in _kept_as(constructor, parameter):
        for method in source.node.body:
            if isinstance(method, Function):
                yield from reader.reads(method, kept)


class _Reader:
    """Follows one object through the functions of a file."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree, self._expected = tree, _expected(tree)
        self._sets_computed_names = any(map(_sets_computed_names, ast.walk(tree)))
        self._seen: set[tuple[int, str]] = set()

    def reads(self, node: Function, parameter: str | None) -> Iterator[AttributeRead]:
        """`parameter`: the expression that stands for the object within `node`; None for none."""
        seen = (node.lineno, parameter) in self._seen
        if parameter is None or seen or self._sets_computed_names:
            return
        self._seen.add((node.lineno, parameter))
        for inner in _within(node.body, parameter):
            match inner:
                case ast.Attribute(ctx=ast.Load()) if ast.unparse(inner.value) == parameter:
                    if inner.attr not in self._expected and not inner.attr.startswith("__"):
                        yield AttributeRead(name=inner.attr, line=inner.lineno, function=node.name)
                case ast.Call(func=ast.Name(id=called)):
                    callee = _function(self._tree.body, called)
                    if callee is not None:
                        yield from self.reads(callee, _handed_on(inner, callee, parameter))


def _expected(tree: ast.Module) -> set[str]:
    """Names that the file looks for with hasattr before it reads them, or sets itself, of whatever
    object."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case (
                ast.Call(
                    func=ast.Name(id="hasattr" | "setattr"),
                    args=[_, ast.Constant(value=str(name)), *_],
                )
                | ast.Attribute(attr=name, ctx=ast.Store() | ast.Del())
            ):
                names.add(name)
    return names


def _sets_computed_names(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="setattr"), args=[_, name, *_]):
            return not isinstance(name, ast.Constant)
        case ast.Call(
            func=ast.Attribute(
                value=ast.Call(func=ast.Name(id="vars")) | ast.Attribute(attr="__dict__"),
                attr="update",
            )
        ):
            return True
    return False


def _within(body: Sequence[ast.AST], parameter: str) -> Iterator[ast.AST]:
    """All nodes in which the name still means the same and an absent attribute is an error; none
    where it is bound anew."""
    top = parameter.split(".")[0]
    rebound = any(
        isinstance(n, ast.Name) and n.id == top and isinstance(n.ctx, ast.Store)
        for part in body
        for n in ast.walk(part)
    )
    waiting = [] if rebound else list(reversed(body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.Lambda) and top in _parameters(node):
            continue
        yield node
        left_out = node.body if isinstance(node, ast.Try) and _catches_absence(node) else []
        waiting += [n for n in reversed(list(ast.iter_child_nodes(node))) if n not in left_out]


def _catches_absence(node: ast.Try) -> bool:
    caught = [ast.unparse(h.type) if h.type else "Exception" for h in node.handlers]
    return any(name in text for text in caught for name in ("AttributeError", "Exception"))


def _parameters(node: Function | ast.Lambda) -> set[str]:
    a = node.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return {arg.arg for arg in named}


def _handed_on(call: ast.Call, callee: Function, parameter: str) -> str | None:
    """The callee's name for the object, if the call gives it on."""
    positional = [*callee.args.posonlyargs, *callee.args.args]
    for given, taken in zip(call.args, positional, strict=False):
        if isinstance(given, ast.Starred):
            break
        if ast.unparse(given) == parameter:
            return taken.arg
    names = [k.arg for k in call.keywords if ast.unparse(k.value) == parameter]
    return next((name for name in names if name in _parameters(callee)), None)


def _kept_as(constructor: Function, parameter: str | None) -> list[str]:
    """The attributes (`self.args`) that a constructor keeps its parameter as."""
    kept = []
    for node in ast.walk(constructor):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                kept += [
                    ast.unparse(place)
                    for place, value in _pairs(target, node.value)
                    if isinstance(value, ast.Name)
                    and value.id == parameter
                    and isinstance(place, ast.Attribute)
                ]
    return kept


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def _first(node: Function, place: int) -> str | None:
    positional = [*node.args.posonlyargs, *node.args.args]
    return positional[place].arg if len(positional) > place else None


def _method(tree: ast.Module, node: ast.ClassDef, name: str) -> Function | None:
    found = _function(node.body, name)
    for base in (b.id for b in node.bases if isinstance(b, ast.Name)) if found is None else ():
        above = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == base]
        if above and above[-1].lineno < node.lineno:
            found = found or _method(tree, above[-1], name)
    return found


def _function(body: Sequence[ast.stmt], name: str) -> Function | None:
    found = [n for n in body if isinstance(n, Function) and n.name == name]
    return found[-1] if found else None
