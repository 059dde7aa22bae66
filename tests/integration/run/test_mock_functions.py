"""The user's own functions in whole runs, with simulated engines and learner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_metrics, run_entry
from tests.integration.run.test_mock_run import FAST


def test_many_of_the_users_functions_at_once(tmp_path: Path, nothing_left_behind: None) -> None:
    hooks = ROOT / "examples" / "hooks"
    paths = {
        "custom-generate-function-path": "generate",
        "data-source-path": "data_source",
        "dynamic-sampling-filter-path": "dynamic_filter",
        "rollout-sample-filter-path": "sample_filter",
        "rollout-all-samples-process-path": "all_samples",
        "custom-reward-post-process-path": "reward_post_process",
        "custom-advantage-function-path": "advantages",
    }
    flags = [
        word for flag, name in paths.items() for word in (f"--{flag}", str(hooks / f"{name}.py"))
    ]
    flags += [
        "--mask-offpolicy-in-partial-rollout",
        "--normalize-advantages",
        "--over-sampling-batch-size",
        "4",
        "--n-samples-per-prompt",
        "2",
    ]
    done = run_entry(
        *FAST,
        *flags,
        "--num-rollout",
        "6",
        "--async-buffer-size",
        "2",
        "--save",
        str(tmp_path / "save"),
        "--runs-dir",
        str(tmp_path),
        "--name",
        "h",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "h", "train")
    assert [r["rollout_id"] for r in train] == list(range(6))
    log = (tmp_path / "h" / "run.log").read_text()
    taken = [
        int(line.split("this rollout took ")[1].split()[0])
        for line in log.splitlines()
        if "this rollout took" in line
    ]
    # with those that the filter dropped
    assert len(taken) == 6 and min(taken) >= 4 and sum(taken) > 6 * 4
    # fan-out
    assert (
        all(r["num_samples"] <= 4 * 2 * 2 for r in train)
        and max(r["num_samples"] for r in train) > 4 * 2
    )
    assert (tmp_path / "save" / "data_source").is_dir()


def test_a_function_that_answers_nonsense_stops_the_run_with_its_flag(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def post_process_rewards(args, samples): return None\n")
    done = run_entry(
        *FAST,
        "--num-rollout",
        "2",
        "--custom-reward-post-process-path",
        str(tmp_path / "mine.py"),
        "--runs-dir",
        str(tmp_path),
    )
    assert done.returncode == 2
    assert (
        "--custom-reward-post-process-path: the function returned NoneType"
        in done.stdout + done.stderr
    )


def test_rewards_without_a_number_are_trained_on_as_the_users_function_reads_them(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def reward_func(args, sample): return {'right': sample.index % 2, 'why': ['a', None]}\n"
        "def post_process_rewards(args, samples):\n"
        "    raw = [s.reward['right'] for s in samples]\n"
        "    assert all(s.reward['why'] == ['a', None] for s in samples)\n"
        "    return raw, [r - 0.5 for r in raw]\n"
    )
    flags = ("--custom-rm-path", str(mine), "--custom-reward-post-process-path", str(mine))
    place = ("--runs-dir", str(tmp_path), "--name", "r")
    done = run_entry(*FAST, "--num-rollout", "2", *flags, *place)
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "r", "train")
    assert [r["reward_mean"] for r in train] == [None, None]


def test_a_rollout_without_a_trained_sample_is_a_zero_update(tmp_path: Path) -> None:
    """Of every other rollout a filter leaves nothing; the others have fewer samples than steps."""
    hook = tmp_path / "filters.py"
    hook.write_text(
        "calls = 0\n"
        "def filter_samples(args, groups):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    for number, sample in enumerate(s for group in groups for s in group):\n"
        "        sample.remove_sample = calls % 2 == 0 or number > 0\n"
    )
    flags = [*FAST, "--runs-dir", str(tmp_path), "--rollout-sample-filter-path", str(hook)]
    flags += ["--num-steps-per-rollout", "2", "--actor-num-gpus-per-node", "2", "--name", "z"]
    done = run_entry(*flags, "--num-rollout", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(tmp_path / "z", "train")
    assert [r["num_empty_steps"] for r in rows] == [1, 2, 1, 2]
    assert [r["num_idle_rank_steps"] for r in rows] == [1, 0, 1, 0]
    assert [r["num_samples"] for r in rows] == [1, 0, 1, 0]
    assert rows[1]["grad_norm"] == 0.0 and [r["policy_version"] for r in rows] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "z" / "summary.json").read_text())["num_empty_steps"] == 6
    assert "6 optimizer steps had no sample with a loss and changed nothing." in done.stdout
    assert "1 rollout with empty optimizer steps: rollout 0: 1 of its 2 opt" in done.stderr
    log = (tmp_path / "z" / "run.log").read_text()
    assert "rollout 1: 2 of its 2 optimizer steps had no sample with a loss" in log
    again = run_entry("--load", str(tmp_path / "z"), "--num-rollout", "6")
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.parametrize("where", ["async reward", "sync reward", "generate"])
def test_a_users_sys_exit_is_a_failure_like_any_other(
    tmp_path: Path, where: str, nothing_left_behind: None
) -> None:
    """It ends neither the loop nor what must be closed: the run says which line, and winds down."""
    hook = tmp_path / "leaves.py"
    hook.write_text(
        "import sys\n"
        f"{'' if where == 'sync reward' else 'async '}def leave(*args, **kwargs):\n"
        "    sys.exit(3)\n"
    )
    flag = "custom-generate-function-path" if where == "generate" else "custom-rm-path"
    flags = [*FAST, "--runs-dir", str(tmp_path), "--name", "x", "--group-max-retries", "0"]
    if where == "generate":
        hook.write_text(hook.read_text().replace("*args, **kwargs", "args, sample, params"))
    done = run_entry(*flags, f"--{flag}", f"{hook}:leave", "--num-rollout", "2")
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("UserFunctionError: ")
    assert f"SystemExit: 3 (--{flag}, {hook} line 3)" in said
    assert "Traceback" not in done.stderr and (tmp_path / "x" / "summary.json").exists()


def test_agents_over_http_in_two_rollout_workers(tmp_path: Path, nothing_left_behind: None) -> None:
    (tmp_path / "mine.py").write_text(
        "import aiohttp\n"
        "async def agent(task, base_url, api_key):\n"
        "    headers = {'Authorization': 'Bearer ' + api_key}\n"
        "    body = {'messages': [{'role': 'user', 'content': str(task['prompt'])}]}\n"
        "    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as http:\n"
        "        for _ in range(2):  # as a sub-agent would: two samples of one rollout\n"
        "            await http.post(base_url + '/chat/completions', json=body)\n"
        "        if task['index'] % 16 == 3:\n"
        "            raise RuntimeError('no tools today')\n"
        "    return float(task['index'] % 2)\n"
    )
    done = run_entry(
        *FAST,
        *("--agent-function-path", str(tmp_path / "mine.py"), "--num-rollout-workers", "2"),
        *("--num-rollout", "3", "--async-buffer-size", "1", "--group-max-retries", "0"),
        *("--runs-dir", str(tmp_path), "--name", "g"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train = read_metrics(tmp_path / "g", "train")
    assert [(r["num_samples"], r["reward_mean"]) for r in train] == [(4 * 4 * 2, 0.5)] * 3
    assert "no tools today (--agent-function-path" in (tmp_path / "g" / "run.log").read_text()
