"""Tools of plain Python functions."""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from pipeline.core.errors import ConfigError
from stages.generate.tools.tool import Tool, tool_from_function


class Unit(enum.Enum):
    KM = "km"
    MILE = "mile"


@dataclass
class Point:
    x: float
    y: float = 0.0


class Options(TypedDict):
    depth: int
    label: NotRequired[str]


def test_a_function_in_googles_form() -> None:
    def distance(
        start: Point, stops: list[tuple[int, ...]], unit: Unit = Unit.KM, note: str | None = None
    ) -> str:
        """How far it is.

        Over all stops.

        Args:
            start: where it begins,
                in degrees
            stops (list): what lies
              between: in order
            note: free words
        Returns:
            the distance
        """
        return ""

    tool = tool_from_function(distance)
    assert tool.definition == {
        "type": "function",
        "function": {
            "name": "distance",
            "description": "How far it is.\n\nOver all stops.",
            "parameters": {
                "type": "object",
                "properties": {
                    "start": {
                        "type": "object",
                        "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
                        "required": ["x"],
                        "additionalProperties": False,
                        "description": "where it begins, in degrees",
                    },
                    "stops": {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "integer"}},
                        "description": "what lies between: in order",
                    },
                    "unit": {"type": "string", "enum": ["km", "mile"]},
                    "note": {
                        "anyOf": [{"type": "string"}, {"type": "null"}],
                        "description": "free words",
                        "default": None,
                    },
                },
                "required": ["start", "stops"],
                "additionalProperties": False,
            },
        },
    }


def test_numpys_and_sphinxs_forms_and_annotated() -> None:
    def numpy(a: int, b: int, c: Literal["x", "y"] = "x") -> int:
        """Adds.

        Parameters
        ----------
        a, b : int
            The terms
            of the sum.
        c
            A letter.

        Returns
        -------
        int
        """
        return a + b

    def sphinx(a: Annotated[int, "hidden"], b: Annotated[dict[str, int], "shown"], c: Options):
        """Adds.

        :param int a: a term
            of the sum
        :param c: options
        :returns: the sum
        """

    of_numpy = tool_from_function(numpy)
    said = {k: v.get("description") for k, v in of_numpy.parameters["properties"].items()}
    assert of_numpy.description == "Adds."
    assert said == {"a": "The terms of the sum.", "b": "The terms of the sum.", "c": "A letter."}
    assert of_numpy.parameters["properties"]["c"]["enum"] == ["x", "y"]
    of_sphinx = tool_from_function(sphinx)
    assert of_sphinx.description == "Adds."
    assert of_sphinx.parameters["properties"] == {
        "a": {"type": "integer", "description": "a term of the sum"},
        "b": {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "description": "shown",
        },
        "c": {
            "type": "object",
            "properties": {"depth": {"type": "integer"}, "label": {"type": "string"}},
            "required": ["depth"],
            "additionalProperties": False,
            "description": "options",
        },
    }


async def test_the_call_has_pythons_values_and_gives_text() -> None:
    seen: list[Any] = []

    async def show(
        p: Point | None, us: tuple[Unit, ...], o: Options, m: Mapping[str, Point], f: float
    ) -> Any:
        seen.append((p, us, o, m, f))
        return {"ä": [1, None]}

    text = await tool_from_function(show).call(
        {"p": {"x": 1}, "us": ["km"], "o": {"depth": 2}, "m": {"k": {"x": 0.5, "y": 2}}, "f": 3}
    )
    assert text == '{"ä": [1, null]}'
    assert seen == [(Point(1.0), (Unit.KM,), {"depth": 2}, {"k": Point(0.5, 2.0)}, 3.0)]
    assert isinstance(seen[0][0].x, float) and isinstance(seen[0][4], float)


async def test_a_plain_function_runs_in_a_thread() -> None:
    def where() -> str:
        return threading.current_thread().name

    assert await tool_from_function(where).call({}) != threading.main_thread().name


async def test_a_bound_method_and_a_callable_object() -> None:
    class Counter:
        """Counts."""

        def __init__(self) -> None:
            self.count = 0

        def add(self, n: int = 1) -> int:
            """Adds `n`."""
            self.count += n
            return self.count

        async def __call__(self) -> int:
            return self.count

    counter = Counter()
    assert await tool_from_function(counter.add).call({"n": 3}) == "3"
    whole = tool_from_function(counter, name="count")
    assert (whole.description, await whole.call({})) == ("Counts.", "3")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (bytes, "type <class 'bytes'>"),
        (dict[int, str], "type dict"),
        (tuple[int, str], "type tuple"),
        (Literal[b"x"], "one of the values"),
        (list[set[int]], "type set"),
    ],
)
def test_what_json_cannot_say_is_named(kind: Any, said: str) -> None:
    def look(at: Any) -> None: ...

    look.__annotations__["at"] = kind
    with pytest.raises(ConfigError, match=r"look\(at\) has.*expected str, int") as error:
        tool_from_function(look)
    assert said in str(error.value)


def test_a_parameter_without_a_type_or_a_name() -> None:
    def bare(x): ...
    def many(*rest: int) -> None: ...

    with pytest.raises(ConfigError, match="parameter x of the tool bare has no type"):
        tool_from_function(bare)
    with pytest.raises(ConfigError, match=r"many takes \*rest"):
        tool_from_function(many)
    with pytest.raises(ConfigError, match="named 'two words'"):
        Tool(name="two words", description="", parameters={}, call=None)  # type: ignore[arg-type]
