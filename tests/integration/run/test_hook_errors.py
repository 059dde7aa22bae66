"""An exception of a user's function, wherever it is called: one line, exit code 2, its traceback
in the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.hook import Hook
from configs.hooks import HOOKS
from tests.conftest import run_entry
from tests.unit.configs.test_hooks import written

NEEDS = {
    "buffer_priority_path": ("--buffer-selector", "prioritized"),
    "custom_rm_path": (),
    "eval_function_path": ("--eval-interval", "1"),
    "custom_eval_rollout_log_function_path": ("--eval-interval", "1", "--eval-prompt-data"),
}
# those that --mock never calls: on the learner's ranks
ON_RANKS = {"loss", "tis", "megatron", "model"}
# whose failure is that of a measurement: training goes on
EVALUATION = ("eval_function_path", "custom_eval_rollout_log_function_path")
ON_DRIVER = [
    hook
    for hook in HOOKS.values()
    if not ON_RANKS & set(hook.field.split("_")) and hook.field not in EVALUATION
]
RAISES = ["1 / 0", "sys.exit(3)", "raise_(KeyboardInterrupt())"]


def flags(hook: Hook, tmp_path: Path, raises: str) -> list[str]:
    file, prompts = tmp_path / "mine.py", tmp_path / "prompts.jsonl"
    file.write_text(
        f"import sys\ndef raise_(error):\n    raise error\n{written(hook, f'return {raises}')}"
    )
    rows = [{"prompt": f"{a}+{a}=", "label": str(2 * a)} for a in range(8)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    needs = list(NEEDS.get(hook.field, ()))
    if needs[-1:] == ["--eval-prompt-data"]:
        needs.append(str(prompts))
    if hook.field != "custom_rm_path":
        needs += ["--rm-type", "exact_match"]
    if hook.field != "data_source_path":
        needs += ["--prompt-data", str(prompts)]
    return [
        *("--mock", "--num-rollout", "2", "--rollout-batch-size", "2", "--async-buffer-size", "1"),
        *("--n-samples-per-prompt", "2", "--label-key", "label", "--runs-dir", str(tmp_path)),
        *("--name", "r", *needs, hook.flag, str(file)),
    ]


@pytest.mark.parametrize("hook", ON_DRIVER, ids=[h.field for h in ON_DRIVER])
def test_what_a_function_raises_is_one_line(hook: Hook, tmp_path: Path) -> None:
    raises = RAISES[ON_DRIVER.index(hook) % len(RAISES)]
    done = run_entry(*flags(hook, tmp_path, raises))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ExceptionGroup" not in done.stderr and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1] if hook.style != "class" else done.stderr
    assert hook.flag in line and f"{tmp_path / 'mine.py'} line " in line
    if hook.style != "class":  # one that cannot be made ends a run that has no log yet
        log = (tmp_path / "r" / "run.log").read_text()
        assert f'File "{tmp_path / "mine.py"}", line ' in log


@pytest.mark.parametrize("field", EVALUATION)
def test_an_evaluation_that_raises_is_one_line_and_training_goes_on(
    field: str, tmp_path: Path
) -> None:
    done = run_entry(*flags(HOOKS[field], tmp_path, "1 / 0"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ExceptionGroup" not in done.stderr and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "ZeroDivisionError" in line]
    assert len(lines) == 3  # before the first rollout and after each
    assert all(f"{tmp_path / 'mine.py'} line 5" in line for line in lines)
    assert all(HOOKS[field].flag in line for line in lines)
    log = (tmp_path / "r" / "run.log").read_text()
    assert f'File "{tmp_path / "mine.py"}", line 5' in log
