"""The two families of flags that are not ours: SGLang's and Megatron's, as their installed sources
declare them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from configs.command_line.families import FamilyFlag
from configs.schema import Config
from pipeline.wiring.model_checks import backend_problems, context_problems, read_shape

if TYPE_CHECKING:
    from stages.engine.server_args import ServerArg


class SGLangFlags:
    """`--sglang-NAME`: every option of SGLang's server.

    Numbers and choices are checked here, the rest by SGLang at its start.
    """

    section, title = "sglang", "SGLang"

    def names(self) -> Collection[str]:
        from stages.engine.server_args import server_arg_names

        return server_arg_names()

    def flags(self) -> Iterable[FamilyFlag]:
        from stages.engine.server_args import server_args

        for arg in server_args().values():
            yield FamilyFlag(name=arg.names[0], expects=_expects(arg), help=arg.help)

    def parse(self, name: str, values: Sequence[str]) -> tuple[str, Any]:
        from stages.engine.server_args import server_arg

        arg = server_arg(name)
        if values and [v.lower() for v in values] == ["none"]:
            return arg.field, None
        if arg.is_switch:
            if len(values) > 1 or (values and values[0].lower() not in ("true", "false")):
                raise ValueError("expected no value, true or false")
            return arg.field, not values or values[0].lower() == "true"
        if not values or (len(values) > 1 and not arg.takes_list):
            raise ValueError(f"expected {_expects(arg)}, got {len(values)} values")
        try:
            parsed = [arg.number(v) if arg.number else v for v in values]
        except ValueError:
            raise ValueError(f"expected {_expects(arg)}") from None
        if arg.choices and not set(values) <= set(arg.choices):
            raise ValueError(f"expected {_expects(arg)}")
        return arg.field, parsed if arg.takes_list else parsed[0]

    def problems(self, config: Config) -> Iterator[str]:
        yield from context_problems(config, read_shape(config.model.hf_checkpoint))


def _expects(arg: ServerArg) -> str:
    if arg.is_switch:
        return "no value, true or false"
    one = (
        "one of " + ", ".join(arg.choices)
        if arg.choices
        else {int: "an integer", float: "a number"}.get(arg.number or str, "a value")
    )
    return one + (", one or more" if arg.takes_list else "")


class MegatronFlags:
    """Every settable field of TransformerConfig, OptimizerConfig and DistributedDataParallelConfig,
    under its own name."""

    section, title = "megatron", "Megatron"

    def names(self) -> Collection[str]:
        from stages.learn.megatron.arguments import megatron_flags

        return [
            *megatron_flags(),
            *(f"no_{flag.name}" for flag in megatron_flags().values() if flag.is_bool),
        ]

    def flags(self) -> Iterable[FamilyFlag]:
        from stages.learn.megatron.arguments import megatron_flags

        for flag in megatron_flags().values():
            yield FamilyFlag(
                name=flag.name, expects=flag.type, help=flag.help, default=flag.default
            )

    def parse(self, name: str, values: Sequence[str]) -> tuple[str, Any]:
        from stages.learn.megatron.arguments import convert, megatron_flags

        if name not in megatron_flags():
            if values:
                raise ValueError("is a switch: expected no value")
            return name.removeprefix("no_"), False
        flag = megatron_flags()[name]
        if not values and not flag.is_bool:
            raise ValueError(f"expected {flag.type}")
        return name, convert(
            name, "true" if not values else values[0] if len(values) == 1 else list(values)
        )

    def problems(self, config: Config) -> Iterator[str]:
        yield from backend_problems(config, read_shape(config.model.hf_checkpoint))


FAMILIES = (SGLangFlags(), MegatronFlags())
