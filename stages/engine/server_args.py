"""Every option of SGLang's server, read from its installed source: naming one must not cost the ten
seconds of importing SGLang.

ServerArgs is assembled from the classes in `sglang/srt/arg_groups/fields/*.py`, whose fields look
like `port: A[int, "help"] = 30000` or `port: A[int, Arg(help=..., aliases=[...], cli_name=...,
no_cli=...)] = 30000`."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError

# Registered by hand in ServerArgs.add_cli_args: fields with computed choices, and two deprecated
# switches.
BY_HAND = ("sampling_backend", "reasoning_parser", "tool_call_parser", "kv_canary_real_data")
SWITCHES_BY_HAND = ("disable_cuda_graph", "enable_flashinfer_allreduce_fusion")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerArg:
    """One option of SGLang's server.

    `--sglang-NAME` sets `field`, for every NAME in `names` (underscores here, dashes on the command
    line)."""

    field: str
    names: tuple[str, ...]
    help: str
    is_switch: bool  # takes no value
    has_negative: bool  # a switch that also knows --no-...
    takes_list: bool  # takes one value or more
    # what each value must be; None: text, or a form of its own
    number: type[int] | type[float] | None = None
    choices: tuple[str, ...] = ()  # allowed words, as far as the source spells them out

    @property
    def flag(self) -> str:
        """SGLang's own spelling, e.g. --tensor-parallel-size."""
        return "--" + self.names[0].replace("_", "-")


@functools.cache
def server_args() -> Mapping[str, ServerArg]:
    """Every option by field name. Raises ConfigError when SGLang is not installed."""
    found: dict[str, ServerArg] = {}
    for path in sorted(_fields_folder().glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.update(
                    (arg.field, arg) for arg in map(_server_arg, node.body) if arg is not None
                )
    for name in (*BY_HAND, *SWITCHES_BY_HAND):
        by_hand = ServerArg(
            field=name,
            names=(name,),
            help="",
            is_switch=name in SWITCHES_BY_HAND,
            has_negative=False,
            takes_list=False,
        )
        found.setdefault(name, by_hand)
    return found


def server_arg_names() -> tuple[str, ...]:
    """Every name under which an option can be given, aliases included, with underscores."""
    return tuple(_by_name())


def server_arg(name: str) -> ServerArg:
    """The option with this name (field, SGLang's flag or an alias; dashes or underscores).

    Raises KeyError.
    """
    return _by_name()[name.replace("-", "_")]


@functools.cache
def _by_name() -> Mapping[str, ServerArg]:
    out: dict[str, ServerArg] = {}
    for arg in server_args().values():
        for name in (arg.field, *arg.names):
            out.setdefault(name, arg)
    return out


def to_command_line(values: Mapping[str, Any]) -> list[str]:
    """ServerArgs values as SGLang's command line takes them.

    None and a switch that is off are left out.
    """
    return [word for name, value in values.items() for word in _words(server_arg(name), value)]


def _words(arg: ServerArg, value: Any) -> Iterator[str]:
    if value is None:
        return
    if arg.is_switch:
        if value or arg.has_negative:
            yield arg.flag if value else "--no-" + arg.flag.removeprefix("--")
        return
    yield arg.flag
    if isinstance(value, list | tuple):
        yield from map(str, value)
    else:
        yield json.dumps(value) if isinstance(value, Mapping) else str(value)


def _fields_folder() -> Path:
    spec = importlib.util.find_spec("sglang")  # finds the package, does not run it
    folder = (
        Path((spec.submodule_search_locations or [""])[0] if spec else "")
        / "srt"
        / "arg_groups"
        / "fields"
    )
    if not folder.is_dir():
        raise ConfigError(
            "SGLang 0.5.21 is not installed (its srt/arg_groups/fields is missing): run `make"
            " setup`"
        )
    return folder


def _server_arg(node: ast.stmt) -> ServerArg | None:
    """The option that one annotated field declares; None for what has no command line."""
    if not (
        isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.annotation, ast.Subscript)
    ):
        return None
    annotation, field = node.annotation, node.target.id
    if not (
        isinstance(annotation.value, ast.Name)
        and annotation.value.id == "A"
        and isinstance(annotation.slice, ast.Tuple)
    ):
        return None
    type_node, meta = annotation.slice.elts[:2]
    said = (
        {k.arg: k.value for k in meta.keywords if k.arg}
        if isinstance(meta, ast.Call)
        else {"help": meta}
    )
    derived = isinstance(meta, ast.Call) and getattr(meta.func, "id", "") != "Arg"
    if derived or _literal(said.get("no_cli"), False):
        return None
    flag = str(_literal(said.get("cli_name"), field)).lstrip("-").replace("-", "_")
    aliases = [
        str(alias).lstrip("-").replace("-", "_") for alias in _literal(said.get("aliases"), [])
    ]
    type_text = ast.unparse(type_node)
    action = ast.unparse(said["action"]) if "action" in said else ""
    of_bool = type_text in ("bool", "Optional[bool]") and "type_parser" not in said
    return ServerArg(
        field=field,
        names=(flag, *aliases),
        help=" ".join(str(_literal(said.get("help"), "")).split()),
        is_switch=(of_bool and not action)
        or action.endswith(("BooleanOptionalAction", "TrueAction")),
        has_negative=action.endswith("BooleanOptionalAction"),
        takes_list=("List[" in type_text and "type_parser" not in said)
        or _literal(said.get("nargs"), "") in ("+", "*"),
        number=None if "type_parser" in said else _number(type_text),
        choices=_choices(type_node, said),
    )


def _number(type_text: str) -> type[int] | type[float] | None:
    match = re.fullmatch(r"(?:Optional\[)?(?:List\[)?(int|float)\]*", type_text)
    return {"int": int, "float": float}[match[1]] if match else None


def _choices(type_node: ast.expr, said: Mapping[str, ast.expr]) -> tuple[str, ...]:
    """The words in `choices=[...]`, else those of a Literal; none where they are computed or the
    value has a parser of its own."""
    if "type_parser" in said:
        return ()
    if "choices" in said:
        return tuple(str(c) for c in _literal(said["choices"], ()) if c is not None)
    literals = [
        n.slice
        for n in ast.walk(type_node)
        if isinstance(n, ast.Subscript) and ast.unparse(n.value) == "Literal"
    ]
    return tuple(
        str(c) for node in literals for c in _as_tuple(_literal(node, ())) if c is not None
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _literal(node: ast.expr | None, default: Any) -> Any:
    """A literal's value; `default` for anything that would have to be run (an f-string, a call)."""
    try:
        return default if node is None else ast.literal_eval(node)
    except ValueError:
        return default
