"""The two families of flags that are not ours: SGLang's and Megatron's, as their installed sources declare them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from configs.families import FamilyFlag


class SGLangFlags:
    """`--sglang-NAME`: every option of SGLang's server. Values stay text: SGLang's own parser has the last word."""

    section, title = "sglang", "SGLang"

    def names(self) -> Collection[str]:
        from stages.engine.flags import server_arg_names

        return server_arg_names()

    def flags(self) -> Iterable[FamilyFlag]:
        from stages.engine.flags import server_args

        for arg in server_args().values():
            expects = "true or false" if arg.is_switch else "one value or more" if arg.takes_list else "a value"
            yield FamilyFlag(name=arg.names[0], expects=expects, help=arg.help)

    def parse(self, name: str, values: Sequence[str]) -> tuple[str, Any]:
        from stages.engine.flags import server_arg

        arg = server_arg(name)
        if values and [v.lower() for v in values] == ["none"]:
            return arg.field, None
        if arg.is_switch:
            if len(values) > 1 or (values and values[0].lower() not in ("true", "false")):
                raise ValueError("expected no value, true or false")
            return arg.field, not values or values[0].lower() == "true"
        if not values:
            raise ValueError("expected a value")
        if not arg.takes_list and len(values) > 1:
            raise ValueError("expected one value")
        return arg.field, list(values) if arg.takes_list else values[0]


class MegatronFlags:
    """Every settable field of TransformerConfig, OptimizerConfig and DistributedDataParallelConfig, by its own name."""

    section, title = "megatron", "Megatron"

    def names(self) -> Collection[str]:
        from stages.learn.megatron.flags import megatron_flags

        return megatron_flags().keys()

    def flags(self) -> Iterable[FamilyFlag]:
        from stages.learn.megatron.flags import megatron_flags

        for flag in megatron_flags().values():
            yield FamilyFlag(name=flag.name, expects=flag.type, help=flag.help, default=flag.default)

    def parse(self, name: str, values: Sequence[str]) -> tuple[str, Any]:
        from stages.learn.megatron.flags import convert, megatron_flags

        if not values and megatron_flags()[name].is_bool:
            return name, True
        if not values:
            raise ValueError(f"expected {megatron_flags()[name].type}")
        text = values[0] if len(values) == 1 else "[" + ",".join(values) + "]"
        return name, convert(name, text)


FAMILIES = (SGLangFlags(), MegatronFlags())
