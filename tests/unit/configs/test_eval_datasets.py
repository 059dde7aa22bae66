"""--eval-config: slime's format, each key as its flag would read it, and what goes before what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.command_line.loader import load_config, parse_config
from configs.rules.cautions import cautions
from configs.rules.eval_datasets import EvalDataset, eval_datasets
from pipeline.core.errors import ConfigError

MULTI_TASK = """
eval:
  defaults: {max_response_len: 16384, top_p: 0.7, label_key: answer}
  datasets:
    - {name: aime, path: aime.jsonl, rm_type: deepscaler, n_samples_per_eval_prompt: 16}
    - name: gpqa
      path: "gpqa.jsonl@[0:2]"
      rm_type: gpqa
      n_samples: 2
      top_p: null
      temperature: 0
      max_response_len: 5
      stop: ["</a>", b]
      apply_chat_template_kwargs: {enable_thinking: false}
      metadata_overrides: {choices: [x, y]}
"""
ROWS = '{"prompt": "1+2=", "label": "3", "answer": "3"}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("aime.jsonl", "gpqa.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text(ROWS * 4)
    (tmp_path / "rm.py").write_text(
        "def batched_custom_rm(args, samples): return [1.0] * len(samples)\n"
    )
    return tmp_path


def words(*more: str) -> list[str]:
    base = "--mock --prompt-data prompts.jsonl --label-key label --eval-interval 1"
    return [*base.split(), *more]


def read(text: str, *more: str) -> tuple[EvalDataset, ...]:
    Path("eval.yaml").write_text(text)
    scorer = () if "--custom-rm-path" in more else ("--rm-type", "math")
    return eval_datasets(load_config(words("--eval-config", "eval.yaml", *scorer, *more)))


def test_defaults_hold_where_a_data_set_says_nothing(folder: Path) -> None:
    aime, gpqa = read(MULTI_TASK, "--eval-top-k", "20", "--n-samples-per-eval-prompt", "3")
    assert (aime.name, aime.path, aime.num_samples) == ("aime", "aime.jsonl", 16)
    assert aime.sampling == {"max_new_tokens": 16384, "top_p": 0.7}
    assert (aime.reward.rm_type, dict(aime.metadata)) == ("deepscaler", {"rm_type": "deepscaler"})
    assert gpqa.num_samples == 2
    assert gpqa.sampling == {
        "max_new_tokens": 5,
        "top_p": 0.7,
        "temperature": 0.0,
        "stop": ["</a>", "b"],
    }
    assert dict(gpqa.metadata) == {"rm_type": "gpqa", "choices": ["x", "y"]}
    assert (aime.data.label_key, gpqa.data.template_arguments) == (
        "answer",
        {"enable_thinking": False},
    )


def test_a_mapping_from_names_without_the_outer_word_is_the_same(folder: Path) -> None:
    (one,) = read("datasets:\n  aime: {path: aime.jsonl}\n", "--eval-label-key", "answer")
    assert (one.name, one.num_samples, one.sampling) == ("aime", 1, {})
    assert (one.data.label_key, one.reward.rm_type) == ("answer", "math")


def test_a_data_sets_own_scorer_goes_before_the_flags(folder: Path) -> None:
    text = """datasets:
  - {name: a, path: aime.jsonl, rm_type: f1}
  - {name: b, path: aime.jsonl, custom_rm_path: other.py, rm_type: f1}
  - {name: c, path: aime.jsonl}
"""
    found = read(text, "--custom-rm-path", "rm.py", "--group-rm", "--eval-reward-key", "acc")
    assert [(d.reward.rm_type, d.reward.custom_rm_path, d.reward.group_rm) for d in found] == [
        ("f1", None, False),
        (None, "other.py", False),
        (None, "rm.py", True),
    ]
    assert {d.reward.reward_key for d in found} == {"acc"}


def test_pairs_are_data_sets_with_what_the_flags_say(folder: Path) -> None:
    pairs = "--rm-type math --eval-prompt-data a aime.jsonl --eval-prompt-data g gpqa.jsonl"
    config = load_config(words(*pairs.split(), "--eval-input-key", "q"))
    assert [(d.name, d.path, d.data.input_key) for d in eval_datasets(config)] == [
        ("a", "aime.jsonl", "q"),
        ("g", "gpqa.jsonl", "q"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "expected a mapping with `datasets`"),
        ("a: [", "not YAML"),
        ("eval: 3", "`eval` is 3"),
        ("sets: {}", "unknown 'sets'"),
        ("defaults: {}", "no `datasets`"),
        ("datasets: []", "no `datasets`"),
        ("datasets: [{path: aime.jsonl}]", "data set 1 has no name"),
        ("datasets: [{name: a}]", "data set a has no path"),
        ("datasets: [{name: a, path: no.jsonl}]", "no.jsonl: no such file"),
        ("datasets: [{name: a, path: aime.jsonl, topp: 1}]", "data set a: unknown 'topp'"),
        ("datasets: [{name: a, path: aime.jsonl, top_p: 2}]", "top_p 2: expected a probability"),
        ("datasets: [{name: a, path: aime.jsonl, top_k: x}]", "top_k x: expected an integer"),
        ("datasets: [{name: a, path: aime.jsonl, rm_type: m}]", "rm_type m: expected one of math"),
        ("datasets: [{name: a, path: aime.jsonl, rm_type: ifbench}]", "ifbench: .*git clone"),
        ("datasets: [{name: a, path: aime.jsonl, rm_type: judge}]", "judge: set --judge-url"),
        ("datasets: [{name: a, path: aime.jsonl, rm_type: remote_rm}]", "set --rm-url"),
        ("datasets: [{name: a, path: aime.jsonl, no_stop_trim: 3}]", "expected true or false"),
        ("datasets: [{name: a, path: aime.jsonl, app_service: u}]", "app_service is not there: "),
        ("datasets: [{name: a, path: '${oc.env:HOME}/a.jsonl'}]", "is not filled in"),
        (
            "{datasets: [{name: a, path: aime.jsonl}], defaults: {nope: 1}}",
            "defaults: unknown 'nope'",
        ),
        (
            "datasets: [{name: a, path: aime.jsonl}, {name: a, path: gpqa.jsonl}]",
            "a twice; its results would be mixed up",
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_named(folder: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)^--eval-config eval\.yaml.*{says}") as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused_and_one_that_is_not_used_is_said(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--eval-config no\.yaml: No such file"):
        load_config(words("--rm-type", "math", "--eval-config", "no.yaml"))
    Path("eval.yaml").write_text(MULTI_TASK)
    given = "--mock --prompt-data prompts.jsonl --rm-type random --eval-config eval.yaml"
    assert "eval.yaml without --eval-interval" in "".join(cautions(load_config(given.split())))


def test_a_file_goes_before_pairs_unless_a_preset_named_it(folder: Path) -> None:
    pairs = ["--eval-prompt-data", "pair", "aime.jsonl"]
    assert [d.name for d in read(MULTI_TASK, *pairs)] == ["aime", "gpqa"]
    given = words("--rm-type", "math", "--eval-config", "eval.yaml", *pairs)
    (note,) = load_config(given).notes
    assert "--eval-prompt-data pair aime.jsonl (--eval-config eval.yaml says what" in note
    for preset, typed, names in (
        ("- --eval-config eval.yaml\n", pairs, ["pair"]),
        ("- --eval-prompt-data pair aime.jsonl\n", given[-5:-3], ["aime", "gpqa"]),
    ):
        Path("preset.yaml").write_text(preset)
        config = load_config(words("--rm-type", "math", "--config", "preset.yaml", *typed))
        assert [d.name for d in eval_datasets(config)] == names


@pytest.mark.parametrize("value", ["{", "[1]", "3"])
def test_template_arguments_are_a_json_object(folder: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"--apply-chat-template-kwargs .*expected a JSON object"):
        load_config(["--mock", "--apply-chat-template-kwargs", value])


def test_template_arguments_reach_functions_as_a_dict(folder: Path) -> None:
    from configs.schema import flat_args

    config, _ = parse_config(
        ["--mock", "--apply-chat-template-kwargs", '{"enable_thinking": true}']
    )
    given: Any = flat_args(config).apply_chat_template_kwargs
    assert given == {"enable_thinking": True}


@pytest.mark.parametrize("trains", ["--loss-type sft_loss", "--use-opd --opd-teacher-url http://t"])
def test_what_is_scored_in_evaluations_only_is_named_there(folder: Path, trains: str) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    base = f"--hf-checkpoint model --prompt-data prompts.jsonl --eval-interval 1 {trains}".split()

    def load(data_set: str, *more: str) -> None:
        Path("eval.yaml").write_text(f"datasets: [{{name: a, path: aime.jsonl{data_set}}}]")
        load_config([*base, "--eval-config", "eval.yaml", *more])

    load(", rm_type: deepscaler, label_key: label")
    load(", rm_type: random")
    load(", rm_type: f1", "--eval-label-key", "label")
    with pytest.raises(ConfigError, match="data set a says nothing of rewards, so nothing can be"):
        load("")
    with pytest.raises(ConfigError, match=r"data set a, rm_type f1, compares .*--eval-label-key"):
        load(", rm_type: f1")
