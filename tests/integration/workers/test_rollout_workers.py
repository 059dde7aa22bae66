"""--num-rollout-workers as a user starts it, with simulated engines and learner: real Ray actors,
the whole pipeline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from tests.conftest import num_trained, read_metrics, run_entry, start_entry

pytestmark = [pytest.mark.slow, pytest.mark.alone]
FAST = (
    *("--mock", "--rollout-batch-size", "4", "--n-samples-per-prompt", "4"),
    *("--mock-step-seconds", "0.02", "--mock-seconds-per-token", "0.0005"),
)
GENERATE = """
import os, time
from pathlib import Path

async def generate(args, sample, sampling_params):
    answer = await args.engine_client.generate(sample.tokens, sampling_params)
    sample.append_response_tokens(
        answer.token_ids, log_probs=answer.log_probs, spans=answer.spans
    )
    sample.response, sample.status = answer.text, sample.Status.COMPLETED
    sample.metadata["pid"] = os.getpid()
    {more}
    return sample
"""


def totals(run: Path) -> dict[str, int]:
    entries, _ = read_journal(run / "buffer" / FILE_NAME)
    return Ledger(entries).totals()


def workers_of(driver: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(driver).children(recursive=True) if _is_worker(p)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("RolloutWorker" in word for word in process.cmdline())
    except psutil.Error:  # it is just dying
        return False


def start(*flags: str, folder: Path, name: str, **how: bool) -> subprocess.Popen[str]:
    return start_entry(*FAST, *flags, "--runs-dir", str(folder), "--name", name, **how)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


def test_groups_are_made_in_other_processes_and_all_are_accounted_for(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    function = tmp_path / "mine.py"
    function.write_text(GENERATE.format(more="print('here', flush=True)"))
    seen = tmp_path / "seen.py"
    seen.write_text(
        "def process_all_samples(args, all_groups, data_source):\n"
        f"    with open({str(tmp_path / 'pids')!r}, 'a') as file:\n"
        "        for group in all_groups:\n"
        "            print(*[s.metadata['pid'] for s in group], file=file)\n"
    )
    done = run_entry(
        *FAST,
        *("--num-rollout", "8", "--async-buffer-size", "2", "--num-rollout-workers", "2"),
        *("--custom-generate-function-path", str(function)),
        *("--rollout-all-samples-process-path", str(seen)),
        *("--dynamic-sampling-filter-path", "zero_std", "--mock-failure-rate", "0.05"),
        *("--runs-dir", str(tmp_path), "--name", "m"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "m"
    train = read_metrics(run, "train")
    assert [r["rollout_id"] for r in train] == list(range(8))
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]
    assert train[-1]["samples_failed"] > 0 and train[-1]["groups_filtered"] > 0
    found = totals(run)
    assert (found["lost"], found["duplicated"]) == (0, 0)
    lines = (tmp_path / "pids").read_text().splitlines()
    assert len(lines) > 8 * 4  # those that were dropped are shown as well
    assert len({pid for line in lines for pid in line.split()}) == 2
    assert all(len(set(line.split())) == 1 for line in lines)  # a group is made in one place
    for number in range(2):
        assert "here" in (run / "logs" / f"rollout-worker-{number}.log").read_text()
    assert all("worker_event_loop_lag_seconds_max" in r for r in train)


def test_a_killed_worker_loses_nothing_and_is_started_again(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    rollouts = 150  # enough for a worker to come back meanwhile, on a busy machine too
    more = ("--async-buffer-size", "2", "--num-rollout-workers", "2")
    process = start("--num-rollout", str(rollouts), *more, folder=tmp_path, name="k")
    run, killed = tmp_path / "k", set[int]()
    for after in (3, 9):
        until(lambda after=after: num_trained(run) >= after, process)
        until(lambda: len(workers_of(process.pid)) == 2, process)
        victim = workers_of(process.pid)[0]
        killed.add(victim.pid)
        victim.send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert [r["rollout_id"] for r in read_metrics(run, "train")] == list(range(rollouts))
    found = totals(run)
    assert (found["lost"], found["duplicated"], found["trained"]) == (0, 0, 4 * rollouts)
    entries, _ = read_journal(run / "buffer" / FILE_NAME)
    admitted = [entry["g"] for entry in entries if entry["t"] == "admit"]
    assert sorted(admitted) == list(range(len(admitted)))  # no admission was given out anew
    assert not [entry for entry in entries if entry["t"] == "discard"]
    log = (run / "run.log").read_text()
    for pid in killed:
        assert f"(pid {pid}) died" in log
    assert "is back (pid" in log


def test_a_run_whose_workers_die_too_often_ends_and_says_why(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    function = tmp_path / "mine.py"
    function.write_text(
        GENERATE.format(more="print('giving up the ghost', flush=True); os._exit(9)")
    )
    done = run_entry(
        *FAST,
        *("--num-rollout", "8", "--num-rollout-workers", "1", "--rollout-worker-restarts", "1"),
        *("--custom-generate-function-path", str(function)),
        *("--runs-dir", str(tmp_path), "--name", "d"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "RolloutWorkerError: no rollout worker is left, after 1 restarts" in done.stderr
    assert "--rollout-worker-restarts 1" in done.stderr and "giving up the ghost" in done.stderr


def test_a_function_that_blocks_holds_up_its_worker_only_and_is_named(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    mark = tmp_path / "mark"
    function = tmp_path / "mine.py"
    function.write_text(
        GENERATE.format(
            more=f"if sample.group_index == 3 and not Path({str(mark)!r}).exists():"
            f" Path({str(mark)!r}).touch(); time.sleep(8)  # the culprit"
        )
    )
    done = run_entry(
        *FAST,
        *("--num-rollout", "6", "--async-buffer-size", "4", "--max-staleness", "12"),
        *("--num-rollout-workers", "2", "--custom-generate-function-path", str(function)),
        *("--runs-dir", str(tmp_path), "--name", "b"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "b"
    (wait,) = read_metrics(run, "wait")
    culprit = next(
        i + 1 for i, line in enumerate(function.read_text().splitlines()) if "culprit" in line
    )
    assert wait["stage"] == "blocked" and f"mine.py:{culprit} (generate)" in wait["where"]
    assert wait["worker"] in (0, 1) and wait["seconds"] >= 5
    train = read_metrics(run, "train")
    assert max(r["event_loop_lag_seconds_max"] or 0 for r in train) < 5  # the driver's was free
    assert num_trained(run) == 6


def test_what_a_users_function_breaks_ends_the_run_as_it_does_in_the_driver(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    function = tmp_path / "keep.py"
    function.write_text("def keep(args, samples):\n    return 'perhaps'\n")
    own = ("--dynamic-sampling-filter-path", str(function), "--num-rollout", "4")
    said = []
    for workers in ("0", "1"):
        more = ("--num-rollout-workers", workers, "--runs-dir", str(tmp_path), "--name", workers)
        done = run_entry(*FAST, *own, *more)
        assert done.returncode == 2, done.stdout + done.stderr
        said.append([x for x in done.stderr.splitlines() if x.startswith("ConfigError: ")])
    assert said[0] == said[1] and "'perhaps'" in said[0][0]


def test_the_same_samples_come_from_a_worker_as_from_the_driver(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    same = ("--deterministic-mode", "--async-buffer-size", "0", "--num-rollout", "5")
    digests = []
    for workers in ("0", "1", "2"):
        more = ("--num-rollout-workers", workers, "--runs-dir", str(tmp_path), "--name", workers)
        done = run_entry(*FAST, *same, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        digests.append([r["batch_digest"] for r in read_metrics(tmp_path / workers, "train")])
    assert digests[0] == digests[1] == digests[2]


def test_a_run_with_workers_ends_at_a_signal_and_goes_on(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    more = ("--num-rollout", "40", "--async-buffer-size", "2", "--num-rollout-workers", "2")
    process = start(*more, folder=tmp_path, name="s")
    until(lambda: num_trained(tmp_path / "s") >= 4, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    done = run_entry("--load", str(tmp_path / "s"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = totals(tmp_path / "s")
    assert (found["lost"], found["duplicated"]) == (0, 0)
    assert json.loads((tmp_path / "s" / "summary.json").read_text())["num_rollouts"] == 40


def test_a_sigterm_to_the_whole_process_group_ends_a_run_as_one_to_the_run_alone(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    """`timeout` and batch systems signal every process of a job."""
    more = ("--num-rollout-workers", "2", "--num-rollout", "100000")
    process = start(*more, folder=tmp_path, name="t", new_session=True)
    until(lambda: num_trained(tmp_path / "t") >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and "died" not in said, said
    found = totals(tmp_path / "t")
    assert (found["lost"], found["duplicated"]) == (0, 0)
