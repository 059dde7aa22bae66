"""Small helpers."""

from __future__ import annotations

from typing import Any

from pipeline.core.slime_names import refuse
from pipeline.core.userfn import load_function

__all__ = ["SingletonMeta", "load_function"]
__getattr__ = refuse("slime.utils.misc")


class SingletonMeta(type):
    """The metaclass of a class that is made once a process."""

    _instances: dict[type, Any] = {}  # noqa: RUF012

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls not in SingletonMeta._instances:
            SingletonMeta._instances[cls] = super().__call__(*args, **kwargs)
        return SingletonMeta._instances[cls]

    def clear_instances(cls) -> None:
        SingletonMeta._instances.clear()
