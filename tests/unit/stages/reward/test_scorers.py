"""slime's scorers by its names: what each makes of an answer, at the edges of its rule."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from configs.schema.reward import RM_TYPES
from stages.reward.reward import CODE, JUDGE, REMOTE
from stages.reward.scorers import SCORERS
from stages.reward.scorers.boxed import PROMPT

BOX = r"So it is \boxed{42}"


def test_every_scorer_that_a_flag_names_is_there() -> None:
    assert {*SCORERS, REMOTE, JUDGE, CODE} == set(RM_TYPES)


@pytest.mark.parametrize(
    ("name", "response", "label", "expected"),
    [
        ("deepscaler", BOX, "42", 1.0),
        ("deepscaler", rf"<think>hm</think> {BOX}", 42, 1.0),
        ("deepscaler", rf"<think>{BOX}</think> I do not know", "42", 0.0),
        ("deepscaler", rf"<think>{BOX}", "42", 0.0),
        ("deepscaler", rf"\boxed{{1}} ###Response {BOX}", "42", 1.0),
        ("deepscaler", "the answer is 42", "42", 0.0),
        ("deepscaler", r"\boxed{\frac{1}{2}}", "0.5", 1.0),
        ("deepscaler", r"\boxed{\text{Tuesday}}", "tuesday", 1.0),
        ("deepscaler", r"\boxed{Monday}", "Tuesday", 0.0),
        ("deepscaler", r"\boxed{(1, 2)}", r"the pair \boxed{(1,2)}", 1.0),
        ("deepscaler", r"\boxed{7}", ["42", "7"], 1.0),
        ("boxed_math", BOX, "42", 1.0),
        ("boxed_math", r"\boxed{1} or \boxed{\frac{\sqrt{4}}{2}}", "1", 1.0),
        ("boxed_math", "42", "42", 0.0),
        ("boxed_math", r"\boxed{42", "42", 0.0),
        ("math", "42", "42", 1.0),
        ("boxed_exact_match", r"thus \boxed{ab c}", "ab c", 1.0),
        ("boxed_exact_match", "ab c", "ab c", 0.0),
        ("f1", "a b", "a c", 0.5),
        ("f1", "The Eiffel Tower, in Paris!", "eiffel tower", 2 / 3),
        ("f1", "an eiffel tower", "the eiffel tower", 1.0),
        ("f1", "no", "yes", 0.0),
        ("f1", "yes it is", "yes", 0.0),
        ("f1", "red red", "red", 2 / 3),
        ("f1", "x", ["y z", "x"], 1.0),
        ("f1", "", "x", 0.0),
        ("boxed_f1", r"b b \boxed{b}", "b", 1.0),
        ("gpqa", "... The answer is (C).", "C", 1.0),
        ("gpqa", r"**Answer:** \boxed{\text{C}}", "C", 1.0),
        ("gpqa", "Is A the answer? No, answer: B", "A", 0.0),
        ("gpqa", "<think>answer: B</think> answer: C", "C", 1.0),
        ("gpqa", "the answer is a prime, hence D", "D", 1.0),
        ("gpqa", "the answer is c.", "C", 1.0),
        ("gpqa", "B is correct", 1, 1.0),
        ("gpqa", r"\boxed{42}", "42", 1.0),
        ("gpqa", r"\boxed{142}", "42", 0.0),
        ("gpqa", "no idea", "C", 0.0),
        ("boxed_gpqa", r"A, or rather \boxed{B}", "B", 1.0),
    ],
)
def test_scores(name: str, response: str, label: Any, expected: float) -> None:
    assert SCORERS[name](response, label, {}) == pytest.approx(expected)


def test_a_prompt_that_opens_the_thoughts_makes_the_response_think() -> None:
    opened = {PROMPT: "<|user|>q<|assistant|><think>\n"}
    assert SCORERS["deepscaler"](BOX, "42", opened) == 0.0
    assert SCORERS["deepscaler"](f"</think> {BOX}", "42", opened) == 1.0


@pytest.mark.parametrize(
    ("metadata", "label", "response", "expected"),
    [
        ({"choices": ["red", "dark blue"]}, "Dark blue", "Answer: B", 1.0),
        ({"choices": {"A": "red", "B": "dark blue"}}, "Dark blue", "Answer: A", 0.0),
        ({"choices": ["red", "dark blue"]}, 1, "it is dark blue", 1.0),
        ({"choices": ["red", "dark blue"]}, "A", "E, or red", 1.0),
        ({"correct_letter": "b"}, "A", "answer: B", 1.0),
        ({"valid_letters": ["a", "b"]}, "B", "answer: B. I am sure", 1.0),
        ({"correct_answer": "a cat"}, None, "surely a cat.", 1.0),
    ],
)
def test_a_choice_is_told_by_what_its_row_says(
    metadata: dict[str, Any], label: Any, response: str, expected: float
) -> None:
    assert SCORERS["gpqa"](response, label, metadata) == expected


@pytest.mark.parametrize(
    ("response", "label", "read"),
    [
        ("Answer: 42", "42", "42"),
        ("answer : $x = 42$", "42.0", "42"),
        ("Answer: 1\nAnswer: \\boxed{1,042}", 1042, "1042"),
        ("Answer: 42 degrees", "42", "42"),
        (r"Answer: 42^\circ", "42", "42"),
        (r"Answer: $42\text{ cm}$", "42", "42"),
    ],
)
def test_dapo_reads_the_number_behind_the_last_answer(response: str, label: Any, read: str) -> None:
    assert SCORERS["dapo"](response, label, {}) == {"score": 1.0, "acc": 1.0, "pred": read}


@pytest.mark.parametrize(
    ("response", "pred"),
    [
        ("Answer: 41", "41"),
        ("42", "[INVALID]"),
        ("Answer: 42" + " " * 300, "[INVALID]"),
        ("Answer: 42.5", "42.5"),
    ],
)
def test_dapo_takes_one_off_for_anything_else(response: str, pred: str) -> None:
    assert SCORERS["dapo"](response, "42", {}) == {"score": -1.0, "acc": 0.0, "pred": pred}


@pytest.mark.parametrize("name", ["deepscaler", "dapo", "f1", "boxed_math", "boxed_f1"])
def test_without_a_label_there_is_no_score(name: str) -> None:
    with pytest.raises(ValueError, match="the label is None"):
        SCORERS[name](BOX, None, {})


def test_ifbench_asks_its_own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"instruction_id_list": ["count", "end"], "kwargs": [{"n": 3, "x": None}], "record_id": 7}
    with pytest.raises(ModuleNotFoundError, match=r"git clone https://github.com/allenai/IFBench"):
        SCORERS["ifbench"]("a b c", None, row)
    (tmp_path / "evaluation_lib.py").write_text(
        "from dataclasses import dataclass\n"
        "from types import SimpleNamespace\n"
        "@dataclass\nclass InputExample:\n"
        "    key: int\n    instruction_id_list: list\n    prompt: str\n    kwargs: list\n"
        "def test_instruction_following_strict(asked, responses):\n"
        "    assert (asked.key, asked.kwargs) == (7, [{'n': 3}, {'n': 3}]), asked\n"
        "    right = len(responses[asked.prompt].split()) == asked.kwargs[0]['n']\n"
        "    return SimpleNamespace(follow_all_instructions=right)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert SCORERS["ifbench"]("a b c", None, row) == 1.0
        assert SCORERS["ifbench"]("a b", None, row) == 0.0
        with pytest.raises(ValueError, match="instruction_id_list"):
            SCORERS["ifbench"]("a", None, {})
    finally:
        sys.modules.pop("evaluation_lib", None)  # other tests are to find that it is not there
