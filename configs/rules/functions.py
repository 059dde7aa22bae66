"""Are the user's functions there, can they be called as they will be, and do they read flags that
exist? Told before anything starts, from their sources: no user code runs."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from configs.hook import Hook, can_be_called, second_parameter
from configs.hooks import HOOKS
from configs.schema import Config, absence, flat_args
from pipeline.core.errors import ConfigError
from pipeline.core.function_source import Function, FunctionSource, attributes_read, signature_of
from pipeline.core.userfn import check_function, read_source


def functions(config: Config) -> Iterator[str]:
    known = vars(flat_args(config))
    for hook, spec in ((h, spec) for h in HOOKS.values() for spec in h.paths(config)):
        try:
            named = hook.named(spec, group=hook.takes_groups(config))
            source = check_function(named, hook.default_name)
        except ConfigError as error:
            yield f"{hook.flag} {error}"
            continue
        if source is not None:
            problems = [
                *_call_problems(hook, source),
                *_subject_problems(hook, source, config),
                *_flag_problems(hook, source, known),
            ]
            yield from (f"{hook.flag} {spec}: {problem}" for problem in problems)


def rollout_function(config: Config) -> Iterator[str]:
    """What a function that makes whole rollouts leaves nothing to do for."""
    rollout = config.rollout
    if rollout.rollout_function_path is None:
        return
    idle = {
        "--custom-generate-function-path": rollout.custom_generate_function_path,
        "--dynamic-sampling-filter-path": rollout.dynamic_sampling_filter_path,
        "--rollout-sample-hook-path": " ".join(rollout.rollout_sample_hook_path),
    }
    for flag, given in idle.items():
        if given:
            yield (
                f"{flag} {given} with --rollout-function-path {rollout.rollout_function_path}: its"
                " groups are trained on as they come, nobody would call it. Drop one, and let the"
                " rollout function do it"
            )


def _call_problems(hook: Hook, source: FunctionSource) -> Iterator[str]:
    node = source.node
    if isinstance(node, ast.ClassDef):
        yield from _class_problems(hook, source)
    elif source.is_decorated:
        return  # what is called may have another signature
    elif hook.style in ("plain", "class") and isinstance(node, ast.AsyncFunctionDef):
        yield f"{_said(source, node)} is async; expected {hook.expected}, called without await"
    elif not hook.takes(signature_of(node)):
        others = [name for name in hook.fitting(read_source(str(source.file))) if name != node.name]
        instead = f". {', '.join(others)} in the same file would fit" if others else ""
        yield (
            f"{_said(source, node)} cannot be called as it will be; expected"
            f" {hook.expected}{instead}"
        )


def _subject_problems(hook: Hook, source: FunctionSource, config: Config) -> Iterator[str]:
    """A reward function that says by its parameter's name what it takes is given just that."""
    node = source.node
    if hook.field != "custom_rm_path" or isinstance(node, ast.ClassDef) or source.is_decorated:
        return
    second, group = second_parameter(node), hook.takes_groups(config)
    unfit = "sample" if group else "samples"
    if second != unfit or f"isinstance({second}" in ast.unparse(node):
        return
    yield (
        f"{_said(source, node)} takes {'one sample' if group else 'the samples of a group'};"
        f" {'with' if group else 'without'} --group-rm it is called with"
        f" {'the list of a group' if group else 'one sample'}:"
        f" {'name one that takes samples, or drop' if group else 'add'} --group-rm"
    )


def _class_problems(hook: Hook, source: FunctionSource) -> Iterator[str]:
    if hook.style != "class" or source.is_decorated:
        return  # an instance may be called: known when it is made
    wanted = {"__init__": hook.forms[0], **hook.methods}
    for name, form in wanted.items():
        method = source.method(name)
        inherits = getattr(source.node, "bases", []) or name == "__init__"
        if method is None:
            if not inherits:
                yield f"{source.where}: class {source.node.name} has no method {name}"
        elif not method.decorator_list and not can_be_called(
            signature_of(method, bound=True), form
        ):
            yield (
                f"{_said(source, method)} cannot be called as it will be; expected"
                f" {name}(self, {form.removeprefix('f(')}"
            )


def _said(source: FunctionSource, node: Function) -> str:
    return f"{source.file} line {node.lineno}: {node.name}({ast.unparse(node.args)})"


def _flag_problems(hook: Hook, source: FunctionSource, known: Collection[str]) -> Iterator[str]:
    if hook.args_place is None:
        return
    known = {*known, *hook.extra_args}
    for read in attributes_read(source, hook.args_place):
        if read.name not in known:
            yield (
                f"{source.file} line {read.line} reads args.{read.name} in {read.function}:"
                f" {absence(read.name, known)}"
            )
