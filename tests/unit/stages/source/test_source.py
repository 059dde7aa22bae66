"""The prompt source: files and tasks, what is wrong with them, order, resume."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import DataConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.types import Status
from stages.source import PromptSource, build_source
from stages.source.render import Renderer
from stages.source.rows import Row


class Words:
    """A tokenizer of characters, with a chat template."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [*([1] if add_special_tokens else []), *(ord(c) for c in text)]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(chr(t) for t in token_ids if t)

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        assert kwargs["tokenize"] is False
        if messages[0]["role"] == "grumpy":
            raise ValueError("no such role")
        tools = "".join(t["name"] + ";" for t in kwargs.get("tools", ()))
        return (
            tools
            + "".join(f"<{m['role']}>{m['content']}" for m in messages)
            + ("<assistant>" if kwargs["add_generation_prompt"] else "")
        )


@dataclasses.dataclass
class NumberRows:
    """n prompts "0" ... "n-1"."""

    n: int
    name: str = "numbers"
    endless: bool = False
    num_bad_rows: int = 0

    def __len__(self) -> int:
        return self.n

    def row(self, epoch: int, index: int) -> Row:
        return Row(where=f"row {index}", prompt=str(index))

    def fingerprint(self) -> str:
        return str(self.n)


def write_jsonl(path: Path, *rows: Any) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def numbers(n: int = 10, **kwargs: Any) -> PromptSource:
    return PromptSource(NumberRows(n), Renderer(DataConfig(), Words()), **kwargs)


def prompts(source: PromptSource, count: int) -> list[Any]:
    return [group[0].prompt for group in source.get_samples(count)]


IN_ORDER = DataConfig(rollout_shuffle=False, label_key="label")


# -- files -----------------------------------------------------------------------------------------


def test_a_jsonl_row_becomes_a_group_of_pending_samples(tmp_path: Path) -> None:
    spec = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "hi", "label": [4], "metadata": {"k": {"v": 1}}},
        "",
        {"prompt": "ho", "label": None},
    )
    source = build_source(spec, IN_ORDER, 3, None, Words())
    assert len(source) == 2  # the blank line is none
    first, second = source.get_samples(2)
    assert len(first) == 3 and {s.status for s in first} == {Status.PENDING}
    assert (first[0].prompt, first[0].tokens, first[0].label, first[0].metadata) == (
        "hi",
        [ord("h"), ord("i")],
        [4],
        {"k": {"v": 1}},
    )
    first[0].metadata["k"]["v"] = 2  # each sample's metadata is its own, also the next epoch's
    first[0].tokens.append(9)
    assert first[1].metadata == {"k": {"v": 1}} and first[1].tokens == [ord("h"), ord("i")]
    assert second[0].label is None
    assert source.get_samples(1)[0][0].metadata == {"k": {"v": 1}}


@pytest.mark.parametrize("part", ["[2:5]", "[-3:]", "[:4]", "[-2:3]", "[:]", "[3:100]"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_slices_are_pythons(tmp_path: Path, kind: str, part: str) -> None:
    rows = [{"prompt": f"p{i}", "label": i} for i in range(8)]
    path = tmp_path / f"a.{kind}"
    (
        write_jsonl(path, *rows)
        if kind == "jsonl"
        else pq.write_table(pa.Table.from_pylist(rows), path)
    )
    expected = eval(f"rows{part}")
    if not expected:
        with pytest.raises(DataError, match="holds no prompts"):
            build_source(f"{path}@{part}", IN_ORDER)
        return
    source = build_source(f"{path}@{part}", IN_ORDER)
    assert [(g[0].prompt, g[0].label) for g in source.get_samples(len(source))] == [
        (r["prompt"], r["label"]) for r in expected
    ]


def test_parquet_with_chats_tools_and_metadata_as_text(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "2+2?"}]
    row = {
        "prompt": chat,
        "label": "4",
        "metadata": json.dumps({"a": 1}),
        "tools": json.dumps([{"name": "calc"}]),
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    config = dataclasses.replace(IN_ORDER, apply_chat_template=True, system_prompt="Be brief.")
    sample = build_source(str(tmp_path / "a.parquet"), config, 1, None, Words()).get_samples(1)[0][
        0
    ]
    assert sample.prompt == "calc;<system>Be brief.<user>2+2?<assistant>"
    # the template's text, with no special token added
    assert sample.tokens == [ord(c) for c in sample.prompt]
    assert sample.metadata == {"a": 1, "tools": [{"name": "calc"}]}


def test_chat_template_of_plain_text_and_of_a_chat_with_its_own_system_prompt(
    tmp_path: Path,
) -> None:
    own = [{"role": "system", "content": "S"}, {"role": "user", "content": "u"}]
    spec = write_jsonl(
        tmp_path / "a.jsonl", {"prompt": "x", "label": 1}, {"prompt": own, "label": 1}
    )
    config = dataclasses.replace(IN_ORDER, apply_chat_template=True, system_prompt="T")
    source = build_source(spec, config, 1, None, Words())
    assert prompts(source, 2) == ["<system>T<user>x<assistant>", "<system>S<user>u<assistant>"]
    with pytest.raises(ConfigError, match="--apply-chat-template"):
        build_source(spec, dataclasses.replace(config, apply_chat_template=False), 1, None, Words())
    bad = write_jsonl(
        tmp_path / "b.jsonl", {"prompt": [{"role": "grumpy", "content": ""}], "label": 1}
    )
    with pytest.raises(
        DataError,
        match=r"b\.jsonl line 1: the chat template refuses the prompt: ValueError: no such role",
    ):
        build_source(bad, dataclasses.replace(config, system_prompt=None), 1, None, Words())


GOOD = {"prompt": "p", "label": 1}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{not json", "is not JSON"),
        ("[1]", "is a list; expected a JSON object with 'prompt' and 'label'"),
        ({"promt": "p", "label": 1}, "has no 'prompt'.*did you mean --input-key promt"),
        ({"prompt": "p"}, "has no 'label'.*--label-key"),
        ({"prompt": "", "label": 1}, "'prompt' is an empty text"),
        (
            {"prompt": 3, "label": 1},
            "'prompt' is a number; expected text or a list of chat messages",
        ),
        (
            {"prompt": [{"role": "user"}], "label": 1},
            "the content of message 0 of 'prompt' is null",
        ),
        ({**GOOD, "metadata": [1]}, "'metadata' is a list; expected a JSON object"),
        ({**GOOD, "metadata": "{"}, "'metadata' is text that is not JSON"),
        ({**GOOD, "tools": {}}, "'tools' is a object; expected a JSON list"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line_or_skipped_and_counted(
    tmp_path: Path, bad: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = write_jsonl(tmp_path / "a.jsonl", GOOD, "", bad, GOOD)
    with pytest.raises(DataError, match=rf"a\.jsonl line 3:? {says}"):
        build_source(spec, IN_ORDER)
    with caplog.at_level(logging.WARNING):
        source = build_source(spec, dataclasses.replace(IN_ORDER, skip_bad_rows=True))
    assert (len(source), source.num_bad_rows) == (2, 1)
    assert f"1 bad row skipped: {tmp_path / 'a.jsonl'} line 3" in caplog.text


def test_bytes_that_are_no_utf8_are_a_malformed_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"prompt": "p", "label": 1}\n{"prompt": "\xff", "label": 1}\n'
    )
    with pytest.raises(DataError, match=r"line 2 is not UTF-8 text"):
        build_source(str(tmp_path / "a.jsonl"), IN_ORDER)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "holds no prompts"),
        ("a.jsonl", b"\n\n", "holds no prompts"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.csv", b"x", r"expected a file ending in \.jsonl or \.parquet"),
        ("b.jsonl", None, r"does not exist"),
        ("a.jsonl@[x]", None, r"a.jsonl@\[x\]: cannot read the slice"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        build_source(str(tmp_path / name), IN_ORDER)
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"did you mean .*train\.jsonl"):
        build_source(str(tmp_path / "trian.jsonl"), IN_ORDER)
    with pytest.raises(ConfigError, match="--prompt-data"):
        build_source(None, IN_ORDER)


# -- tasks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("chain_sums", "no task 'chain_sums'; did you mean .*chain_sum"),
        ("chain_sum?min_term=2", "no parameter 'min_term'; did you mean 'min_terms'"),
        ("chain_sum?min_terms=two", "min_terms=two is not a whole number"),
        ("chain_sum?min_terms=5&max_terms=2", "refuses its parameters"),
        ("chain_sum?min_terms", "'min_terms' has no value"),
        ("chain_sum?size=0", "holds no prompts"),
    ],
)
def test_a_task_that_cannot_be(spec: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        build_source("reasoning_gym:" + spec, DataConfig())


def test_a_task_without_size_never_ends_and_never_shows_a_prompt_of_its_evaluation() -> None:
    spec = "reasoning_gym:chain_sum?min_terms=3&max_terms=6&min_digits=4&max_digits=6"
    source = build_source(spec, DataConfig())
    assert source.endless
    seen = prompts(source, len(source) + 5)
    assert source.epoch == 1 and len(set(seen)) == len(seen)  # the second chunk repeats nothing
    held_out = [g[0].prompt for g in source.all_prompts(50)]
    assert len(held_out) == 50 and not set(held_out) & set(seen)
    assert prompts(build_source(spec, DataConfig()), 3) == seen[:3]
    assert prompts(build_source(spec, DataConfig(), seed=43), 3) != seen[:3]
    sized = build_source("reasoning_gym:chain_sum?size=4", DataConfig())
    assert not sized.endless and len(sized) == 4
    assert sorted(prompts(sized, 4)) == sorted(prompts(sized, 4))


# -- order, limits, resume -------------------------------------------------------------------------


def test_every_epoch_has_every_prompt_in_an_order_of_its_own() -> None:
    epochs = [prompts(numbers(30, shuffle=True, seed=7), 90)[i : i + 30] for i in (0, 30, 60)]
    assert all(sorted(e, key=int) == [str(i) for i in range(30)] for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3
    assert prompts(numbers(30, shuffle=True, seed=8), 30) != epochs[0]
    assert prompts(numbers(30, shuffle=False), 60) == [str(i) for i in range(30)] * 2


def test_prompts_over_the_limit_are_skipped_counted_once_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = numbers(12, shuffle=False, max_prompt_len=1)
    with caplog.at_level(logging.WARNING):
        assert prompts(source, 25) == [str(i % 10) for i in range(25)]
    assert source.num_too_long == 2 and list(source.too_long) == [(10, 2), (11, 2)]
    said = [r.message for r in caplog.records if not hasattr(r, "file_only")]
    assert len(said) == 1 and said[0].startswith(
        "2 prompts skipped, longer than --rollout-max-prompt-len 1: "
    )
    assert "row 10 (2 tokens); " in said[0] and "row 11 (2 tokens)" in said[0]
    assert [g[0].prompt for g in source.all_prompts()] == [str(i) for i in range(10)]
    with pytest.raises(DataError, match="all 3 prompts are longer than --rollout-max-prompt-len 0"):
        numbers(3, max_prompt_len=0).get_samples(1)


@settings(max_examples=60)
@given(
    n=st.integers(1, 9),
    shuffle=st.booleans(),
    seed=st.integers(0, 99),
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), max_size=6),
)
def test_resume_is_exact_at_any_point(
    n: int, shuffle: bool, seed: int, steps: list[tuple[int, int]]
) -> None:
    """(take, give back) steps; then the resumed source, after a trip through JSON, goes on as the
    old one does."""
    old, new = (numbers(n, shuffle=shuffle, seed=seed, n_samples_per_prompt=2) for _ in range(2))
    for take, back in steps:
        taken = old.get_samples(take)
        old.add_samples(taken[:back])
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    assert [[s.to_dict() for s in g] for g in new.get_samples(3 * n)] == [
        [s.to_dict() for s in g] for g in old.get_samples(3 * n)
    ]
    assert new.state_dict() == old.state_dict()


def test_groups_given_back_come_first_as_they_were() -> None:
    source = numbers(5, shuffle=False)
    taken = source.get_samples(2)
    taken[0][0].metadata["touched"] = True
    source.add_samples(taken)
    state = json.loads(json.dumps(source.state_dict()))
    again = source.get_samples(3)
    assert again[:2] == taken and again[2][0].prompt == "2"
    other = numbers(5, shuffle=False)
    other.load_state_dict(state)
    assert other.get_samples(1)[0][0].metadata == {"touched": True}


@pytest.mark.parametrize("other", [{"n": 6}, {"seed": 1}, {"shuffle": False}])
def test_a_position_in_other_prompts_is_refused(other: dict[str, Any]) -> None:
    state = numbers(5, seed=0).state_dict()
    with pytest.raises(DataError, match="other prompts or another shuffle"):
        numbers(**{"n": 5, "seed": 0, **other}).load_state_dict(state)
