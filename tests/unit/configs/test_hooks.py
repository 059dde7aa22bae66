"""One list of hooks: flags, documentation and checks at load agree with it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from configs.flags import own_flags
from configs.hook import Hook, generate_form
from configs.hooks import HOOKS, load_hook
from configs.rules.functions import functions
from configs.schema import Config, RewardConfig, flat_args
from pipeline.core.errors import UserFunctionError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "custom-functions.md").read_text(encoding="utf-8")
EVERY = pytest.mark.parametrize("hook", HOOKS.values(), ids=list(HOOKS))
READERS = [h for h in HOOKS.values() if h.args_place is not None]  # of args
FUNCTIONS = [h for h in READERS if h.style != "class"]


def config_of(hook: Hook, path: object, config: Config | None = None) -> Config:
    config = config or Config()
    section = getattr(config, hook.section)
    repeats = isinstance(getattr(section, hook.field), tuple)
    value = (str(path),) if repeats else str(path)
    return dataclasses.replace(
        config, **{hook.section: dataclasses.replace(section, **{hook.field: value})}
    )


def problems(
    hook: Hook, source: str, folder: Path, config: Config | None = None, name: str = ""
) -> list[str]:
    file = folder / "mine.py"
    file.write_text(source)
    return list(functions(config_of(hook, f"{file}{name}", config)))


def written(hook: Hook, body: str = "return 1", form: str | None = None) -> str:
    """A module with a function that fits."""
    if hook.style == "class":
        methods = "".join(
            f"    def {name}(self, {text.removeprefix('f(')}:\n        {body}\n"
            for name, text in {"__init__": hook.forms[0], **hook.methods}.items()
        )
        return f"class {hook.default_name}:\n{methods}"
    form = (form or hook.forms[0]).replace("f(", f"{hook.default_name}(", 1)
    return f"{'async ' if hook.style == 'async' else ''}def {form}:\n    {body}\n"


def test_every_flag_that_names_a_function_is_a_hook() -> None:
    named = {flag.field: flag.section for flag in own_flags().values() if "_path" in flag.field}
    assert named.pop("custom_config_path") == "run"  # of settings, not of a function
    assert named.pop("judge_prompt_path") == "reward"  # of a text
    assert named == {hook.field: hook.section for hook in HOOKS.values()}


def test_the_table_of_the_documentation_is_the_list_of_hooks() -> None:
    rows = re.findall(r"^\| \[`(--[\w-]+)`\]\(#[\w-]+\) \| `(\w+)` \| (.+?) \|", PAGE, re.MULTILINE)
    assert rows == [(h.flag, h.default_name, h.called) for h in HOOKS.values()]


@EVERY
def test_the_documentation_shows_every_form(hook: Hook) -> None:
    (anchor,) = re.findall(rf"\[`{hook.flag}`\]\(#([\w-]+)\)", PAGE)
    sections = {
        title.lower().replace(" ", "-"): " ".join(text.split())
        for title, text in re.findall(
            r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL
        )
    }
    shown = sections[anchor]
    if hook.style == "class":
        wanted = [text.removeprefix("f") for text in (hook.forms[0], *hook.methods.values())]
        assert all(name in shown for name in hook.methods)
    elif hook.field == "custom_generate_function_path":
        wanted = [hook.forms[0], "evaluation", hook.forms[2]]
    else:
        wanted = [form.removesuffix(")") for form in hook.forms]
    assert [text for text in wanted if text not in shown] == []


@EVERY
def test_the_help_of_the_flag_shows_a_form_of_it(hook: Hook) -> None:
    shown = re.findall(r"f\([^)]*\)", own_flags()[hook.flag.removeprefix("--")].help)
    assert set(shown) <= set(hook.forms)


@EVERY
def test_the_examples_of_the_documentation_pass_the_checks(hook: Hook) -> None:
    (row,) = re.findall(rf"^\| \[`{hook.flag}`\].*$", PAGE, re.MULTILINE)
    examples = re.findall(r"\(\.\./(examples/[\w/]+\.py)\)", row)
    assert examples
    for file in examples:
        config = Config(reward=RewardConfig(group_rm="group" in file))
        assert list(functions(config_of(hook, ROOT / file, config))) == []


@EVERY
def test_what_fits_passes_and_is_found_by_its_default_name(hook: Hook, tmp_path: Path) -> None:
    for form in hook.forms:
        config = Config(reward=RewardConfig(group_rm="samples" in form))
        assert problems(hook, written(hook, form=form), tmp_path, config) == []
    assert callable(load_hook(hook.field, str(tmp_path / "mine.py")))


@EVERY
def test_what_cannot_be_called_is_refused_with_file_and_line(hook: Hook, tmp_path: Path) -> None:
    source = "import os\n\n\n" + written(hook).replace("(self, args", "(self").replace("(args", "(")
    source = source.replace("(, ", "(").replace("(rollout_id, args", "(args")
    source = source.replace("pre_process, ", "").replace("(total_lengths, ", "(")
    source = source.replace("(task, ", "(")
    (problem,) = problems(hook, source, tmp_path)
    line = 5 if hook.style == "class" else 4
    assert f"{hook.flag} {tmp_path / 'mine.py'}: {tmp_path / 'mine.py'} line {line}" in problem
    assert "cannot be called as it will be; expected" in problem


@pytest.mark.parametrize("hook", READERS, ids=[h.field for h in READERS])
def test_a_flag_that_does_not_exist_is_named_before_anything_starts(
    hook: Hook, tmp_path: Path
) -> None:
    source = written(hook, "return args.rollout_batch_sise")
    if hook.style == "class":
        source = source.replace("return args.rollout_batch_sise", "return 1", 5).replace(
            "__init__(self, args):\n        return 1",
            "__init__(self, args):\n        self.a, self.b = args, 0",
        )
        called = f"{next(iter(hook.methods))}(self, "
        head, given, tail = source.partition(called)
        source = head + given + tail.replace("return 1", "return self.a.rollout_batch_sise", 1)
    (problem,) = problems(hook, source, tmp_path)
    line = 5 if hook.style == "class" else 2
    assert f"mine.py line {line} reads args.rollout_batch_sise" in problem
    assert "did you mean args.rollout_batch_size?" in problem


@pytest.mark.parametrize("hook", FUNCTIONS, ids=[h.field for h in FUNCTIONS])
def test_every_flag_may_be_read(hook: Hook, tmp_path: Path) -> None:
    names = [*vars(flat_args(Config())), *hook.extra_args]
    body = "; ".join(f"args.{name}" for name in names)
    assert problems(hook, written(hook, body), tmp_path) == []


def test_what_only_some_hooks_have_in_args_is_not_for_others(tmp_path: Path) -> None:
    reading = "return args.engine_client"
    assert problems(HOOKS["custom_rm_path"], written(HOOKS["custom_rm_path"], reading), tmp_path)


@pytest.mark.parametrize("field", ["custom_loss_function_path", "buffer_priority_path"])
def test_async_where_nobody_awaits_is_refused(field: str, tmp_path: Path) -> None:
    (problem,) = problems(HOOKS[field], "async " + written(HOOKS[field]), tmp_path)
    assert "is async; expected f(" in problem


@pytest.mark.parametrize(
    "field", ["custom_generate_function_path", "custom_rm_path", "rollout_sample_hook_path"]
)
@pytest.mark.parametrize("word", ["", "async "])
def test_plain_or_async_where_both_are_run(field: str, word: str, tmp_path: Path) -> None:
    hook = HOOKS[field]
    assert problems(hook, word + written(hook).removeprefix("async "), tmp_path) == []


def test_a_data_source_without_a_method_is_refused(tmp_path: Path) -> None:
    hook = HOOKS["data_source_path"]
    (problem,) = problems(hook, written(hook).replace("add_samples", "add"), tmp_path)
    assert "class RolloutDataSource has no method add_samples" in problem


def test_a_data_source_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """With its own constructor, and with that of a base beside it."""
    hook = HOOKS["data_source_path"]
    own = written(hook)
    (problem,) = problems(
        hook, own.replace("__init__(self, args)", "__init__(self, data, args)"), tmp_path
    )
    assert "__init__(self, data, args) cannot be called" in problem
    assert "expected __init__(self, args)" in problem
    base = own.replace("RolloutDataSource", "Base").replace("(self, args)", "(self, data, args)")
    (problem,) = problems(hook, f"{base}\nclass RolloutDataSource(Base): ...\n", tmp_path)
    assert "line 2: __init__(self, data, args) cannot be called" in problem


@pytest.mark.parametrize(
    "field", [h.field for h in HOOKS.values() if h.style in ("plain", "class")]
)
def test_what_raises_is_named_with_flag_file_and_line(field: str, tmp_path: Path) -> None:
    hook, file = HOOKS[field], tmp_path / "raises.py"
    file.write_text(written(hook, "return 1 / 0"))
    function = load_hook(field, str(file))
    form = hook.forms[0]
    by_name, by_place = "*" in form, form.count(",") + 1
    with pytest.raises(UserFunctionError) as caught:
        function(
            *[None] * (form.startswith("f(args") if by_name else by_place),
            **dict.fromkeys(re.findall(r"\w+", form.partition("*")[2])),
        )
    assert str(caught.value) == (
        f"{hook.flag} {file} raised ZeroDivisionError: division by zero"
        f" ({file} line {3 if hook.style == 'class' else 2})"
    )


@pytest.mark.parametrize(
    ("signature", "form"),
    [
        ("args, sample, sampling_params", (False, False)),
        ("args, sample, sampling_params, evaluation", (False, True)),
        ("args, samples", (True, False)),
        ("args, samples, evaluation=False", (True, True)),
        ("args, sample, sampling_params, **kw", (False, False)),
        ("args, sample", None),
        ("args, sample, sampling_params, more", None),
    ],
)
def test_the_forms_of_a_generate_function(signature: str, form: tuple[bool, bool] | None) -> None:
    scope: dict[str, object] = {}
    exec(f"async def f({signature}): ...", scope)
    found = generate_form(inspect.signature(scope["f"]))  # type: ignore[arg-type]
    assert form == (None if found is None else (found.takes_list, found.takes_evaluation))


GENERATE, REWARD = HOOKS["custom_generate_function_path"], HOOKS["custom_rm_path"]
FILTER, SOURCE = HOOKS["buffer_filter_path"], HOOKS["data_source_path"]
GROUPS = Config(reward=RewardConfig(group_rm=True))
LIST = "async def {}(args, samples, evaluation=False): return samples"
ONE, MANY = "async def {}(args, sample, **kw): return 1", "async def {}(args, samples): return []"
PLAIN = "def {}(args, sample, sampling_params): ..."
POP = "def {}(args, rollout_id, buffer, num_samples): ..."
BUFFERED = "RolloutDataSourceWithBuffer"
MINE = written(SOURCE).replace("RolloutDataSource", "Mine")


@pytest.mark.parametrize(
    ("hook", "group", "sources", "found"),
    [
        (GENERATE, False, [LIST.format("custom_generate")], "custom_generate"),
        (GENERATE, False, [LIST.format("rollout")], "rollout"),
        (GENERATE, False, ["async def post(url, payload): ...", LIST.format("r")], "r"),
        (GENERATE, False, [PLAIN.format("help"), LIST.format("generate")], "generate"),
        (GENERATE, False, [PLAIN.format("help"), LIST.format("agent")], "agent"),
        (GENERATE, False, [LIST.format("agent"), PLAIN.format("generate")], "generate"),
        (REWARD, False, [ONE.format("score")], "score"),
        (REWARD, False, [MANY.format("batched_custom_rm"), ONE.format("custom_rm")], "custom_rm"),
        (REWARD, True, [ONE.format("reward_func"), MANY.format("batched_custom_rm")], None),
        (REWARD, True, [ONE.format("reward_func"), MANY.format("batched_async_rm")], None),
        (REWARD, True, [ONE.format("reward_func"), MANY.format("score_all")], None),
        (REWARD, True, [MANY.format("reward_func")], "reward_func"),
        (FILTER, False, [POP.format("pop_first")], "pop_first"),
        (SOURCE, False, [f"class {BUFFERED}: ..."], BUFFERED),
        (SOURCE, False, [MINE], "Mine"),
    ],
)
def test_a_file_alone_means_the_function_that_slime_would_call(
    hook: Hook, group: bool, sources: list[str], found: str | None, tmp_path: Path
) -> None:
    """None: the last one."""
    file = tmp_path / "mine.py"
    file.write_text("\n\n".join(sources))
    wanted = found or sources[-1].split("(")[0].split()[-1]
    assert hook.named(str(file), group=group) == f"{file}:{wanted}"
    if not group:
        assert load_hook(hook.field, str(file)).__name__ == wanted


def test_of_several_that_fit_one_must_be_named(tmp_path: Path) -> None:
    source = "\n".join(LIST.format(name) for name in ("first", "second"))
    (problem,) = problems(GENERATE, source, tmp_path)
    assert "no function 'generate', and several that fit: first, second; name one" in problem
    assert problems(GENERATE, source, tmp_path, name=":second") == []


def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    source = "async def generate(args, sample): ...\n\n" + LIST.format("whole_group")
    (problem,) = problems(GENERATE, source, tmp_path)
    assert "mine.py line 1: generate(args, sample) cannot be called as it will be" in problem
    assert "expected [async] f(args, sample, sampling_params) or " in problem
    assert problem.endswith("whole_group in the same file would fit")


@pytest.mark.parametrize(
    ("config", "source", "said"),
    [
        (GROUPS, ONE, "takes one sample; with --group-rm it is called with the list of a group"),
        (Config(), MANY, "takes the samples of a group; without --group-rm it is called with one"),
    ],
)
def test_a_reward_function_for_something_else_is_refused(
    config: Config, source: str, said: str, tmp_path: Path
) -> None:
    (problem,) = problems(REWARD, source.format("reward_func"), tmp_path, config)
    assert said in problem and "mine.py line 1: reward_func(args, sample" in problem
    both = "async def reward_func(args, sample, **kw):\n    return isinstance(sample, list)"
    assert problems(REWARD, both, tmp_path, config) == []
