"""One flag for a user's function: which calls fit it, and which function a file alone means."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from configs.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.core.function_source import Function, signature_of
from pipeline.core.userfn import SourceFile, read_source

BUILT_IN_FILTER = "zero_std"  # of --dynamic-sampling-filter-path


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One flag for a user's function."""

    section: str  # of Config
    field: str
    default_name: str  # where the flag names a file only
    # by which slime and its examples name such a function: taken where the default is not there
    also_named: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()  # of one that takes a whole group, where one is asked for
    forms: tuple[str, ...]  # as one writes it: `f(args, samples)`; the first is how it is called
    called: str  # when, in words
    style: Literal["plain", "either", "class"] = "plain"
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of a class
    # what args has beside the flags
    extra_args: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return f"--{self.field.replace('_', '-')}"

    @property
    def expected(self) -> str:
        """The forms of the call in words."""
        word = "[async] " if self.style == "either" else ""
        return " or ".join(word + form for form in self.forms)

    def paths(self, config: Config) -> tuple[str, ...]:
        """What the flag names, several where it may be repeated; not what is built in."""
        given: str | tuple[str, ...] | None = getattr(getattr(config, self.section), self.field)
        is_built_in = self.field == "dynamic_sampling_filter_path" and given == BUILT_IN_FILTER
        if given is None or is_built_in:
            return ()
        return (given,) if isinstance(given, str) else given

    @property
    def args_place(self) -> int | None:
        """Which of its parameters is `args`; None of one that is not given it."""
        named = self.forms[0].removeprefix("f(").removesuffix(")").split(", ")
        return named.index("args") if "args" in named else None

    def takes_groups(self, config: Config) -> bool:
        """Is it called with the samples of a group, where it could be with one?"""
        return self.field == "custom_rm_path" and config.reward.group_rm

    def named(self, spec: str, *, group: bool = False) -> str:
        """`spec` with the name of the function that it means.

        A file alone means the function of the default name, else one by another name that is known,
        else the only one that fits. Raises ConfigError where several do. `group`: one that takes a
        whole group is asked for."""
        if not spec.endswith(".py"):
            return spec
        file = read_source(spec)
        known = [*self.group_names] if group else []
        if group:
            known += _only([n.name for n in _functions(file) if second_parameter(n) == "samples"])
        fitting = list(self.fitting(file))
        # a class that is imported there is what that of the file is made of
        own = file.functions if self.style == "class" and fitting else file.names
        for name in (*known, self.default_name, *self.also_named):
            if name in own:
                return f"{spec}:{name}"
        if len(fitting) > 1 and not file.has_star:
            raise ConfigError(
                f"{spec!r} has no function {self.default_name!r}, and several that fit:"
                f" {', '.join(fitting)}; name one of them: {spec}:{fitting[0]}"
            )
        return f"{spec}:{fitting[0] if fitting else self.default_name}"

    def fitting(self, file: SourceFile) -> Iterator[str]:
        """The public functions (or classes) of the file that can be called as this one will be."""
        if self.style == "class":
            for node in file.tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    methods = {n.name for n in node.body if isinstance(n, Function)}
                    if methods & {*self.methods}:
                        yield node.name
            return
        for function in _functions(file):
            if not function.name.startswith("_") and self.fits(function):
                yield function.name

    def fits(self, node: Function) -> bool:
        """Can the function be called as it will be, and is it no helper? Many a helper has three
        parameters: a plain function that generates has a known name, or is named."""
        is_async = isinstance(node, ast.AsyncFunctionDef)
        if self.field == "custom_generate_function_path" and not is_async:
            return False
        return not (self.style == "plain" and is_async) and self.takes(signature_of(node))

    def takes(self, signature: inspect.Signature) -> bool:
        if self.field == "custom_generate_function_path":
            return generate_form(signature) is not None
        return any(can_be_called(signature, form) for form in self.forms)


def _functions(file: SourceFile) -> list[Function]:
    return [node for node in file.tree.body if isinstance(node, Function)]


def second_parameter(node: Function) -> str | None:
    """The name of the second parameter, by which a function says what it takes."""
    positional = [*node.args.posonlyargs, *node.args.args]
    return positional[1].arg if len(positional) > 1 else None


def _only(names: list[str]) -> list[str]:
    return names if len(names) == 1 else []


def can_be_called(signature: inspect.Signature, form: str) -> bool:
    """Does a call in this form fit? What is before the star is given by place, the rest by name."""
    parameters = signature_of(_parsed(form)).parameters.values()
    by_place = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        signature.bind(*by_place, **by_name)
    except TypeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class GenerateForm:
    """Which of a generate function's forms a signature has."""

    takes_list: bool
    takes_evaluation: bool


def generate_form(signature: inspect.Signature) -> GenerateForm | None:
    """None for no known form.

    The list form is the one whose second parameter is called `samples`, or whose third is
    `evaluation`."""
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = [p.name for p in parameters]
    takes_list = len(names) >= 2 and (names[1] == "samples" or names[2:3] == ["evaluation"])
    wanted = 2 if takes_list else 3
    required = [p.name for p in parameters if p.default is p.empty]
    if len(names) < wanted or set(required) - {*names[:wanted], "evaluation"}:
        return None
    return GenerateForm(takes_list, "evaluation" in names)


def _parsed(form: str) -> ast.FunctionDef:
    (node,) = ast.parse(f"def {form}: ...").body
    assert isinstance(node, ast.FunctionDef)
    return node
